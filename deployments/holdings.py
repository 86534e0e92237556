"""Snapshots of what store, customers and payment gateway hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import func
from sqlmodel import Session, col, select

from store.database import engine
from store.models import Book, Customer, LedgerEntry


@dataclass(frozen=True)
class Holdings:
    """What store, customers and payment gateway hold at one moment.

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
    """Open a session on the store's database and disconnect at its end."""
    opened = engine(url)
    try:
        with Session(opened) as session:
            yield session
    finally:
        opened.dispose()


def read_holdings(session: Session) -> Holdings:
    """Return the present holdings."""

    def total_cents(status: str) -> int:
        amounts = select(func.coalesce(func.sum(LedgerEntry.amount_cents), 0))
        return int(session.exec(amounts.where(col(LedgerEntry.status) == status)).one())

    return Holdings(
        stock={book.title: book.quantity for book in session.exec(select(Book))},
        points={customer.name: customer.points for customer in session.exec(select(Customer))},
        captured_cents=total_cents("captured"),
        refunded_cents=total_cents("refunded"),
    )
