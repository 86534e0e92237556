"""The tasks ``prepare_order`` and ``dispatch_order``.

Neither step has an undo: a message about an order that has moved on is
ignored, and a parcel under way is not called back.
"""

import logging
from collections.abc import Sequence
from datetime import timedelta

from sqlmodel import Session, col, select

from store.bulk import among, increase, read_rows, update_rows
from store.database import transaction
from store.errors import (
    QueueRefused,
    QueueUnavailable,
    RetryableError,
    TopicRefused,
    TopicUnavailable,
)
from store.messages import OrderMessage
from store.models import Book, Courier, OrderStatus, SagaRecord, StepState, utc_now
from store.notifications import Notice
from store.partners import order_queue, topic
from store.saga import forward
from store.saga_log import SagaOrder, lock_orders
from store.settings import settings
from tasks.couriers import lock_couriers
from tasks.inventory import books_of, lines_by_order
from tasks.retries import is_last_try, retried_task
from tasks.unsent import keep_and_tell
from texts.notices import dispatched

logger = logging.getLogger("store.dispatch")


@retried_task
def prepare_order(order_ids: list[str]) -> list[str]:
    """Send each order's message to the queue and start its wait.

    The wait's end is fixed here, so that a run which starts again does not wait longer.

    A message that the queue refuses, or has not taken at the last try, ends no order: the order
    waits, its intent stays, and recovery sends it again.

    Returns:
        The ids of the orders that go on.

    Raises:
        OrderError: no order goes on; what has ended the first one.
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
    sent_at = utc_now().isoformat()
    with forward("prepare_order", order_ids) as step:
        for order in step.todo:
            # One that has come this far since, or begun another attempt, has its message to come.
            if (order.id, order.attempt) not in asked:
                continue
            if order.id not in unsent:
                step.done(order, {"sent_at": sent_at})
            elif is_over:
                step.skip(order)
    if failure is not None:
        if not is_over:
            raise failure
        keep_and_tell([order for order in intents.todo if order.id in unsent], failure)
    return step.going_on()


def send_again(order_ids: Sequence[str]) -> None:
    """Resend the messages of the orders that still wait.

    The first message may have been lost.

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
    """Send the orders' messages and return the failed ids with the error."""
    bodies = {
        OrderMessage(order_id=o.id, attempt=o.attempt, copies=o.copies).model_dump_json(): o.id
        for o in orders
    }
    try:
        order_queue().send(list(bodies))
    except (QueueUnavailable, QueueRefused) as failure:
        left_out = bodies if failure.left_out is None else failure.left_out
        return {bodies[body] for body in left_out}, failure
    return set(), None


@retried_task
def dispatch_order(order_ids: list[str]) -> list[str]:
    """Publish each order's dispatch and hand it over to its courier.

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
        lock_couriers(step.session)
        freed = {id_: -copies for id_, copies in handed_over.items()}
        increase(step.session, Courier, "assigned_copies", freed)
    if failure is not None:
        raise failure
    return step.going_on()


def _publish(notices: Sequence[Notice]) -> tuple[set[str], TopicUnavailable | TopicRefused | None]:
    """Publish notices and return the failed orders' ids with the error."""
    try:
        if notices:
            topic().publish(notices)
    except (TopicUnavailable, TopicRefused) as failure:
        left_out = failure.left_out
        return {n.order_id for n in notices if left_out is None or n.key in left_out}, failure
    return set(), None


def _notices(session: Session, orders: Sequence[SagaOrder]) -> list[Notice]:
    lines = lines_by_order(session, [order.id for order in orders])
    found = read_rows(
        session, select(Book.id, Book.title).where(among(col(Book.id), books_of(lines)))
    )
    titles: dict[str, str] = dict(found)
    notices = []
    for order in orders:
        texts = [f"{copies} of “{titles.get(id_, id_)}”" for id_, copies in lines[order.id]]
        notices.append(dispatched(order, texts))
    return notices
