"""How long orders wait for a courier."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import func
from sqlmodel import col, select

from store.bulk import among, read_rows
from store.database import reading, transaction
from store.errors import CourierWaitExpired
from store.models import Order, OrderStatus, utc_now
from store.saga import mark_failed
from store.saga_log import lock_orders, update_orders
from store.sessions import WHOLE_RUN


def expire_waits(order_ids: Sequence[str]) -> None:
    """End the expired waits of orders, which are then to be compensated."""
    with transaction() as session:
        orders = lock_orders(session, order_ids)
        expired = read_rows(
            session,
            select(Order.id, Order.wait_until).where(
                among(col(Order.id), orders),
                col(Order.status) == OrderStatus.WAITING,
                col(Order.wait_until) <= utc_now(),
            ),
        )
        mark_failed(
            session,
            [
                (
                    orders[id_],
                    CourierWaitExpired(f"no courier answered until {until:%Y-%m-%d %H:%M:%S} UTC"),
                )
                for id_, until in expired
            ],
        )


def first_wait_end() -> datetime | None:
    """Return when the earliest wait for a courier ends, else None."""
    with reading() as session:
        return session.scalar(
            select(func.min(col(Order.wait_until))).where(col(Order.status) == OrderStatus.WAITING)
        )


def prolong_waits(until: datetime) -> int:
    """Extend waits to ``until`` at least and return the number extended."""
    with transaction(WHOLE_RUN) as session:
        ends_before = (col(Order.status) == OrderStatus.WAITING, col(Order.wait_until) < until)
        return len(update_orders(session, *ends_before, wait_until=until))
