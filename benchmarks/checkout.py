"""A single checkout against an empty Prefect flow with as many empty tasks.

What the ratio leaves over 1 is what the store itself costs: its transactions, its events, the
order's timeline.
"""

from statistics import median_low

from rich.console import Console
from rich.table import Table

from benchmarks.ground import Ground, put_orders

TIMES = 40
GOAL = 1.2


def run(ground: Ground, console: Console) -> None:
    """Measure and print."""
    put_orders(ground.store_url, 0)
    measured = ground.measure("one_checkout", TIMES)
    checkout, empty = median_low(measured["checkouts"]), median_low(measured["empty"])
    table = Table("flow", "ms", f"ratio (goal {GOAL})")
    table.add_row("six empty tasks", f"{empty * 1e3:.0f}", "")
    table.add_row("store_checkout", f"{checkout * 1e3:.0f}", f"{checkout / empty:.2f}")
    console.print(table)
