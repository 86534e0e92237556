"""Run the benchmarks and print what they found.

    python -m benchmarks [--only NAME]

Each is a module with a function `run`. All stand on one PostgreSQL and one Prefect server, started
for them and thrown away. Read ratios, not times: the machine is in every time.
"""

import argparse
import os
from collections.abc import Sequence

from rich.console import Console

from benchmarks import batch, checkout, chunks, costs, dispatch, growth, imports, online, runs
from benchmarks.ground import ground

BENCHMARKS = {
    module.__name__.rpartition(".")[2]: module
    for module in (batch, growth, chunks, costs, checkout, imports, dispatch, online, runs)
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Carry out the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", choices=BENCHMARKS, help="run this one alone")
    only = parser.parse_args(arguments).only
    console = Console()
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
    main()
