"""Run the benchmarks and print what they found.

Each is a module with a function `run`. All stand on one PostgreSQL and one Prefect server, started
for them and thrown away. Read ratios, not times: the machine is in every time.
"""

import os
import sys
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from benchmarks import batch, checkout, chunks, costs, dispatch, growth, imports, online, runs
from benchmarks.ground import ground
from terminal.command_line import command

BENCHMARKS = {
    module.__name__.rpartition(".")[2]: module
    for module in (batch, growth, chunks, costs, checkout, imports, dispatch, online, runs)
}


def _is_known(_: Any, name: str | None) -> None:
    if name is not None and name not in BENCHMARKS:
        raise ValueError(f"there are {', '.join(BENCHMARKS)}")


@command("python -m benchmarks", __doc__)
def main(*, only: Annotated[str | None, Parameter(validator=_is_known)] = None) -> None:
    """Run the benchmarks.

    Args:
        only: Run this one alone.
    """
    # Wide enough for every table, also in a file.
    console = Console(width=max(Console().width, 140))
    with ground() as prepared:
        for name, module in BENCHMARKS.items():
            if only in (None, name):
                console.rule(f"{name}: {(module.__doc__ or '').splitlines()[0]}")
                console.print(_load("before"))
                module.run(prepared, console)
                console.print(_load("after"))


def _load(when: str) -> str:
    """Return how busy the machine is; on a busy one, no figure is worth much."""
    loads = " ".join(f"{load:.1f}" for load in os.getloadavg())
    return f"load {when}, of {os.cpu_count()} cores: {loads}"


if __name__ == "__main__":
    sys.exit(main())
