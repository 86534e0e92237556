"""What the dispatcher sees of the orders that its messages are about."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from sqlalchemy import select as select_columns
from sqlmodel import Session, col, select

from store.archived_orders import archived_among
from store.bulk import among, read_rows
from store.database import reading
from store.messages import ASSIGNED, NO_COURIER, CourierAnswer, OrderMessage
from store.models import ENDED, Batch, Decision, Order, OrderStatus, utc_now

DONE_WITH = (*ENDED, OrderStatus.COMPENSATION_FAILED)
"""Nothing that the dispatcher does helps an order in these."""


class BatchState(NamedTuple):
    """The state of a batch, as its dispatcher needs it.

    A batch that ``listens`` finishes decided orders without being resumed. ``waits`` tells that an
    order of it still waits for its decision, ``holds`` that one is decided and holds its courier's
    capacity.
    """

    listens: bool
    waits: bool
    holds: bool


@dataclass(frozen=True, slots=True)
class OrderState:
    """The state of a message's order, as its dispatcher needs it.

    ``is_open`` tells that it waits for a decision, ``answer`` is the decision that it has,
    ``is_done`` that the message has nothing left to do. ``batch`` is there if its run is a batch's.
    """

    exists: bool
    is_open: bool = False
    is_done: bool = False
    run_id: str | None = None
    answer: CourierAnswer | None = None
    batch: BatchState | None = None


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


def decisions_of(messages: Sequence[OrderMessage]) -> dict[OrderMessage, OrderState]:
    """Return the state of each message's order.

    A message is done when its order has ended, failed compensations included, is archived, or has
    begun another attempt.
    """
    ids = {message.order_id for message in messages}
    is_its_decision = (
        (col(Decision.order_id) == col(Order.id))
        & (col(Decision.attempt) == col(Order.attempt))
        & col(Decision.accepted)
    )
    with_decisions = (
        select_columns(
            *(col(Order.id), col(Order.attempt), col(Order.status), col(Order.run_id)),
            *(col(Decision.courier_id), col(Decision.reason), col(Decision.decided_by)),
        )
        .join(Decision, is_its_decision, isouter=True)
        .where(among(col(Order.id), ids))
    )
    with reading() as session:
        orders = {order_id: order for order_id, *order in read_rows(session, with_decisions)}
        batches = _batches(session, {run_id for _, _, run_id, *_ in orders.values() if run_id})
        missing = ids - orders.keys()
        archived = archived_among(session, sorted(missing)) if missing else set()
    # Thousands of decisions are a few couriers'.
    answer_of = cache(_answer)

    def state_of(message: OrderMessage) -> OrderState:
        if message.order_id not in orders:
            is_archived = message.order_id in archived
            return OrderState(exists=is_archived, is_done=is_archived)
        attempt, status, run_id, *decision = orders[message.order_id]
        if attempt != message.attempt:
            return OrderState(exists=True, is_done=True, run_id=run_id)
        return OrderState(
            exists=True,
            is_open=status == OrderStatus.WAITING,
            is_done=status in DONE_WITH,
            run_id=run_id,
            answer=answer_of(*decision),
            batch=batches.get(run_id),
        )

    return {message: state_of(message) for message in messages}


def _answer(
    courier_id: str | None, reason: str | None, decided_by: str | None
) -> CourierAnswer | None:
    if decided_by is None:
        return None
    return CourierAnswer(
        outcome=ASSIGNED if courier_id else NO_COURIER,
        courier=courier_id or "",
        reason=reason or "",
        answered_by=decided_by,
    )


def _batches(session: Session, run_ids: Iterable[str]) -> dict[str, BatchState]:
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
        run_id: BatchState(
            listens=listens_until is not None and utc_now() < listens_until,
            waits=has(run_id, OrderStatus.WAITING),
            holds=has(run_id, OrderStatus.DISPATCHING),
        )
        for run_id, listens_until in found.all()
    }
