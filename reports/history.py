"""Read one order's lines, saga records and answers."""

from collections.abc import Sequence

from sqlmodel import Session, col, select

from store.database import reading
from store.messages import OrderItem, money
from store.models import Attempt, Book, Decision, Order, OrderLine, SagaRecord
from store.settings import settings


def lines_of(session: Session, order_id: str) -> list[tuple[OrderLine, str]]:
    """Return an order's lines with titles, or ids of missing books."""
    found = session.exec(
        select(OrderLine, Book.title)
        .join(Book, col(Book.id) == col(OrderLine.book_id), isouter=True)
        .where(OrderLine.order_id == order_id)
        .order_by(OrderLine.book_id)
    )
    return [(line, title or line.book_id) for line, title in found]


def ordered_in_words(items: Sequence[OrderItem]) -> str:
    """Return an order's copies and total, before it is recorded.

    Returns:
        The first title with its copies, the number of other titles, and the total at today's
        prices, where each title has one.
    """
    ids = [item.book_id for item in items]
    with reading() as session:
        books = {book.id: book for book in session.exec(select(Book).where(col(Book.id).in_(ids)))}
    first, *others = items
    title = books[first.book_id].title if first.book_id in books else first.book_id
    more = f" and {len(others)} more titles" if others else ""
    priced = [
        (item.quantity, book.price_cents)
        for item in items
        if (book := books.get(item.book_id)) and book.price_cents is not None
    ]
    total = sum(quantity * cents for quantity, cents in priced)
    amount = f", {money(total, settings().currency)}" if len(priced) == len(items) else ""
    return f"{first.quantity} of “{title}”{more}{amount}"


def records_of(session: Session, order_id: str) -> Sequence[SagaRecord]:
    """Return the saga records of an order's attempts by time."""
    return session.exec(
        select(SagaRecord)
        .where(SagaRecord.order_id == order_id)
        .order_by(col(SagaRecord.attempt), col(SagaRecord.at))
    ).all()


def currencies_of(session: Session, order: Order) -> dict[int, str]:
    """Return the currency of each attempt of an order.

    An attempt is in the shop's currency of its time.
    """
    later = session.exec(select(Attempt).where(Attempt.order_id == order.id))
    earlier = {each.attempt - 1: each.previous_currency for each in later}
    return {n: earlier.get(n) or order.currency for n in range(1, order.attempt + 1)}


def answers_of(session: Session, order_id: str) -> Sequence[Decision]:
    """Return the answers to an order by time, with the late ones."""
    return session.exec(
        select(Decision).where(Decision.order_id == order_id).order_by(col(Decision.id))
    ).all()
