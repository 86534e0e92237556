"""What the audit and the figures take for a large shop: time, and the memory of both sides.

    python -m benchmarks.audit [--orders 1000000]

Puts so many orders of every ending into a PostgreSQL of its own, one each 30 s back from now, with
all that belongs to them (lines, saga records, charges, decisions, notices) in bulk. Then it does
what `checkout audit` does, which may find nothing, and what `checkout metrics` does. The memory of
PostgreSQL has its shared buffers in it.
"""

import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from rich.console import Console
from sqlalchemy import text

from deployments.embedded import EmbeddedPostgres
from reports.audit import audit
from reports.figures import read_figures
from store.database import migrate, snapshot, transaction
from store.sessions import WHOLE_RUN
from store.settings import settings
from terminal.command_line import command
from terminal.numbers import WholeNumber

SAMPLE_SECONDS = 0.05
MEGABYTE = 1024 * 1024
BOOKS, CUSTOMERS = 10_000, 100_000
COLUMNS_OF_ORDER = """
  CREATE TEMP TABLE made AS SELECT n, 'order-' || LPAD(CAST(n AS TEXT), 9, '0') AS id,
    'order-' || LPAD(CAST(n AS TEXT), 9, '0') || ':' || 1 AS charge,
    'customer-' || n % {customers} AS user_id, 'book-' || n % {books} AS book_id,
    1 + n % 3 AS copies, (1 + n % 3) * 2000 AS total, n % 10 = 0 AS redeem,
    CASE WHEN n % 10 = 0 THEN 5 ELSE 0 END AS points,
    CASE WHEN n % 100 < 85 THEN 'dispatched' WHEN n % 100 < 95 THEN 'compensated'
      WHEN n % 100 < 98 THEN 'rejected' WHEN n <= {last_waiting} THEN 'waiting'
      ELSE 'dispatched' END AS status,
    'city-vans' AS courier,
    CASE WHEN n % 100 >= 98 AND n <= {last_waiting} THEN NOW()
      ELSE NOW() - n * INTERVAL '30 seconds' END AS at
  FROM GENERATE_SERIES(1, {orders}) n
"""
ROWS = (
    """INSERT INTO books (id, title, price_cents, quantity, initial_quantity)
    SELECT 'book-' || n, 'Book ' || n, 2000, 1000000, 1000000
    FROM GENERATE_SERIES(0, {books} - 1) n""",
    """INSERT INTO customers (id, name, points, initial_points, payment_method)
    SELECT 'customer-' || n, 'Customer ' || n, 1000000, 1000000, 'pm_card_visa'
    FROM GENERATE_SERIES(0, {customers} - 1) n""",
    """INSERT INTO couriers (id, name, capacity_copies, assigned_copies)
    VALUES ('city-vans', 'City Vans', 1000, 0)""",
    """INSERT INTO orders (id, attempt, status, run_id, user_id, redeem, payment_method, currency,
      request, copies, total_cents, points_redeemed, due_cents, courier_id, wait_until, error,
      continuations, announced_attempt, reminded_attempt, created_at, updated_at)
    SELECT id, 1, status, 'run', user_id, redeem, 'pm_card_visa', 'USD', '{{}}', copies,
      CASE WHEN status <> 'rejected' THEN total END,
      CASE WHEN status <> 'rejected' THEN points ELSE 0 END,
      CASE WHEN status <> 'rejected' THEN total - 100 * points END,
      CASE WHEN status = 'dispatched' THEN courier END, at + INTERVAL '4 hours',
      CASE status WHEN 'compensated' THEN 'NoCourierAvailable' WHEN 'rejected'
        THEN 'BookOutOfStock' END, 0, 0, 0, at, at
    FROM made""",
    """INSERT INTO order_lines (order_id, book_id, quantity, unit_price_cents)
    SELECT id, book_id, copies, CASE WHEN status <> 'rejected' THEN 2000 END FROM made""",
    """INSERT INTO saga_log (order_id, attempt, step, state, result, at, undone_at, undo_result,
      undo_tries)
    SELECT id, 1, step,
      CASE WHEN status = 'compensated' AND step IN ('check_inventory', 'redeem_points',
        'bill_customer') THEN 'undone' ELSE 'done' END, result, at,
      CASE WHEN status = 'compensated' AND undo_result IS NOT NULL THEN at END,
      CASE WHEN status = 'compensated' THEN undo_result END, 0
    FROM made CROSS JOIN LATERAL (VALUES
      ('check_inventory', JSON_BUILD_OBJECT('copies', JSON_BUILD_OBJECT(book_id, copies)),
        JSON_BUILD_OBJECT('copies', JSON_BUILD_OBJECT(book_id, copies))),
      ('calculate_total', JSON_BUILD_OBJECT('total_cents', total), NULL),
      ('redeem_points', JSON_BUILD_OBJECT('points', points, 'user_id', user_id),
        JSON_BUILD_OBJECT('points', points)),
      ('bill_customer', JSON_BUILD_OBJECT('amount_cents', total - 100 * points, 'reference',
        charge), JSON_BUILD_OBJECT('amount_cents', total - 100 * points)),
      ('prepare_order', '{{}}', NULL),
      ('dispatch_order', JSON_BUILD_OBJECT('courier', courier), NULL)
    ) AS steps (step, result, undo_result)
    WHERE status <> 'rejected' AND (redeem OR step <> 'redeem_points')
      AND (status = 'dispatched' OR step <> 'dispatch_order')""",
    """INSERT INTO ledger (key, order_id, kind, status, amount_cents, currency, payment_method,
      tries, at)
    SELECT charge, id, 'capture', 'captured', total - 100 * points, 'USD', 'pm_card_visa', 1, at
    FROM made WHERE status <> 'rejected' UNION ALL
    SELECT charge || ':' || 'refund', id, 'refund', 'refunded', total - 100 * points, 'USD',
      'pm_card_visa', 1, at
    FROM made WHERE status = 'compensated'""",
    """INSERT INTO decisions (order_id, attempt, outcome, courier_id, reason, decided_by, accepted,
      decided_at)
    SELECT id, 1, CASE status WHEN 'dispatched' THEN 'courier assigned'
      ELSE 'no courier available' END, CASE status WHEN 'dispatched' THEN courier END, '',
      'dispatch_orders', TRUE, at
    FROM made WHERE status IN ('dispatched', 'compensated')""",
    """INSERT INTO notifications (key, order_id, subject, body, data, published_at)
    SELECT charge || ':' || 'dispatched', id, 'On its way', 'On its way', '{{}}', at
    FROM made WHERE status = 'dispatched'""",
    """UPDATE books SET quantity = quantity - held FROM (
      SELECT book_id, SUM(copies) AS held FROM made WHERE status IN ('dispatched', 'waiting')
      GROUP BY book_id) h WHERE h.book_id = books.id""",
    """UPDATE customers SET points = points - held FROM (
      SELECT user_id, SUM(points) AS held FROM made WHERE status IN ('dispatched', 'waiting')
      GROUP BY user_id) h WHERE h.user_id = customers.id""",
    # As autovacuum would do soon after.
    "ANALYZE",
)


def put_orders(orders: int, unfinished: int | None = None) -> None:
    """Put a shop with so many orders of every ending.

    Args:
        orders: How many.
        unfinished: How many of them wait; None is two in a hundred.
    """
    last_waiting = orders if unfinished is None else unfinished * 50
    sizes = {
        "orders": orders,
        "books": BOOKS,
        "customers": CUSTOMERS,
        "last_waiting": last_waiting,
    }
    with transaction(WHOLE_RUN) as session:
        for statement in (COLUMNS_OF_ORDER, *ROWS):
            session.execute(text(statement.format(**sizes)))


class Memory:
    """The most that this process, and the server's largest one, were seen to take, in bytes."""

    def __init__(self) -> None:
        self.own = self.server = 0
        self._me = psutil.Process()

    def look(self) -> None:
        """Look once."""
        self.own = max(self.own, self._me.memory_info().rss)
        for process in self._me.children(recursive=True):
            try:
                if process.name() == "postgres":
                    self.server = max(self.server, process.memory_info().rss)
            except psutil.NoSuchProcess:
                continue


@contextmanager
def watched() -> Iterator[Memory]:
    """Watch the memory while something runs."""
    memory, over = Memory(), threading.Event()

    def watch() -> None:
        while not over.wait(SAMPLE_SECONDS):
            memory.look()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield memory
    finally:
        over.set()
        watcher.join()


@command("python -m benchmarks.audit", __doc__)
def main(*, orders: WholeNumber = 1_000_000) -> None:
    """Measure the audit of a shop with so many orders."""
    console = Console(soft_wrap=True)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        EmbeddedPostgres(Path(folder) / "data", durable=False) as server,
    ):
        server.create_database("store")
        os.environ["STORE_DATABASE_URL"] = server.sqlalchemy_url("store")
        settings.cache_clear()
        migrate(settings().database_url)
        began = time.perf_counter()
        put_orders(orders)
        console.print(f"{orders} orders put in {time.perf_counter() - began:.0f} s")
        began = time.perf_counter()
        with watched() as memory, snapshot() as session:
            findings = sum(1 for _ in audit(session))
        seconds = time.perf_counter() - began
        began = time.perf_counter()
        read_figures()
        milliseconds = (time.perf_counter() - began) * 1000
    console.print(
        f"audited in {seconds:.0f} s: {findings} findings; at most {memory.own / MEGABYTE:.0f} MB "
        f"here, {memory.server / MEGABYTE:.0f} MB in PostgreSQL"
    )
    console.print(f"figures read in {milliseconds:.0f} ms")


if __name__ == "__main__":
    sys.exit(main())
