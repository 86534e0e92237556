"""A batch of 10,000 orders against its floor and against what else one could have written.

Three rounds, all contenders in each, on one PostgreSQL; the medians, and the ratios of the medians.
`batch` is `batch_checkout` with its defaults and a dispatcher in a process of its own: saga log,
ledger, queue, decisions, notifications, report. See `floor`, `subflows` and `dbos_orders` for the
others; those two carry out fewer orders, since it is the rate that counts.
"""

from collections import defaultdict
from statistics import median_low

from rich.console import Console
from rich.table import Table

from benchmarks.ground import Ground, await_empty_queue, put_orders, rows_written
from store.models import OrderStatus

ROUNDS = 3
ORDERS = 10_000
ORDERS_AS_SUBFLOWS = 60
ORDERS_OF_DBOS = 600
GOALS = {"floor": 0.9, "subflows": 500.0, "dbos_orders": 100.0}


def run(ground: Ground, console: Console) -> None:
    """Measure, and print orders a second and the batch's ratio to each of the others."""
    rates: dict[str, list[float]] = defaultdict(list)
    for _ in range(ROUNDS):
        put_orders(ground.store_url, ORDERS)
        measured = ground.measure("floor")
        rates["floor"].append(ORDERS / measured["seconds"])
        expected = rows_written()
        with ground.dispatcher():
            put_orders(ground.store_url, ORDERS)
            measured = ground.measure("one_batch")
            assert measured["by_status"] == {OrderStatus.DISPATCHED: ORDERS}
            await_empty_queue()
            assert rows_written() == expected
            rates["batch"].append(ORDERS / measured["seconds"])
        put_orders(ground.store_url, ORDERS_AS_SUBFLOWS)
        measured = ground.measure("subflows")
        rates["subflows"].append(ORDERS_AS_SUBFLOWS / measured["seconds"])
        put_orders(ground.store_url, ORDERS_OF_DBOS)
        measured = ground.measure("dbos_orders")
        rates["dbos_orders"].append(ORDERS_OF_DBOS / measured["seconds"])
    table = Table("", "orders/s", "each round", "batch is … times as fast", "goal")
    batch = median_low(rates["batch"])
    for name in ("batch", *GOALS):
        rate = median_low(rates[name])
        table.add_row(
            name,
            f"{rate:,.1f}",
            " ".join(f"{each:,.1f}" for each in rates[name]),
            f"{batch / rate:.2f}",
            f"{GOALS[name]:.2f}" if name in GOALS else "",
        )
    console.print(table)
