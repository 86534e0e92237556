"""The choice of an order's courier, by worker or by person.

The accepted decision is the pivot: before it a failure compensates the order, after it the order
only goes forward.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from sqlmodel import Session, col, select

from store.bulk import increase, insert_rows, update_rows
from store.database import transaction
from store.errors import InvalidDecision, NoCourierAvailable
from store.messages import ASSIGNED, NO_COURIER, CourierAnswer, OrderMessage
from store.models import Courier, Decision, Order, OrderStatus, utc_now
from store.saga import mark_failed
from store.saga_log import SagaOrder, lock_order, lock_orders
from store.wakeups import ORDERS_CHANGED, ORDERS_TO_CARRY, notify
from tasks.inventory import too_large
from tasks.retries import retried_task

logger = logging.getLogger("store.dispatch")


DISPATCHER = "dispatch_orders"
"""How the queue's worker signs its decisions."""


@retried_task
def find_couriers(messages: list[OrderMessage]) -> list[str]:
    """Assign waiting orders to the couriers with the most free capacity.

    An order that every courier is too small for gets no courier. One that only has to wait until
    a courier is free is left undecided; its message comes again. So is every order while no courier
    has any capacity, which says nothing about the order. One that does not wait, or not any more,
    is passed over.

    Returns:
        The ids of the orders that were decided now.
    """
    with transaction() as session:
        orders = lock_orders(session, [message.order_id for message in messages])
        couriers = lock_couriers(session)
        free = {id_: c.capacity_copies - c.assigned_copies for id_, c in couriers.items()}
        largest = max((courier.capacity_copies for courier in couriers.values()), default=0)
        if not largest:
            return []
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
                    reason=str(too_large(order.copies, largest)),
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


def record_answer(order_id: str, answer: CourierAnswer) -> Decision:
    """Record a person's answer unless the order has a decision.

    An answer that comes second, or after the order's end, is kept as not accepted and holds none
    of its courier's capacity.

    Args:
        order_id: The order.
        answer: What the person has answered.

    Returns:
        The decision that counts; this late one if the order ended without any.

    Raises:
        InvalidDecision: the answer makes no sense; nothing was recorded, the order waits on.
        OrderArchived: the order ended long ago and is in an archive; nothing was recorded.
        OrderNotFound: no order has the id.
    """
    with transaction() as session:
        order = lock_order(session, order_id)
        if _waits(order, order.attempt):
            _require_sense([order], answer, lock_couriers(session))
            _decide(session, [(order, answer)])
        counts = _decision(session, order)
        if counts is not None and _says(counts, answer):
            return counts
        late = Decision(**_row(order, answer), accepted=False)
        session.add(late)
        logger.warning(
            "late answer for order %s, which is %s: %s %s; it changes nothing",
            order.id,
            order.status,
            answer.outcome,
            answer.courier,
            extra={"order_id": order.id},
        )
        return counts or late


def answer_all(order_ids: Sequence[str], answer: CourierAnswer) -> list[OrderMessage]:
    """Record one answer for orders that must all still wait.

    Args:
        order_ids: The orders; there must be one of each id.
        answer: What the person has answered.

    Returns:
        The orders as their messages name them.

    Raises:
        InvalidDecision: an order does not wait any more, the answer makes no sense, or the courier
            has no room for all of them; nothing was recorded.
    """
    with transaction() as session:
        orders = list(lock_orders(session, order_ids).values())
        couriers = lock_couriers(session)
        for order in orders:
            if not _waits(order, order.attempt):
                by = f" by courier {order.courier_id}" if order.courier_id else ""
                raise InvalidDecision(
                    f"order: {order.id} is {order.status}{by} and does not wait for a courier; "
                    "leave it out. Nothing was changed."
                )
        _require_sense(orders, answer, couriers)
        _decide(session, [(order, answer) for order in orders])
        return [
            OrderMessage(order_id=order.id, attempt=order.attempt, copies=order.copies)
            for order in orders
        ]


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
        couriers = lock_couriers(session)
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
                _require_sense([order], answer, couriers)
            decided.append((order, answer))
        _decide(session, decided)
        return [order.id for order, _ in decided]


def _waits(order: SagaOrder, attempt: int) -> bool:
    return order.status == OrderStatus.WAITING and order.attempt == attempt


def lock_couriers(session: Session) -> dict[str, Courier]:
    """Lock all couriers, by id, and return them by id."""
    couriers = session.exec(select(Courier).order_by(Courier.id).with_for_update())
    return {courier.id: courier for courier in couriers}


def _require_sense(
    orders: Sequence[SagaOrder], answer: CourierAnswer, couriers: Mapping[str, Courier]
) -> None:
    """Raise InvalidDecision, with the remedy, for an impossible answer.

    ``orders`` are those that are answered together.
    """
    if answer.outcome == NO_COURIER:
        if answer.courier:
            raise InvalidDecision(
                f"courier: leave it empty for “{NO_COURIER}”, or choose “{ASSIGNED}”"
            )
        return
    if not answer.courier:
        raise InvalidDecision(f"courier: give the courier's id for “{ASSIGNED}”")
    if not couriers:
        raise InvalidDecision(
            "courier: the shop has none; `python -m seed --courier ID COPIES` inserts one"
        )
    courier = couriers.get(answer.courier)
    if courier is None:
        raise InvalidDecision(
            f"courier: nobody has the id “{answer.courier}”; there are {', '.join(couriers)}"
        )
    free = courier.capacity_copies - courier.assigned_copies
    copies = sum(order.copies for order in orders)
    if free < copies:
        whose = "the order has" if len(orders) == 1 else f"the {len(orders)} orders have"
        raise InvalidDecision(
            f"courier: {courier.id} has room for {free} copies, {whose} {copies}; "
            "choose another one"
        )


def _decide(session: Session, decided: Sequence[tuple[SagaOrder, CourierAnswer]]) -> None:
    """Make each answer its order's decision. Orders and couriers must be locked."""
    if not decided:
        return
    now = utc_now()
    rows = [_row(order, answer) for order, answer in decided]
    insert_rows(session, Decision, rows, accepted=True, decided_at=now)
    assigned = [(order, answer) for order, answer in decided if answer.outcome == ASSIGNED]
    update_rows(
        session,
        Order,
        [{"id": order.id, "courier_id": answer.courier} for order, answer in assigned],
        status=OrderStatus.DISPATCHING,
        updated_at=now,
    )
    copies: dict[str, int] = {}
    for order, answer in assigned:
        copies[answer.courier] = copies.get(answer.courier, 0) + order.copies
    increase(session, Courier, "assigned_copies", copies)
    mark_failed(
        session,
        [
            (order, NoCourierAvailable(answer.reason or "no courier takes the order"))
            for order, answer in decided
            if answer.outcome == NO_COURIER
        ],
    )
    notify(session, ORDERS_TO_CARRY, ORDERS_CHANGED)


def _row(order: SagaOrder, answer: CourierAnswer) -> dict[str, Any]:
    return {
        "order_id": order.id,
        "attempt": order.attempt,
        "outcome": answer.outcome,
        "courier_id": answer.courier or None,
        "reason": answer.reason,
        "decided_by": answer.answered_by,
    }


def _decision(session: Session, order: SagaOrder) -> Decision | None:
    """Return the present attempt's accepted decision, if it has one."""
    return session.exec(
        select(Decision).where(
            col(Decision.order_id) == order.id,
            col(Decision.attempt) == order.attempt,
            col(Decision.accepted),
        )
    ).first()


def _says(decision: Decision, answer: CourierAnswer) -> bool:
    """Return whether the answer is the decision.

    The dispatcher's wake-up call names no courier.
    """
    return (decision.outcome, decision.decided_by) == (
        answer.outcome,
        answer.answered_by,
    ) and answer.courier in ("", decision.courier_id)
