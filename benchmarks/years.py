"""What a shop's work costs after a few ended orders and after many.

    python -m benchmarks.years [--few 5000] [--many 1000000] [--rounds 7]

Puts so many ended orders, one each 30 s back from now, into two databases of one PostgreSQL, and
does the same work in both in turns: 200 orders through their steps, the dispatcher's share of
them, what recovery looks at, `checkout list`, the figures of `checkout metrics`, and the audit of
what has changed. The last column is the ratio of the medians.
"""

import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from benchmarks.audit import put_orders
from deployments.embedded import EmbeddedPostgres
from flows.batches.chunk import STEPS
from orders.batches import begin_batch
from orders.decisions import decisions_of
from orders.intake import claim_orders, submit_orders
from orders.lookup import find_orders
from orders.unfinished import unfinished_orders
from reports.audit import audit
from reports.checkpoint import move_checkpoint, read_checkpoint
from reports.figures import read_figures
from store.database import migrate, snapshot, transaction
from store.messages import CheckoutOrder, OrderMessage
from store.models import OrderStatus, utc_now
from store.partners import order_queue
from store.settings import settings
from tasks.couriers import find_couriers
from tasks.dispatch import dispatch_order
from terminal.command_line import command
from terminal.numbers import WholeNumber

ORDERS_A_ROUND = 200
UNFINISHED = 100
"""Orders that wait for a courier, as many in both shops."""

Seconds = defaultdict[str, list[float]]


def use(url: str) -> None:
    """Make this process's store the database at ``url``."""
    os.environ["STORE_DATABASE_URL"] = url
    settings.cache_clear()


def one_round(number: int, seconds: Seconds) -> None:
    """Do a shop's work once and add what each part took."""

    @contextmanager
    def timed(part: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        seconds[part].append(time.perf_counter() - began)

    run_id = f"run-{number}"
    new = [
        CheckoutOrder(
            user_id=f"customer-{n}", book_id=f"book-{n}", quantity=1, order_id=f"new-{number}-{n}"
        )
        for n in range(ORDERS_A_ROUND)
    ]
    begin_batch(run_id, None)
    with timed("submit and claim"):
        submit_orders(new)
        claimed = claim_orders(run_id, ORDERS_A_ROUND)
    with timed("steps to the wait"):
        for step in STEPS:
            step.fn(claimed)
    with timed("dispatcher"):
        queue = order_queue()
        while received := queue.receive(ORDERS_A_ROUND, 0):
            messages = [OrderMessage.model_validate_json(message.body) for message in received]
            decisions_of(messages)
            find_couriers.fn(messages)
            queue.delete(received)
    with timed("dispatch_order"):
        dispatch_order.fn(claimed)
    with timed("what recovery looks at"):
        unfinished_orders("", 500)
    with timed("list"):
        find_orders(limit=20)
    with timed("list --status waiting"):
        find_orders(status=OrderStatus.WAITING, limit=20)
    with timed("list --status rejected"):
        find_orders(status=OrderStatus.REJECTED, limit=20)
    with timed("list --customer"):
        find_orders(user_id="customer-7", limit=20)
    with timed("list --book"):
        find_orders(book_id="book-7", limit=20)
    with timed("metrics"):
        read_figures()
    with timed("audit of what has changed"), snapshot() as session:
        found = [str(finding) for finding in audit(session, read_checkpoint(session))]
    if found:
        raise RuntimeError(f"the audit found {len(found)}, the first: {found[0]}")


@contextmanager
def shops(sizes: list[int]) -> Iterator[dict[int, str]]:
    """Start a PostgreSQL with a shop of each size, and yield their URLs."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        EmbeddedPostgres(Path(folder) / "data", durable=False) as server,
    ):
        urls = {}
        for size in sizes:
            server.create_database(f"store_{size}")
            urls[size] = server.sqlalchemy_url(f"store_{size}")
            use(urls[size])
            migrate(urls[size])
            put_orders(size, unfinished=UNFINISHED)
            move_checkpoint(None, utc_now())
            with transaction() as session:
                session.execute(text("UPDATE couriers SET capacity_copies = 1000000000"))
        yield urls


@command("python -m benchmarks.years", __doc__)
def main(
    *, few: WholeNumber = 5_000, many: WholeNumber = 1_000_000, rounds: WholeNumber = 7
) -> None:
    """Measure the work of two shops, with few and with many ended orders."""
    measured: dict[int, Seconds] = {few: defaultdict(list), many: defaultdict(list)}
    with shops([few, many]) as urls:
        for number in range(rounds + 1):
            for size, url in urls.items():
                use(url)
                # The first round opens connections and reads files from the disk.
                one_round(number, measured[size] if number else defaultdict(list))
    table = Table("ms", f"{few:,} ended", f"{many:,} ended", "ratio")
    for part in measured[few]:
        small, large = (statistics.median(measured[size][part]) * 1000 for size in (few, many))
        table.add_row(part, f"{small:.1f}", f"{large:.1f}", f"{large / small:.2f}")
    Console(soft_wrap=True).print(table)


if __name__ == "__main__":
    sys.exit(main())
