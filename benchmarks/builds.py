"""A batch of this code beside the floor and an earlier build, in turns in one run.

    python -m benchmarks.builds [--baseline FOLDER] [--rounds 5]

FOLDER is a checkout of the earlier build, such as `git worktree add FOLDER COMMIT` makes. It runs
in this environment and is measured by this code. `make bench` leaves this out: it needs a folder.
"""

import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.ground import Ground, await_empty_queue, ground, put_orders
from deployments.local import PROJECT_DIR
from store.models import OrderStatus
from terminal.command_line import command
from terminal.numbers import WholeNumber

SIZES = (1_000, 10_000)
TO_WARM_UP = 500
"""Orders that a dispatcher has decided before: one that listens all day has compiled its SQL."""
Figures = dict[str, float]


def measure(prepared: Ground, orders: int, code: Path) -> Figures:
    """Return what a batch of orders takes with the code of a folder."""
    with prepared.dispatcher(code):
        put_orders(prepared.store_url, TO_WARM_UP)
        prepared.measure("one_batch", code=code)
        await_empty_queue()
        put_orders(prepared.store_url, orders)
        before = prepared.cpu_seconds()
        batch = prepared.measure("one_batch", code=code)
        await_empty_queue()
        used = {part: spent - before[part] for part, spent in prepared.cpu_seconds().items()}
    assert batch["by_status"] == {OrderStatus.DISPATCHED: orders}
    used["the batch's run"] = batch["cpu_seconds"]
    return {
        "orders/s": orders / batch["seconds"],
        "µs of a core, all processes": sum(used.values()) / orders * 1e6,
        **{f"µs of a core, {part}": spent / orders * 1e6 for part, spent in used.items()},
        "peak MB": batch["peak_mb"],
    }


@command("python -m benchmarks.builds", __doc__)
def main(*, baseline: Path | None = None, rounds: WholeNumber = 5) -> None:
    """Measure the contenders in turns.

    Args:
        baseline: The folder of an earlier build.
        rounds: How often.
    """
    contenders = {"this": PROJECT_DIR, **({"baseline": baseline.resolve()} if baseline else {})}
    found: defaultdict[tuple[int, str], list[Figures]] = defaultdict(list)
    with ground() as prepared:
        for _ in range(rounds):
            for orders in SIZES:
                for name, code in contenders.items():
                    found[orders, name].append(measure(prepared, orders, code))
            put_orders(prepared.store_url, SIZES[-1])
            seconds = prepared.measure("floor")["seconds"]
            found[SIZES[-1], "floor"].append({"orders/s": SIZES[-1] / seconds})
    table = Table("", "orders", "median", "least", "most", "each round")
    for (orders, name), rounds_of in found.items():
        for figure in rounds_of[0]:
            values = [each[figure] for each in rounds_of]
            table.add_row(
                f"{name}: {figure}",
                f"{orders:,}",
                *(f"{value:,.0f}" for value in (median(values), min(values), max(values))),
                " ".join(f"{value:,.0f}" for value in values),
            )
    Console(width=140).print(table)


if __name__ == "__main__":
    sys.exit(main())
