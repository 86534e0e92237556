"""One Prefect beside another: a single checkout, and a batch, in two environments in turns.

    python -m benchmarks.versions [--rounds 3]

Not one of `make bench`: it needs the environment of the oldest Prefect, which `make upgrade-test`
makes,
and each round starts a server and a database of its own. Read the ratios.
"""

import json
import subprocess
import sys
from importlib.metadata import version
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.ground import ground, put_orders
from deployments.local import PROJECT_DIR
from terminal.command_line import Flag, command
from terminal.numbers import WholeNumber

ENVIRONMENTS = (".venv-oldest", ".venv")
CHECKOUTS = 20
ORDERS = 10_000
Figures = dict[str, float]


def measure() -> Figures:
    """Return the figures of this environment, on a server and a database of their own."""
    with ground() as prepared:
        put_orders(prepared.store_url, 0)
        before = prepared.cpu_seconds()
        single = prepared.measure("one_checkout", CHECKOUTS)
        server = prepared.cpu_seconds()["Prefect's server"] - before["Prefect's server"]
        # Both flows of the process are in the server's time, as often.
        flows = len(single["checkouts"]) + len(single["empty"])
        figures = {
            "a checkout, ms": median(single["checkouts"]) * 1e3,
            "an empty flow of as many tasks, ms": median(single["empty"]) * 1e3,
            "a flow run, ms of a core in its process": single["cpu_seconds"] / flows * 1e3,
            "a flow run, ms of a core in Prefect's server": server / flows * 1e3,
        }
        with prepared.dispatcher():
            put_orders(prepared.store_url, ORDERS)
            before = prepared.cpu_seconds()
            batch = prepared.measure("one_batch")
            after = prepared.cpu_seconds()
        figures |= {
            "a batch, orders/s": ORDERS / batch["seconds"],
            "a batch, µs of a core for each order in its run": batch["cpu_seconds"] / ORDERS * 1e6,
            "a batch, µs of a core for each order in Prefect's server": (
                after["Prefect's server"] - before["Prefect's server"]
            )
            / ORDERS
            * 1e6,
        }
    return figures


@command("python -m benchmarks.versions", __doc__)
def main(*, rounds: WholeNumber = 3, this_environment: Flag = False) -> None:
    """Measure both environments in turns.

    Args:
        rounds: How many.
        this_environment: Measure this one alone, once, and print JSON.
    """
    console = Console()
    if this_environment:
        console.print_json(json.dumps({"prefect": version("prefect"), "figures": measure()}))
        return
    found: dict[str, list[Figures]] = {}
    for number in range(rounds):
        # In turns, and each first in every second round: the machine is not the same all the time.
        for environment in ENVIRONMENTS if number % 2 == 0 else reversed(ENVIRONMENTS):
            printed = subprocess.run(
                [
                    PROJECT_DIR / environment / "bin" / "python",
                    *("-m", "benchmarks.versions", "--this-environment"),
                ],
                cwd=PROJECT_DIR,
                check=True,
                stdout=subprocess.PIPE,
            ).stdout
            said = json.loads(printed)
            found.setdefault(said["prefect"], []).append(said["figures"])
    first, last = found
    if version("prefect") == first:
        first, last = last, first
    table = Table(f"medians of {rounds} rounds", first, last, "ratio", "ratios of the rounds")
    for name in found[first][0]:
        before, after = ([each[name] for each in found[which]] for which in (first, last))
        ratios = " ".join(f"{a / b:.2f}" for a, b in zip(after, before, strict=True))
        old, new = median(before), median(after)
        table.add_row(name, f"{old:,.0f}", f"{new:,.0f}", f"{new / old:.2f}", ratios)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
