"""The floor: what a batch writes, written by plain psycopg bulk statements and nothing else.

The same rows of the same tables as a batch of which every order is dispatched, in chunks of 500,
one transaction for each step of a chunk. It knows beforehand what each order asks for, so it reads
nothing, checks nothing, takes no lock of its own, and could not go on after a crash.
"""

import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
from sqlalchemy.engine import make_url

from benchmarks.ground import RUN_ID, answer
from store.settings import settings

CHUNK = 500


@dataclass
class Known:
    """What the floor knows of an order."""

    id: str
    user_id: str
    lines: list[tuple[str, int, int]]
    """Book, copies, price of each."""
    copies: int
    total_cents: int
    points: int | None
    courier: str
    message_id: str = field(default_factory=lambda: str(uuid4()))

    @property
    def due_cents(self) -> int:
        """What is billed."""
        return self.total_cents - 100 * (self.points or 0)


def main() -> None:
    """Measure; the shop is prepared."""
    url = make_url(settings().database_url).set(drivername="postgresql")
    with psycopg.connect(url.render_as_string(hide_password=False)) as connection:
        orders = _known(connection)
        connection.commit()
        started = time.perf_counter()
        for start in range(0, len(orders), CHUNK):
            chunk = orders[start : start + CHUNK]
            for step in STEPS:
                with connection.transaction(), connection.cursor() as cursor:
                    step(cursor, chunk)
        answer(orders=len(orders), seconds=time.perf_counter() - started)


def _known(connection: psycopg.Connection[Any]) -> list[Known]:
    lines: dict[str, list[tuple[str, int, int]]] = {}
    for order_id, book, copies, cents in connection.execute(
        "SELECT order_id, book_id, order_lines.quantity, price_cents "
        "FROM order_lines JOIN books ON books.id = book_id"
    ):
        lines.setdefault(order_id, []).append((book, copies, cents))
    points: dict[str, int] = dict(connection.execute("SELECT id, points FROM customers").fetchall())
    couriers = [row[0] for row in connection.execute("SELECT id FROM couriers ORDER BY id")]
    orders = []
    for number, (order_id, user_id, redeem, copies) in enumerate(
        connection.execute("SELECT id, user_id, redeem, copies FROM orders ORDER BY id")
    ):
        total = sum(count * cents for _, count, cents in lines[order_id])
        spent = min(points[user_id], total // 100) if redeem else None
        points[user_id] -= spent or 0
        courier = couriers[number % len(couriers)]
        orders.append(Known(order_id, user_id, lines[order_id], copies, total, spent, courier))
    return orders


Cursor = psycopg.Cursor[Any]


def claim(cursor: Cursor, chunk: Sequence[Known]) -> None:
    """Make the orders the run's own."""
    cursor.execute(
        "UPDATE orders SET status = 'started', run_id = %s, updated_at = %s WHERE id = ANY(%s)",
        (RUN_ID, _now(), [order.id for order in chunk]),
    )


def check_inventory(cursor: Cursor, chunk: Sequence[Known]) -> None:
    """Take the copies."""
    sold: Counter[str] = Counter()
    for order in chunk:
        for book, copies, _ in order.lines:
            sold[book] += copies
    cursor.executemany(
        "UPDATE books SET quantity = quantity - %s WHERE id = %s",
        [(copies, book) for book, copies in sorted(sold.items())],
    )
    _log(
        cursor,
        "check_inventory",
        ((o, {"copies": {book: copies for book, copies, _ in o.lines}}) for o in chunk),
    )


def calculate_total(cursor: Cursor, chunk: Sequence[Known]) -> None:
    """Write prices and totals."""
    cursor.executemany(
        "UPDATE order_lines SET unit_price_cents = %s WHERE order_id = %s AND book_id = %s",
        [(cents, order.id, book) for order in chunk for book, _, cents in order.lines],
    )
    cursor.executemany(
        "UPDATE orders SET total_cents = %s, due_cents = %s, updated_at = %s WHERE id = %s",
        [(order.total_cents, order.total_cents, _now(), order.id) for order in chunk],
    )
    _log(cursor, "calculate_total", ((o, {"total_cents": o.total_cents}) for o in chunk))


def redeem_points(cursor: Cursor, chunk: Sequence[Known]) -> None:
    """Take the points."""
    redeeming = [order for order in chunk if order.points is not None]
    cursor.executemany(
        "UPDATE customers SET points = points - %s WHERE id = %s",
        [(order.points, order.user_id) for order in redeeming if order.points],
    )
    cursor.executemany(
        "UPDATE orders SET points_redeemed = %s, due_cents = %s, updated_at = %s WHERE id = %s",
        [(order.points, order.due_cents, _now(), order.id) for order in redeeming],
    )
    _log(
        cursor,
        "redeem_points",
        ((o, {"points": o.points, "user_id": o.user_id}) for o in redeeming),
    )


def bill_customer(cursor: Cursor, chunk: Sequence[Known]) -> None:
    """Write the charges."""
    billed = [order for order in chunk if order.due_cents]
    _copy(
        cursor,
        "ledger (key, order_id, kind, status, amount_cents, currency, payment_method, tries, at)",
        (
            (
                f"{o.id}:1",
                o.id,
                "capture",
                "captured",
                o.due_cents,
                "USD",
                "pm_card_visa",
                1,
                _now(),
            )
            for o in billed
        ),
    )
    _log(
        cursor,
        "bill_customer",
        ((o, {"amount_cents": o.due_cents, "reference": f"{o.id}:1"}) for o in billed),
    )


def prepare_order(cursor: Cursor, chunk: Sequence[Known]) -> None:
    """Write the messages."""
    cursor.execute(
        "UPDATE orders SET status = 'waiting', wait_until = %s, updated_at = %s WHERE id = ANY(%s)",
        (_now() + timedelta(hours=4), _now(), [order.id for order in chunk]),
    )
    _copy(
        cursor,
        "order_queue (id, body, visible_at, receive_count, sent_at)",
        (
            (
                o.message_id,
                json.dumps({"version": 1, "order_id": o.id, "attempt": 1, "copies": o.copies}),
                _now(),
                0,
                _now(),
            )
            for o in chunk
        ),
    )
    _log(cursor, "prepare_order", ((o, {"sent_at": _now().isoformat()}) for o in chunk))


def decide(cursor: Cursor, chunk: Sequence[Known]) -> None:
    """Write the decisions, delete the messages."""
    _copy(
        cursor,
        "decisions (order_id, attempt, outcome, courier_id, reason, decided_by, accepted, "
        "decided_at)",
        ((o.id, 1, "courier assigned", o.courier, "", "dispatcher", True, _now()) for o in chunk),
    )
    cursor.executemany(
        "UPDATE orders SET status = 'dispatching', courier_id = %s, updated_at = %s WHERE id = %s",
        [(order.courier, _now(), order.id) for order in chunk],
    )
    _assign(cursor, chunk, 1)
    cursor.execute(
        "DELETE FROM order_queue WHERE id = ANY(%s)", ([order.message_id for order in chunk],)
    )


def dispatch_order(cursor: Cursor, chunk: Sequence[Known]) -> None:
    """Write the notices, free the couriers."""
    _copy(
        cursor,
        "notifications (key, order_id, subject, body, data, published_at)",
        (
            (
                f"{o.id}:1:dispatched",
                o.id,
                f"Order {o.id} is on its way",
                f"Order {o.id} was handed over to courier {o.courier}.\n\n"
                + "\n".join(f"{copies} of “{book}”" for book, copies, _ in o.lines)
                + f"\n\nTotal: {o.total_cents}\nPaid with points: {o.points}\n"
                f"Charged: {o.due_cents}",
                json.dumps(
                    {
                        "event": "dispatched",
                        "orderId": o.id,
                        "attempt": 1,
                        "courier": o.courier,
                        "copies": o.copies,
                        "totalCents": o.total_cents,
                        "pointsRedeemed": o.points or 0,
                        "chargedCents": o.due_cents,
                        "currency": "USD",
                    }
                ),
                _now(),
            )
            for o in chunk
        ),
    )
    cursor.execute(
        "UPDATE orders SET status = 'dispatched', updated_at = %s WHERE id = ANY(%s)",
        (_now(), [order.id for order in chunk]),
    )
    _assign(cursor, chunk, -1)
    _log(cursor, "dispatch_order", ((o, {"courier": o.courier}) for o in chunk))


def _assign(cursor: Cursor, chunk: Sequence[Known], sign: int) -> None:
    copies: Counter[str] = Counter()
    for order in chunk:
        copies[order.courier] += sign * order.copies
    cursor.executemany(
        "UPDATE couriers SET assigned_copies = assigned_copies + %s WHERE id = %s",
        [(added, courier) for courier, added in sorted(copies.items())],
    )


def _log(cursor: Cursor, step: str, results: Iterable[tuple[Known, dict[str, Any]]]) -> None:
    _copy(
        cursor,
        "saga_log (order_id, attempt, step, state, result, at, undo_tries)",
        ((o.id, 1, step, "done", json.dumps(result), _now(), 0) for o, result in results),
    )


def _copy(cursor: Cursor, into: str, rows: Iterable[tuple[Any, ...]]) -> None:
    with cursor.copy(f"COPY {into} FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def _now() -> datetime:
    return datetime.now(UTC)


STEPS = (
    claim,
    check_inventory,
    calculate_total,
    redeem_points,
    bill_customer,
    prepare_order,
    decide,
    dispatch_order,
)

if __name__ == "__main__":
    main()
