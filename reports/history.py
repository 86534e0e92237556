"""Read one order's lines, saga records and answers."""

from collections.abc import Sequence

from sqlmodel import Session, col, select

from store.models import Book, Decision, OrderLine, SagaRecord


def lines_of(session: Session, order_id: str) -> list[tuple[OrderLine, str]]:
    """Return an order's lines with titles, or ids of missing books."""
    found = session.exec(
        select(OrderLine, Book.title)
        .join(Book, col(Book.id) == col(OrderLine.book_id), isouter=True)
        .where(OrderLine.order_id == order_id)
        .order_by(OrderLine.book_id)
    )
    return [(line, title or line.book_id) for line, title in found]


def records_of(session: Session, order_id: str) -> Sequence[SagaRecord]:
    """Return the saga records of an order's attempts by time."""
    return session.exec(
        select(SagaRecord)
        .where(SagaRecord.order_id == order_id)
        .order_by(col(SagaRecord.attempt), col(SagaRecord.at))
    ).all()


def answers_of(session: Session, order_id: str) -> Sequence[Decision]:
    """Return the answers to an order by time, with the late ones."""
    return session.exec(
        select(Decision).where(Decision.order_id == order_id).order_by(col(Decision.id))
    ).all()
