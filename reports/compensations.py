"""The compensation queue, the open undos of orders.

What an order would give back is read from the saga log alone, so it can be shown before anything
is done.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlmodel import Session, col, exists, select

from orders.lookup import read_order
from store.database import reading
from store.models import HOLDING, UNDOING, Book, Order, OrderStatus, SagaRecord, StepState
from tasks.steps import UNDOS
from tasks.undo import Taken

RETRY_UNDO_FIRST = timedelta(minutes=1)
RETRY_UNDO_LAST = timedelta(hours=1)
"""A failed undo is tried again after a time that doubles between these."""
NOTHING = "nothing"
DOUBLED_AT_MOST = 10
"""Times; far past the longest time, and small enough for a date."""


def next_try_at(undo_tries: int, failed_at: datetime) -> datetime:
    """Return when recovery tries a failed undo again."""
    doubled: int = 2 ** min(max(undo_tries, 1) - 1, DOUBLED_AT_MOST)
    return failed_at + min(RETRY_UNDO_FIRST * doubled, RETRY_UNDO_LAST)


@dataclass(frozen=True, slots=True)
class Copies:
    """Copies of one title."""

    book_id: str
    title: str
    quantity: int


@dataclass(frozen=True, slots=True)
class OpenUndo:
    """A step that is, or would be, undone, and its stake.

    ``at_stake`` says it in words; amount, copies and points are those of the steps that take such.
    ``in_doubt`` says that the step's outcome is unknown.
    """

    order_id: str
    attempt: int
    step: str
    currency: str
    at_stake: str
    amount_cents: int = 0
    in_doubt: bool = False
    copies: tuple[Copies, ...] = ()
    points: int = 0
    tries: int = 0
    error: str | None = None
    next_try_at: datetime | None = None


def open_undos(order_id: str) -> list[OpenUndo]:
    """Return the undos that a cancellation of the order would run.

    It reads only.

    The undos are in their order. One of nothing, such as of no points, is left out unless it has
    failed.

    Raises:
        OrderNotFound: no order has the id.
    """
    order = read_order(order_id)
    with reading() as session:
        records = _held(session, [order])
        titles = _titles(session, records)
    found = [_open_undo(order, record, titles) for record in records]
    return [undo for undo in found if undo.at_stake != NOTHING or undo.error]


def failed_undos(limit: int) -> list[OpenUndo]:
    """Return the open undos that have failed, the longest waiting first.

    Args:
        limit: Of how many orders at most.
    """
    with reading() as session:
        orders = session.exec(
            select(Order)
            .where(
                col(Order.status).in_(UNDOING),
                exists().where(
                    col(SagaRecord.order_id) == col(Order.id),
                    col(SagaRecord.attempt) == col(Order.attempt),
                    col(SagaRecord.state).in_(HOLDING),
                    col(SagaRecord.undo_error).is_not(None),
                ),
            )
            .order_by(col(Order.updated_at), Order.id)
            .limit(limit)
        ).all()
        records = _held(session, orders)
        titles = _titles(session, records)
        of_order: dict[str, list[SagaRecord]] = {order.id: [] for order in orders}
        for record in records:
            if record.undo_error is not None:
                of_order[record.order_id].append(record)
        return [
            _open_undo(order, record, titles, _next_try(order, of_order[order.id]))
            for order in orders
            for record in of_order[order.id]
        ]


def _held(session: Session, orders: Sequence[Order]) -> list[SagaRecord]:
    """Return the records of steps still held, in the order of undoing.

    They are those of the orders' present attempts.
    """
    attempts = {order.id: order.attempt for order in orders}
    found = session.exec(
        select(SagaRecord).where(
            col(SagaRecord.order_id).in_(attempts),
            col(SagaRecord.step).in_(UNDOS),
            col(SagaRecord.state).in_(HOLDING),
        )
    )
    return sorted(
        (record for record in found if record.attempt == attempts[record.order_id]),
        key=lambda record: UNDOS[record.step].place,
    )


def _next_try(order: Order, failed: Sequence[SagaRecord]) -> datetime | None:
    """Return when recovery retries the order's undos.

    None is returned while they are being tried.
    """
    if order.status != OrderStatus.COMPENSATION_FAILED:
        return None
    return next_try_at(max(record.undo_tries for record in failed), order.updated_at)


def _titles(session: Session, records: Sequence[SagaRecord]) -> dict[str, str]:
    ids = {book_id for record in records for book_id in record.result.get("copies", {})}
    return {book.id: book.title for book in session.exec(select(Book).where(col(Book.id).in_(ids)))}


def _open_undo(
    order: Order, record: SagaRecord, titles: Mapping[str, str], next_try: datetime | None = None
) -> OpenUndo:
    taken = record.result
    in_doubt = record.state == StepState.INTENDED
    words = UNDOS[record.step].in_words(Taken(taken, order.currency, in_doubt, titles))
    return OpenUndo(
        order_id=order.id,
        attempt=record.attempt,
        step=record.step,
        currency=order.currency,
        at_stake=words or NOTHING,
        amount_cents=taken.get("amount_cents", 0),
        in_doubt=in_doubt,
        copies=tuple(
            Copies(id_, titles.get(id_, id_), quantity)
            for id_, quantity in taken.get("copies", {}).items()
        ),
        points=taken.get("points", 0),
        tries=record.undo_tries,
        error=record.undo_error,
        next_try_at=next_try,
    )
