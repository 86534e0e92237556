"""What an order of a batch costs, and what memory the batch takes, from 1,000 orders to 100,000.

`in the steps` is the time that the tasks took, all chunks together, for each order: what grows, if
anything does, is there. The whole run's time has the start and the end of a flow run in it, which
few orders share.
"""

from statistics import median_low

from rich.console import Console
from rich.table import Table

from benchmarks.ground import Ground, bytes_on_disk, put_orders

SIZES = {1_000: 3, 10_000: 3, 100_000: 1}
"""How many orders, measured how often."""


def run(ground: Ground, console: Console) -> None:
    """Measure each size, and print a row for each."""
    table = Table(
        *("orders", "orders/s", "µs each", "in the steps, µs each", "ratio", "peak MB", "+MB"),
        "on disk, KB each",
    )
    first = 0.0
    with ground.dispatcher():
        for size, times in SIZES.items():
            measured = []
            for _ in range(times):
                put_orders(ground.store_url, 0)
                empty = bytes_on_disk()
                put_orders(ground.store_url, size)
                measured.append(ground.measure("one_batch"))
            steps = median_low([sum(each["step_seconds"].values()) for each in measured]) / size
            first = first or steps
            seconds = median_low([each["seconds"] for each in measured])
            peak = max(each["peak_mb"] for each in measured)
            added = max(each["peak_mb"] - each["before_mb"] for each in measured)
            table.add_row(
                f"{size:,}",
                f"{size / seconds:,.0f}",
                f"{seconds / size * 1e6:.0f}",
                f"{steps * 1e6:.0f}",
                f"{steps / first:.2f}",
                f"{peak:.0f}",
                f"{added:.0f}",
                f"{(bytes_on_disk() - empty) / size / 1024:.1f}",
            )
    console.print(table)
