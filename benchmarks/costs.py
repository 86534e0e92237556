"""Where the time of a batch goes: its processes and its steps.

The first table is the processor time of all that takes part in a batch of 10,000 orders; the
second is the same tasks without Prefect, one after the other: time, and the part of it in which
Python worked and did not wait for the database.
"""

from rich.console import Console
from rich.table import Table

from benchmarks.ground import Ground, put_orders
from flows.batches.limits import CHUNK_SIZE

ORDERS = 10_000


def run(ground: Ground, console: Console) -> None:
    """Measure and print."""
    with ground.dispatcher():
        put_orders(ground.store_url, ORDERS)
        before = ground.cpu_seconds()
        measured = ground.measure("one_batch")
        used = {part: spent - before[part] for part, spent in ground.cpu_seconds().items()}
        used["the batch's run"] = measured["cpu_seconds"]
    table = Table("process", "µs of processor for each order", "share")
    total = sum(used.values())
    for part in sorted(used, key=lambda each: -used[each]):
        table.add_row(part, _microseconds(used[part]), f"{used[part] / total:.0%}")
    table.add_row("all", _microseconds(total), "")
    console.print(table)
    console.print(
        f"{_microseconds(measured['seconds'])} µs of time for each order, "
        f"{total / measured['seconds']:.2f} cores busy"
    )
    put_orders(ground.store_url, ORDERS)
    steps = ground.measure("bare_steps", CHUNK_SIZE)
    columns: list[dict[str, float]] = [steps["seconds"], steps["cpu_seconds"]]
    table = Table("step", "µs for each order", "of it Python")
    for step in sorted(columns[0], key=lambda each: -columns[0][each]):
        table.add_row(step, *(_microseconds(each[step]) for each in columns))
    table.add_row("all", *(_microseconds(sum(each.values())) for each in columns))
    console.print(table)


def _microseconds(seconds: float) -> str:
    return f"{seconds / ORDERS * 1e6:.0f}"
