"""The compensation queue: what orders have still to give back, and what a person settled by hand.

What an order would give back is read from the saga log alone, so it can be shown before anything
is done. Settling records an undo that failed as done, with who made it good and why, and corrects
the books to agree with it (docs/adr/0010-settled-by-hand.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlmodel import Session, col, exists, select

from store.database import reading
from store.errors import NothingToUndo
from store.messages import money
from store.models import GIVING_BACK, HOLDING, Book, Order, OrderStatus, SagaRecord, StepState
from store.saga import COMPENSABLE, StepRecord, backward
from tasks.inventory import settle_copies
from tasks.orders import read_order
from tasks.points import settle_points

RETRY_UNDO_FIRST = timedelta(minutes=1)
RETRY_UNDO_LAST = timedelta(hours=1)
"""A failed undo is tried again after a time that doubles between these."""
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
    """A step of an order that is, or would be, to be undone, and what is at stake.

    The amount counts for ``bill_customer``, the copies for ``check_inventory`` and the points for
    ``redeem_points``. ``in_doubt`` says that nobody knows whether the amount was captured.
    """

    order_id: str
    attempt: int
    step: str
    currency: str
    amount_cents: int = 0
    in_doubt: bool = False
    copies: tuple[Copies, ...] = ()
    points: int = 0
    tries: int = 0
    error: str | None = None
    next_try_at: datetime | None = None

    @property
    def at_stake(self) -> str:
        """Return what is at stake in words."""
        match self.step:
            case "bill_customer":
                amount = money(self.amount_cents, self.currency)
                return f"{amount}, if it was captured" if self.in_doubt else amount
            case "check_inventory":
                return ", ".join(f"{each.quantity} of “{each.title}”" for each in self.copies)
            case _:
                return f"{self.points} points"


def open_undos(order_id: str) -> list[OpenUndo]:
    """Return what the order holds and would give back if it were cancelled now; reads only.

    The undos are in their order. One of no points at all is left out, unless it has failed.

    Raises:
        OrderNotFound: no order has the id.
    """
    order = read_order(order_id)
    with reading() as session:
        records = _held(session, [order])
        titles = _titles(session, records)
    found = [_open_undo(order, record, titles) for record in records]
    return [undo for undo in found if undo.amount_cents or undo.copies or undo.points or undo.error]


def failed_undos(limit: int) -> list[OpenUndo]:
    """Return the undos that have failed and are still to be done, the longest waiting first.

    Args:
        limit: Of how many orders at most.
    """
    with reading() as session:
        orders = session.exec(
            select(Order)
            .where(
                col(Order.status).in_(GIVING_BACK),
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
    """Return the records of what the orders' present attempts hold, in the order of undoing."""
    attempts = {order.id: order.attempt for order in orders}
    found = session.exec(
        select(SagaRecord).where(
            col(SagaRecord.order_id).in_(attempts),
            col(SagaRecord.step).in_(COMPENSABLE),
            col(SagaRecord.state).in_(HOLDING),
        )
    )
    return sorted(
        (record for record in found if record.attempt == attempts[record.order_id]),
        key=lambda record: COMPENSABLE.index(record.step),
    )


def _next_try(order: Order, failed: Sequence[SagaRecord]) -> datetime | None:
    """Return when recovery tries the order's undos again; none while they are being tried."""
    if order.status != OrderStatus.COMPENSATION_FAILED:
        return None
    return next_try_at(max(record.undo_tries for record in failed), order.updated_at)


def _titles(session: Session, records: Sequence[SagaRecord]) -> dict[str, str]:
    ids = {book_id for record in records for book_id in record.result.get("copies", {})}
    return {book.id: book.title for book in session.exec(select(Book).where(col(Book.id).in_(ids)))}


def _open_undo(
    order: Order,
    record: SagaRecord,
    titles: Mapping[str, str],
    next_try: datetime | None = None,
) -> OpenUndo:
    taken = record.result
    return OpenUndo(
        order_id=order.id,
        attempt=record.attempt,
        step=record.step,
        currency=order.currency,
        amount_cents=taken.get("amount_cents", 0),
        in_doubt=record.step == "bill_customer" and record.state == StepState.INTENDED,
        copies=tuple(
            Copies(id_, titles.get(id_, id_), quantity)
            for id_, quantity in taken.get("copies", {}).items()
        ),
        points=taken.get("points", 0),
        tries=record.undo_tries,
        error=record.undo_error,
        next_try_at=next_try,
    )


def settle(order_id: str, step: str, *, by: str, reason: str, put_back: bool = False) -> None:
    """Record a failed undo as done by a person; the gateway is not asked again.

    Args:
        order_id: The order.
        step: The step whose undo failed.
        by: Who has seen to it.
        reason: What was done, or why nothing can be.
        put_back: Whether the copies or points are the shop's or the customer's again, which is
            then booked; otherwise they are written off. Money was given back in either case.

    Raises:
        OrderNotFound: no order has the id.
        NothingToUndo: the undo is done, was never needed, or has not failed; nothing changed.
    """
    read_order(order_id)
    with backward(step, [order_id]) as undo:
        failed = [record for _, record in undo.todo if record.undo_error is not None]
        if failed:
            (record,) = failed
            undo.undone(
                record,
                {
                    **_settle(undo.session, record, put_back=put_back),
                    "settled_by": by,
                    "reason": reason,
                    "failed_with": record.undo_error,
                },
            )
            return
    raise NothingToUndo(why_not_open(order_id, step))


def _settle(session: Session, record: StepRecord, *, put_back: bool) -> dict[str, Any]:
    """Correct the books; return what the record says was given back and what was written off."""
    match record.step:
        case "bill_customer":
            return {"amount_cents": record.result["amount_cents"]}
        case "check_inventory":
            copies = record.result["copies"]
            settle_copies(session, copies, put_back=put_back)
            return {"copies": copies} if put_back else {"copies": {}, "written_off": copies}
        case _:
            points = record.result["points"]
            settle_points(session, record.result["user_id"], points, put_back=put_back)
            return {"points": points} if put_back else {"points": 0, "written_off": points}


def why_not_open(order_id: str, step: str) -> str:
    """Say why an undo is not among those that have failed."""
    with reading() as session:
        order = session.get_one(Order, order_id)
        record = session.get(SagaRecord, (order_id, order.attempt, step))
        if record is None or record.state == StepState.VOID:
            return f"order {order_id}, which is {order.status}, has not taken anything in {step}"
        if record.undone_at is not None:
            by = (record.undo_result or {}).get("settled_by")
            how = f"settled by {by}" if by else "given back by itself"
            return (
                f"{step} of order {order_id} was {how} at {record.undone_at:%Y-%m-%d %H:%M:%S} "
                "UTC; it is not to be given back once more"
            )
        if order.status not in GIVING_BACK:
            return (
                f"order {order_id} is {order.status}, so nothing of it is to be given back; "
                f"`checkout cancel {order_id}` ends it, before a courier has accepted"
            )
    return (
        f"giving back {step} of order {order_id} has not failed; it is under way. "
        "`checkout compensations` shows what has failed"
    )
