"""Messages that the order queue has not accepted.

They are kept with their orders, and the shop is notified once.

The orders wait all the same. Recovery sends their messages again; only their own time-out ends
them.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, func
from sqlalchemy import select as select_columns
from sqlmodel import Session, col, select

from store.bulk import update_rows
from store.database import transaction
from store.errors import QueueRefused, QueueUnavailable, TopicRefused, TopicUnavailable, shortened
from store.models import Courier, Order, OrderStatus, SagaRecord, utc_now
from store.partners import topic
from store.saga_log import SagaOrder, lock_orders
from texts.notices import queue_refuses

logger = logging.getLogger("store.dispatch")


class Unsent(NamedTuple):
    """The number of orders with an unsent message, and a reason."""

    orders: int
    reason: str | None


def keep_and_tell(orders: Sequence[SagaOrder], failure: QueueRefused | QueueUnavailable) -> None:
    """Record unsent messages and publish one notice for an outage.

    An outage lasts while an order waits of which the shop was told. A notice that the topic does
    not take is logged, and published after the next message that the queue refuses.

    Args:
        orders: The orders; one that does not wait any more is passed over.
        failure: What the queue said.
    """
    reason = shortened(str(failure))
    logger.error(
        "the queue did not take %d messages: %s",
        len(orders),
        reason,
        extra={"order_ids": [order.id for order in orders]},
    )
    attempts = {order.id: order.attempt for order in orders}
    with transaction() as session:
        waiting = [
            order
            for order in lock_orders(session, list(attempts)).values()
            if order.status == OrderStatus.WAITING and order.attempt == attempts[order.id]
        ]
        # Two groups that are refused at the same time: one after the other, so that one tells.
        session.exec(select(Courier.id).order_by(Courier.id).with_for_update()).all()
        told = _told(session)
        tellers = waiting[:1] if not told else []
        _record(session, [order for order in waiting if order.id not in told], reason)
        _record(session, tellers, reason, is_told=True)
    for teller in tellers:
        try:
            topic().publish([queue_refuses(teller, len(waiting), reason, utc_now())])
        except (TopicUnavailable, TopicRefused) as silence:
            logger.error("the shop could not be told of it: %s", silence)
            with transaction() as session:
                lock_orders(session, [teller.id])
                _record(session, [teller], reason)


def unsent_messages(session: Session) -> Unsent:
    """Return the number of orders with an unsent message, and a reason."""
    reason = col(SagaRecord.result)["not_sent"].as_string()
    count, last = session.execute(
        select_columns(func.count(), func.max(reason))
        .select_from(SagaRecord)
        .join(Order, _is_present())
        .where(*_WAITING, reason.is_not(None))
    ).one()
    return Unsent(count, last)


_WAITING = (col(SagaRecord.step) == "prepare_order", col(Order.status) == OrderStatus.WAITING)


def _is_present() -> ColumnElement[bool]:
    is_its, is_of_its_attempt = (
        col(SagaRecord.order_id) == col(Order.id),
        col(SagaRecord.attempt) == col(Order.attempt),
    )
    return is_its & is_of_its_attempt


def _told(session: Session) -> set[str]:
    """Return ids of waiting orders about which an outage notice was published."""
    return set(
        session.scalars(
            select_columns(col(SagaRecord.order_id))
            .join(Order, _is_present())
            .where(*_WAITING, col(SagaRecord.result)["told"].as_string().is_not(None))
        )
    )


def _record(
    session: Session, orders: Sequence[SagaOrder], reason: str, *, is_told: bool = False
) -> None:
    update_rows(
        session,
        SagaRecord,
        [
            {"order_id": order.id, "attempt": order.attempt, "step": "prepare_order"}
            for order in orders
        ],
        result={"not_sent": reason, **({"told": "the shop"} if is_told else {})},
    )
