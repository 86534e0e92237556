"""The courier: ``prepare_order`` asks for one, ``dispatch_order`` hands the parcel over.

The accepted decision is the pivot: before it a failure compensates the order, after it the order
only goes forward. Neither step has an undo: a message about an order that has moved on is
ignored, and a parcel under way is not called back.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import func
from sqlalchemy import select as select_columns
from sqlmodel import Session, col, select

from store.bulk import among, increase, insert_rows, read_rows, update_rows
from store.database import reading, transaction
from store.errors import (
    CourierWaitExpired,
    InvalidDecision,
    NoCourierAvailable,
    QueueRefused,
    QueueUnavailable,
    RetryableError,
    TopicRefused,
    TopicUnavailable,
)
from store.messages import ASSIGNED, NO_COURIER, CourierAnswer, OrderMessage, money
from store.models import (
    ENDED,
    Batch,
    Book,
    Courier,
    Decision,
    Order,
    OrderLine,
    OrderStatus,
    SagaRecord,
    StepState,
    utc_now,
)
from store.notifications import Notice, topic
from store.queue import order_queue
from store.saga import SagaOrder, forward, give_up, lock_orders, lock_orders_where
from store.sessions import WHOLE_RUN
from store.settings import settings
from tasks.inventory import too_large
from tasks.retries import is_last_try, retried_task
from tasks.unsent import keep_and_tell

logger = logging.getLogger("store.dispatch")

DISPATCHER = "dispatch_orders"
"""How the queue's worker signs its decisions."""
DONE_WITH = (*ENDED, OrderStatus.COMPENSATION_FAILED)
"""Nothing that the dispatcher does helps an order in these."""


@retried_task
def prepare_order(order_ids: list[str]) -> list[str]:
    """Send a message for each order that it seeks a courier; from now on the order waits.

    The wait's end is fixed here, so that a run which starts again does not wait longer.

    A message that the queue refuses, or has not taken at the last try, ends no order: the order
    waits, its intent stays, and recovery sends it again.

    Returns:
        The ids of the orders that go on.

    Raises:
        OrderError: no order goes on; what has ended the first one meanwhile.
        QueueUnavailable: not every message is out; the task is tried again.
    """
    with forward("prepare_order", order_ids) as intents:
        wait_until = utc_now() + timedelta(seconds=settings().courier_timeout_seconds)
        for order in intents.todo:
            # An answer may come as soon as the message is out, so the order waits before that.
            intents.intend(order, {}, status=OrderStatus.WAITING, wait_until=wait_until)
    unsent, failure = _send(intents.todo)
    is_over = not isinstance(failure, RetryableError) or is_last_try()
    asked = {(order.id, order.attempt) for order in intents.todo}
    with forward("prepare_order", order_ids) as step:
        for order in step.todo:
            # One that has come this far since, or begun another attempt, has its message to come.
            if (order.id, order.attempt) not in asked:
                continue
            if order.id not in unsent:
                step.done(order, {"sent_at": utc_now().isoformat()})
            elif is_over:
                step.skip(order)
    if failure is not None:
        if not is_over:
            raise failure
        keep_and_tell([order for order in intents.todo if order.id in unsent], failure)
    return step.going_on()


@retried_task
def find_couriers(messages: list[OrderMessage]) -> list[str]:
    """Decide on each order that waits: the courier with the most free capacity takes it.

    An order that every courier is too small for gets no courier. One that only has to wait until
    a courier is free is left undecided; its message comes again. An order that does not wait, or
    not any more, is passed over.

    Returns:
        The ids of the orders that were decided now.
    """
    with transaction() as session:
        orders = lock_orders(session, [message.order_id for message in messages])
        couriers = _lock_couriers(session)
        free = {id_: c.capacity_copies - c.assigned_copies for id_, c in couriers.items()}
        largest = max((courier.capacity_copies for courier in couriers.values()), default=0)
        assigned = {
            id_: CourierAnswer(outcome=ASSIGNED, courier=id_, answered_by=DISPATCHER)
            for id_ in free
        }
        decided: dict[str, tuple[SagaOrder, CourierAnswer]] = {}
        for message in messages:
            order = orders.get(message.order_id)
            if order is None or order.id in decided or not _waits(order, message.attempt):
                continue
            if order.copies > largest:
                answer = CourierAnswer(
                    outcome=NO_COURIER,
                    reason=str(too_large(order.copies)),
                    answered_by=DISPATCHER,
                )
            else:
                freest = max(free, key=lambda id_: free[id_])
                if free[freest] < order.copies:
                    continue
                free[freest] -= order.copies
                answer = assigned[freest]
            decided[order.id] = (order, answer)
        _decide(session, list(decided.values()))
        return list(decided)


@dataclass(frozen=True, slots=True)
class Decided:
    """Where the order of a message stands, as its dispatcher needs to know it."""

    exists: bool
    is_open: bool = False
    is_settled: bool = False
    run_id: str | None = None
    answer: CourierAnswer | None = None
    in_batch: bool = False
    """Its run carries other orders as well."""
    others_wait: bool = False
    """An order of its batch still waits for its decision."""
    others_hold: bool = False
    """An order of its batch is decided and holds its courier's capacity."""


class DecidedOrder(NamedTuple):
    """What the dispatcher sees of an order."""

    id: str
    attempt: int
    status: str
    run_id: str | None


def decisions_of(messages: Sequence[OrderMessage]) -> dict[OrderMessage, Decided]:
    """Return where the order of each message stands.

    A message is settled when its order has ended, failed compensations included, or has begun
    another attempt.
    """
    ids = {message.order_id for message in messages}
    with reading() as session:
        orders = {
            row[0]: DecidedOrder._make(row)
            for row in read_rows(
                session,
                select(Order.id, Order.attempt, Order.status, Order.run_id).where(
                    among(session, col(Order.id), ids)
                ),
            )
        }
        answers = {
            (order_id, attempt): CourierAnswer(
                outcome=ASSIGNED if courier_id else NO_COURIER,
                courier=courier_id or "",
                reason=reason,
                answered_by=decided_by,
            )
            for order_id, attempt, courier_id, reason, decided_by in read_rows(
                session,
                select_columns(
                    col(Decision.order_id),
                    col(Decision.attempt),
                    col(Decision.courier_id),
                    col(Decision.reason),
                    col(Decision.decided_by),
                ).where(among(session, col(Decision.order_id), ids), col(Decision.accepted)),
            )
        }
        run_ids = {order.run_id for order in orders.values() if order.run_id}
        # After the decisions: of two dispatchers, the one that decides last sees that none waits.
        batches = {
            run_id: {
                status
                for status in (OrderStatus.WAITING, OrderStatus.DISPATCHING)
                if session.scalars(
                    select(Order.id)
                    .where(col(Order.run_id) == run_id, col(Order.status) == status)
                    .limit(1)
                ).first()
            }
            for run_id in session.scalars(
                select(Batch.run_id).where(col(Batch.run_id).in_(run_ids))
            ).all()
        }
        return {
            message: _decided(
                message,
                orders.get(message.order_id),
                answers.get((message.order_id, message.attempt)),
                batches,
            )
            for message in messages
        }


def _decided(
    message: OrderMessage,
    order: DecidedOrder | None,
    answer: CourierAnswer | None,
    batches: Mapping[str, set[OrderStatus]],
) -> Decided:
    if order is None:
        return Decided(exists=False)
    this_attempt = order.attempt == message.attempt
    return Decided(
        in_batch=order.run_id in batches,
        others_wait=OrderStatus.WAITING in batches.get(order.run_id or "", ()),
        others_hold=OrderStatus.DISPATCHING in batches.get(order.run_id or "", ()),
        exists=True,
        is_open=this_attempt and order.status == OrderStatus.WAITING,
        is_settled=not this_attempt or order.status in DONE_WITH,
        run_id=order.run_id,
        answer=answer,
    )


def record_answer(order_id: str, answer: CourierAnswer) -> Decision:
    """Record a person's answer, unless the order has its decision already: the first one wins.

    An answer that comes second, or after the order's end, is kept as not accepted and holds none
    of its courier's capacity.

    Args:
        order_id: The order; there must be one of this id.
        answer: What the person has answered.

    Returns:
        The decision that counts; this late one if the order ended without any.

    Raises:
        InvalidDecision: the answer makes no sense; nothing was recorded, the order waits on.
    """
    with transaction() as session:
        order = lock_orders(session, [order_id])[order_id]
        if _waits(order, order.attempt):
            _require_sense(order, answer, _lock_couriers(session))
            _decide(session, [(order, answer)])
            return _decisions(session, order)[0]
        counting = _decisions(session, order)
        if counting and _says(counting[0], answer):
            return counting[0]
        late = Decision(**_row(order, answer, accepted=False))
        session.add(late)
        session.flush()
        logger.warning(
            "late answer for order %s, which is %s: %s %s; it changes nothing",
            order.id,
            order.status,
            answer.outcome,
            answer.courier,
            extra={"order_id": order.id},
        )
        session.expunge(late)
        return counting[0] if counting else late


def answer_waiting(order_ids: Sequence[str], answer: CourierAnswer) -> list[str]:
    """Record one answer for all of a batch's orders that still wait.

    A courier takes those that it has room for, in the order in which they are given; the others
    wait on.

    Returns:
        The ids of the orders that were decided now.

    Raises:
        InvalidDecision: the answer makes no sense; nothing was recorded.
    """
    with transaction() as session:
        orders = lock_orders(session, order_ids)
        couriers = _lock_couriers(session)
        courier = couriers.get(answer.courier)
        free = courier.capacity_copies - courier.assigned_copies if courier else 0
        decided = []
        for order in (orders[id_] for id_ in order_ids if id_ in orders):
            if not _waits(order, order.attempt):
                continue
            if answer.outcome == ASSIGNED and courier is not None:
                if free < order.copies:
                    continue
                free -= order.copies
            else:
                _require_sense(order, answer, couriers)
            decided.append((order, answer))
        _decide(session, decided)
        return [order.id for order, _ in decided]


def send_again(order_ids: Sequence[str]) -> None:
    """Send the messages of those orders that still wait once more; one may have been lost.

    A message too many is harmless: the order it is about has moved on.

    Raises:
        QueueUnavailable, QueueRefused: not every message is out; sending again is safe.
    """
    with transaction() as session:
        waiting = [
            order
            for order in lock_orders(session, order_ids).values()
            if order.status == OrderStatus.WAITING
        ]
    unsent, failure = _send(waiting)
    now = utc_now()
    with transaction() as session:
        # A step writes its records with its orders locked.
        lock_orders(session, [order.id for order in waiting])
        update_rows(
            session,
            SagaRecord,
            [
                {"order_id": order.id, "attempt": order.attempt, "step": "prepare_order"}
                for order in waiting
                if order.id not in unsent
            ],
            state=StepState.DONE,
            at=now,
            result={"sent_at": now.isoformat()},
        )
    if failure is not None:
        keep_and_tell([order for order in waiting if order.id in unsent], failure)
        raise failure


def _send(orders: Sequence[SagaOrder]) -> tuple[set[str], QueueUnavailable | QueueRefused | None]:
    """Send the orders' messages; return the ids of those that were not taken, and why."""
    bodies = {_body(order): order.id for order in orders}
    try:
        order_queue().send(list(bodies))
    except (QueueUnavailable, QueueRefused) as failure:
        left_out = bodies if failure.unsent is None else failure.unsent
        return {bodies[body] for body in left_out}, failure
    return set(), None


def _body(order: SagaOrder) -> str:
    return OrderMessage(
        order_id=order.id, attempt=order.attempt, copies=order.copies
    ).model_dump_json()


def expire_waits(order_ids: Sequence[str]) -> None:
    """End the wait of those orders whose time for an answer is over; they are to be compensated."""
    with transaction() as session:
        waiting = [
            order
            for order in lock_orders(session, order_ids).values()
            if order.status == OrderStatus.WAITING
            and order.wait_until is not None
            and order.wait_until <= utc_now()
        ]
        give_up(
            session,
            [
                (
                    o,
                    CourierWaitExpired(
                        f"no courier answered until {o.wait_until:%Y-%m-%d %H:%M:%S} UTC"
                    ),
                )
                for o in waiting
            ],
        )


def first_wait_end() -> datetime | None:
    """Return when the first order's wait for a courier ends; none if no order waits."""
    with reading() as session:
        return session.scalar(
            select(func.min(col(Order.wait_until))).where(col(Order.status) == OrderStatus.WAITING)
        )


def prolong_waits(until: datetime) -> int:
    """Have no order's wait for a courier end before ``until``; return how many got more time."""
    with transaction(WHOLE_RUN) as session:
        order_ids = lock_orders_where(
            session, col(Order.status) == OrderStatus.WAITING, col(Order.wait_until) < until
        )
        update_rows(session, Order, [{"id": id_} for id_ in order_ids], wait_until=until)
        return len(order_ids)


@retried_task
def dispatch_order(order_ids: list[str]) -> list[str]:
    """Publish that each order is on its way and hand it over to its courier.

    It comes after the pivot: it is tried until it succeeds, and never leads to a refund. Handing
    over frees the courier's capacity.

    Returns:
        The ids of the orders that are dispatched.

    Raises:
        OrderError: none goes on; what has ended the first one before a courier had accepted.
        TopicUnavailable: not every notice is out; the task is tried again for the rest.
        TopicRefused: not every notice is out, and the other orders are dispatched; recovery tries
            the rest again.
    """
    with forward("dispatch_order", order_ids) as intents:
        going = [o for o in intents.todo if o.status == OrderStatus.DISPATCHING]
        notices = _notices(intents.session, going)
        for order in going:
            intents.intend(order, {"courier": order.courier_id})
    silent, failure = _publish(notices)
    announced = {order.id for order in going} - silent
    with forward("dispatch_order", order_ids) as step:
        handed_over: dict[str, int] = {}
        for order in step.todo:
            # One that has got its courier since has its notice to come.
            if order.id in announced and order.courier_id is not None:
                handed_over[order.courier_id] = handed_over.get(order.courier_id, 0) + order.copies
                step.done(order, {"courier": order.courier_id}, status=OrderStatus.DISPATCHED)
        _lock_couriers(step.session)
        freed = {id_: -copies for id_, copies in handed_over.items()}
        increase(step.session, Courier, "assigned_copies", freed)
    if failure is not None:
        raise failure
    return step.going_on()


def _publish(notices: Sequence[Notice]) -> tuple[set[str], TopicUnavailable | TopicRefused | None]:
    """Publish notices; return the orders of those that were not taken, and why."""
    try:
        if notices:
            topic().publish(notices)
    except (TopicUnavailable, TopicRefused) as failure:
        left_out = failure.unpublished
        return {n.order_id for n in notices if left_out is None or n.key in left_out}, failure
    return set(), None


def _waits(order: SagaOrder, attempt: int) -> bool:
    return order.status == OrderStatus.WAITING and order.attempt == attempt


def _lock_couriers(session: Session) -> dict[str, Courier]:
    couriers = session.exec(select(Courier).order_by(Courier.id).with_for_update())
    return {courier.id: courier for courier in couriers}


def _require_sense(
    order: SagaOrder, answer: CourierAnswer, couriers: Mapping[str, Courier]
) -> None:
    """Raise InvalidDecision, with the remedy, for an answer that cannot be carried out."""
    if answer.outcome == NO_COURIER:
        if answer.courier:
            raise InvalidDecision(
                f"courier: leave it empty for “{NO_COURIER}”, or choose “{ASSIGNED}”"
            )
        return
    if not answer.courier:
        raise InvalidDecision(f"courier: give the courier's id for “{ASSIGNED}”")
    courier = couriers.get(answer.courier)
    if courier is None:
        raise InvalidDecision(
            f"courier: nobody has the id “{answer.courier}”; there are {', '.join(couriers)}"
        )
    free = courier.capacity_copies - courier.assigned_copies
    if free < order.copies:
        raise InvalidDecision(
            f"courier: {courier.id} has room for {free} copies, the order has {order.copies}; "
            "choose another one"
        )


def _decide(session: Session, decided: Sequence[tuple[SagaOrder, CourierAnswer]]) -> None:
    """Make each answer its order's decision. Orders and couriers must be locked."""
    if not decided:
        return
    insert_rows(session, Decision, [_row(o, answer, accepted=True) for o, answer in decided])
    assigned = [(order, answer) for order, answer in decided if answer.outcome == ASSIGNED]
    update_rows(
        session,
        Order,
        [{"id": order.id, "courier_id": answer.courier} for order, answer in assigned],
        status=OrderStatus.DISPATCHING,
        updated_at=utc_now(),
    )
    copies: dict[str, int] = {}
    for order, answer in assigned:
        copies[answer.courier] = copies.get(answer.courier, 0) + order.copies
    increase(session, Courier, "assigned_copies", copies)
    give_up(
        session,
        [
            (order, NoCourierAvailable(answer.reason or "no courier takes the order"))
            for order, answer in decided
            if answer.outcome == NO_COURIER
        ],
    )


def _row(order: SagaOrder, answer: CourierAnswer, *, accepted: bool) -> dict[str, Any]:
    return {
        "order_id": order.id,
        "attempt": order.attempt,
        "outcome": answer.outcome,
        "courier_id": answer.courier or None,
        "reason": answer.reason,
        "decided_by": answer.answered_by,
        "accepted": accepted,
        "decided_at": utc_now(),
    }


def _decisions(session: Session, order: SagaOrder) -> list[Decision]:
    """Return the accepted decision of the order's present attempt: one, or none."""
    found = session.exec(
        select(Decision).where(
            col(Decision.order_id) == order.id,
            col(Decision.attempt) == order.attempt,
            col(Decision.accepted),
        )
    ).all()
    session.expunge_all()
    return list(found)


def _says(decision: Decision, answer: CourierAnswer) -> bool:
    return (decision.outcome, decision.courier_id or "", decision.decided_by) == (
        answer.outcome,
        answer.courier,
        answer.answered_by,
    )


def _notices(session: Session, orders: Sequence[SagaOrder]) -> list[Notice]:
    ids = [order.id for order in orders]
    titles: dict[str, list[str]] = {id_: [] for id_ in ids}
    for order_id, quantity, title in read_rows(
        session,
        select(OrderLine.order_id, OrderLine.quantity, Book.title)
        .join(Book, col(Book.id) == col(OrderLine.book_id))
        .where(among(session, col(OrderLine.order_id), ids)),
    ):
        titles[order_id].append(f"{quantity} of “{title}”")
    return [
        Notice(
            key=f"{order.id}:{order.attempt}:dispatched",
            order_id=order.id,
            subject=f"Order {order.id} is on its way",
            body="\n".join(
                [
                    f"Order {order.id} was handed over to courier {order.courier_id}.",
                    "",
                    *titles[order.id],
                    "",
                    f"Total: {money(order.total_cents or 0, order.currency)}",
                    f"Paid with points: {order.points_redeemed}",
                    f"Charged: {money(order.due_cents or 0, order.currency)}",
                ]
            ),
            data={
                "event": "dispatched",
                "orderId": order.id,
                "attempt": order.attempt,
                "courier": order.courier_id,
                "copies": order.copies,
                "totalCents": order.total_cents,
                "pointsRedeemed": order.points_redeemed,
                "chargedCents": order.due_cents,
                "currency": order.currency,
            },
        )
        for order in orders
    ]
