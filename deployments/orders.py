"""Orders, saga log, stock, points and money as tables on the terminal; reads only.

    python -m deployments.orders [--limit N] [ORDER_ID …]

reads the database of STORE_DATABASE_URL.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from rich.console import Console
from rich.table import Table
from sqlalchemy import func
from sqlmodel import Session, col, select

from store.database import engine
from store.messages import money
from store.models import Book, Customer, LedgerEntry, Order, SagaRecord
from store.settings import Settings

# A terminal tells its width; into a file or a pipe the tables need some.
_WIDTH_WITHOUT_TERMINAL = 150


def console() -> Console:
    """The console of this package's commands."""
    found = Console()
    return found if found.is_terminal else Console(width=_WIDTH_WITHOUT_TERMINAL)


@dataclass(frozen=True)
class Holdings:
    """What the store, its customers and the payment ledger hold at one moment.

    `stock` counts copies by title and `points` points by customer.
    """

    stock: dict[str, int]
    points: dict[str, int]
    captured_cents: int
    refunded_cents: int

    @property
    def kept_cents(self) -> int:
        """What was captured and not given back."""
        return self.captured_cents - self.refunded_cents


@contextmanager
def open_store(url: str) -> Iterator[Session]:
    """A session for reading the store's database at this address; nothing stays connected."""
    opened = engine(url)
    try:
        with Session(opened) as session:
            yield session
    finally:
        opened.dispose()


def read_holdings(session: Session) -> Holdings:
    """The holdings now."""

    def total_cents(status: str) -> int:
        amounts = select(func.coalesce(func.sum(LedgerEntry.amount_cents), 0))
        return int(session.exec(amounts.where(col(LedgerEntry.status) == status)).one())

    return Holdings(
        stock={book.title: book.quantity for book in session.exec(select(Book))},
        points={customer.name: customer.points for customer in session.exec(select(Customer))},
        captured_cents=total_cents("captured"),
        refunded_cents=total_cents("refunded"),
    )


def read_orders(session: Session, order_ids: Sequence[str], limit: int) -> list[Order]:
    """The orders named, or the newest `limit` ones if none is named; oldest first."""
    query = select(Order).order_by(col(Order.created_at).desc())
    query = query.where(col(Order.id).in_(order_ids)) if order_ids else query.limit(limit)
    return list(session.exec(query))[::-1]


def orders_table(orders: Iterable[Order]) -> Table:
    """One row an order: where it stands and what it cost."""
    table = Table("order", "try", "status", "copies", title="Orders")
    for name in ("total", "points", "billed"):
        table.add_column(name, justify="right")
    table.add_column("why")
    for order in orders:
        table.add_row(
            order.id,
            str(order.attempt),
            order.status,
            str(order.copies),
            _money(order.total_cents, order.currency),
            str(order.points_redeemed),
            _money(order.due_cents, order.currency),
            f"{order.error}: {order.message}" if order.error else "",
        )
    return table


def saga_table(session: Session, order: Order, title: str) -> Table:
    """The saga log of one order: what was done, and what of it was undone."""
    table = Table("try", "step", "state", "result", "done at", "undone at", "given back")
    table.title = title
    records = session.exec(
        select(SagaRecord)
        .where(SagaRecord.order_id == order.id)
        .order_by(col(SagaRecord.attempt), col(SagaRecord.at))
    )
    for record in records:
        table.add_row(
            str(record.attempt),
            record.step,
            record.state,
            json.dumps(record.result),
            _clock(record.at),
            _clock(record.undone_at),
            "" if record.undo_result is None else json.dumps(record.undo_result),
        )
    if not table.row_count:
        table.add_row("", "nothing was taken", "", "", "", "", "")
    return table


def _money(cents: int | None, currency: str) -> str:
    return "" if cents is None else money(cents, currency)


def _clock(moment: datetime | None) -> str:
    return "" if moment is None else moment.astimezone().strftime("%H:%M:%S")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deployments.orders")
    parser.add_argument("order_ids", nargs="*", metavar="ORDER_ID")
    parser.add_argument("--limit", type=int, default=20, help="how many, if none is named")
    options = parser.parse_args(arguments)
    output = console()
    with open_store(Settings().database_url) as session:
        orders = read_orders(session, options.order_ids, options.limit)
        missing = sorted(set(options.order_ids) - {order.id for order in orders})
        output.print(orders_table(orders))
        for order in orders:
            output.print(saga_table(session, order, f"Saga log of {order.id}"))
    if missing:
        output.print(f"There is no order {', '.join(missing)}.", style="red")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
