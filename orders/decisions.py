"""What the dispatcher sees of the orders that its messages are about."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from sqlalchemy import select as select_columns
from sqlmodel import Session, col, select

from store.archive_files import archived_among
from store.bulk import among, read_rows
from store.database import reading
from store.messages import ASSIGNED, NO_COURIER, CourierAnswer, OrderMessage
from store.models import ENDED, Batch, Decision, Order, OrderStatus, utc_now

DONE_WITH = (*ENDED, OrderStatus.COMPENSATION_FAILED)
"""Nothing that the dispatcher does helps an order in these."""


@dataclass(frozen=True, slots=True)
class Decided:
    """The state of a message's order, as its dispatcher needs it."""

    exists: bool
    is_open: bool = False
    is_done: bool = False
    run_id: str | None = None
    answer: CourierAnswer | None = None
    in_batch: bool = False
    """Its run carries other orders as well."""
    others_wait: bool = False
    """An order of its batch still waits for its decision."""
    run_listens: bool = False
    """Its batch finishes what is decided without being resumed."""
    others_hold: bool = False
    """An order of its batch is decided and holds its courier's capacity."""


class DecidedOrder(NamedTuple):
    """What the dispatcher sees of an order."""

    id: str
    attempt: int
    status: str
    run_id: str | None


def runs_of_open_orders(messages: Sequence[OrderMessage]) -> dict[OrderMessage, str | None]:
    """Return the messages whose orders wait for a decision, with their runs."""
    with reading() as session:
        found = read_rows(
            session,
            select(Order.id, Order.attempt, Order.run_id).where(
                among(col(Order.id), {message.order_id for message in messages}),
                col(Order.status) == OrderStatus.WAITING,
            ),
        )
    runs = {(order_id, attempt): run_id for order_id, attempt, run_id in found}
    return {
        message: runs[key]
        for message in messages
        if (key := (message.order_id, message.attempt)) in runs
    }


def decisions_of(messages: Sequence[OrderMessage]) -> dict[OrderMessage, Decided]:
    """Return where the order of each message stands.

    A message is done when its order has ended, failed compensations included, or has begun
    another attempt.
    """
    ids = {message.order_id for message in messages}
    # Thousands of decisions are a few couriers'.
    answer_of = cache(_answer)
    with reading() as session:
        orders = {
            row[0]: DecidedOrder._make(row)
            for row in read_rows(
                session,
                select(Order.id, Order.attempt, Order.status, Order.run_id).where(
                    among(col(Order.id), ids)
                ),
            )
        }
        answers = {
            (order_id, attempt): answer_of(*decision)
            for order_id, attempt, *decision in read_rows(
                session,
                select_columns(
                    col(Decision.order_id),
                    col(Decision.attempt),
                    col(Decision.courier_id),
                    col(Decision.reason),
                    col(Decision.decided_by),
                ).where(among(col(Decision.order_id), ids), col(Decision.accepted)),
            )
        }
        run_ids = {order.run_id for order in orders.values() if order.run_id}
        batches = _batches(session, run_ids)
        missing = ids - orders.keys()
        archived = archived_among(session, sorted(missing)) if missing else set()
        return {
            # Nothing is left to be done about an archived order.
            message: Decided(exists=True, is_done=True)
            if message.order_id in archived
            else _decided(
                message,
                orders.get(message.order_id),
                answers.get((message.order_id, message.attempt)),
                batches,
            )
            for message in messages
        }


def _answer(courier_id: str | None, reason: str, decided_by: str) -> CourierAnswer:
    return CourierAnswer(
        outcome=ASSIGNED if courier_id else NO_COURIER,
        courier=courier_id or "",
        reason=reason,
        answered_by=decided_by,
    )


class BatchOfOrder(NamedTuple):
    """What the dispatcher sees of a batch."""

    listens: bool
    waits: bool
    holds: bool


def _batches(session: Session, run_ids: Iterable[str]) -> dict[str, BatchOfOrder]:
    """Return those of the runs that carry a batch.

    To be called after the decisions: of two dispatchers, the one that decides last sees that none
    waits. A run that listens looks for decisions after it has stopped.
    """
    found = session.execute(
        select(col(Batch.run_id), col(Batch.listens_until)).where(col(Batch.run_id).in_(run_ids))
    )

    def has(run_id: str, status: OrderStatus) -> bool:
        of_status = (col(Order.run_id) == run_id, col(Order.status) == status)
        return session.scalars(select(Order.id).where(*of_status).limit(1)).first() is not None

    return {
        run_id: BatchOfOrder(
            listens=listens_until is not None and utc_now() < listens_until,
            waits=has(run_id, OrderStatus.WAITING),
            holds=has(run_id, OrderStatus.DISPATCHING),
        )
        for run_id, listens_until in found.all()
    }


def _decided(
    message: OrderMessage,
    order: DecidedOrder | None,
    answer: CourierAnswer | None,
    batches: Mapping[str, BatchOfOrder],
) -> Decided:
    if order is None:
        return Decided(exists=False)
    this_attempt = order.attempt == message.attempt
    batch = batches.get(order.run_id or "")
    return Decided(
        in_batch=batch is not None,
        run_listens=batch is not None and batch.listens,
        others_wait=batch is not None and batch.waits,
        others_hold=batch is not None and batch.holds,
        exists=True,
        is_open=this_attempt and order.status == OrderStatus.WAITING,
        is_done=not this_attempt or order.status in DONE_WITH,
        run_id=order.run_id,
        answer=answer,
    )
