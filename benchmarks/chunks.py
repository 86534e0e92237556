"""The size of the chunks and how many are under way at a time: which is fastest, on 10,000 orders.

The defaults of `batch_checkout` are the best pair found here.
"""

from statistics import median_low

from rich.console import Console
from rich.table import Table

from benchmarks.ground import Ground, put_orders

ORDERS = 10_000
ROUNDS = 3
PAIRS = [
    *((size, 2) for size in (250, 500, 1_000, 2_500, 5_000)),
    *((2_500, concurrency) for concurrency in (1, 4)),
]


def run(ground: Ground, console: Console) -> None:
    """Measure each pair, in rounds so that a slow minute of the machine meets all of them."""
    measured: dict[tuple[int, int], list[dict[str, float]]] = {pair: [] for pair in PAIRS}
    with ground.dispatcher():
        for _ in range(ROUNDS):
            for pair in PAIRS:
                put_orders(ground.store_url, ORDERS)
                measured[pair].append(ground.measure("one_batch", *pair))
    table = Table("chunk size", "at a time", "orders/s", "each round", "peak MB")
    for (size, concurrency), found in measured.items():
        rates = [ORDERS / each["seconds"] for each in found]
        table.add_row(
            f"{size:,}",
            str(concurrency),
            f"{median_low(rates):,.0f}",
            " ".join(f"{rate:,.0f}" for rate in rates),
            f"{max(each['peak_mb'] for each in found):.0f}",
        )
    console.print(table)
