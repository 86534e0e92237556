"""What an order of a batch costs, and what memory the batch takes, from 1,000 orders to 100,000.

`µs of a core` is the processor time of all that takes part (the run, the dispatcher, PostgreSQL,
Prefect's server), for each order: what grows, if anything does, is there. The shop has had a night
before, as on any day but its first, so PostgreSQL knows what its tables are like. Until it knows
that, which takes it a minute, it reads whole tables where it should look rows up.
"""

from statistics import median_low

from rich.console import Console
from rich.table import Table

from benchmarks.ground import Ground, bytes_on_disk, put_orders, submit

SIZES = {1_000: 3, 10_000: 3, 100_000: 1}
"""How many orders, measured how often."""
NIGHT_BEFORE = 1_000


def run(ground: Ground, console: Console) -> None:
    """Measure each size, and print a row for each."""
    table = Table(
        *("orders", "orders/s", "µs each", "µs of a core each", "of it PostgreSQL", "peak MB"),
        *("+MB", "on disk, KB each"),
    )
    with ground.dispatcher():
        for size, times in SIZES.items():
            measured = []
            for _ in range(times):
                put_orders(ground.store_url, NIGHT_BEFORE)
                ground.measure("one_batch")
                empty = bytes_on_disk()
                submit(NIGHT_BEFORE, size)
                before = ground.cpu_seconds()
                measured.append(ground.measure("one_batch"))
                for part, seconds in ground.cpu_seconds().items():
                    measured[-1][part] = seconds - before[part]
            costs = [each["cpu_seconds"] + sum(each[part] for part in before) for each in measured]
            seconds = median_low([each["seconds"] for each in measured])
            peak = max(each["peak_mb"] for each in measured)
            added = max(each["peak_mb"] - each["before_mb"] for each in measured)
            table.add_row(
                f"{size:,}",
                f"{size / seconds:,.0f}",
                f"{seconds / size * 1e6:.0f}",
                f"{median_low(costs) / size * 1e6:.0f}",
                f"{median_low([each['PostgreSQL'] for each in measured]) / size * 1e6:.0f}",
                f"{peak:.0f}",
                f"{added:.0f}",
                f"{(bytes_on_disk() - empty) / size / 1024:.1f}",
            )
    console.print(table)
