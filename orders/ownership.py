"""Ownership of orders by flow runs, and its changes."""

from collections.abc import Sequence

from sqlalchemy import func
from sqlmodel import col, select

from store.database import reading, transaction
from store.models import ENDED, Order, utc_now
from store.saga_log import update_orders
from store.sessions import WHOLE_RUN


def orders_of_run(run_id: str) -> dict[str, int]:
    """Return the unfinished orders of the flow run with their attempts."""
    with reading() as session:
        found = session.execute(
            select(col(Order.id), col(Order.attempt))
            .where(col(Order.run_id) == run_id, col(Order.status).not_in(ENDED))
            .order_by(col(Order.id))
        )
        return dict(found.all())


def owners_among(run_ids: Sequence[str]) -> dict[str, bool]:
    """Return the runs that own orders, each with whether any is unfinished."""
    with reading() as session:
        found = session.execute(
            select(col(Order.run_id), func.count().filter(col(Order.status).not_in(ENDED)))
            .where(col(Order.run_id).in_(run_ids))
            .group_by(col(Order.run_id))
        )
        return {str(run_id): unfinished > 0 for run_id, unfinished in found}


def finished_orders_of_run(run_id: str) -> list[Order]:
    """Return the flow run's orders if all have ended, else none."""
    with reading() as session:
        orders = list(session.exec(select(Order).where(Order.run_id == run_id).order_by(Order.id)))
        return orders if all(order.status in ENDED for order in orders) else []


def count_continuation(run_id: str, seen: int) -> bool:
    """Count a continuation of the run's unfinished orders, unless another call did.

    True is returned if this call counted it.

    Args:
        run_id: The run that owns them.
        seen: The highest number of continuations among them when the caller looked.
    """
    with transaction(WHOLE_RUN) as session:
        counted = update_orders(
            session,
            col(Order.run_id) == run_id,
            col(Order.status).not_in(ENDED),
            col(Order.continuations) <= seen,
            continuations=seen + 1,
            updated_at=utc_now(),
        )
        return bool(counted)


def continuations_of_run(run_id: str) -> int:
    """Return how often the run's unfinished orders were continued, at most."""
    with reading() as session:
        return (
            session.scalar(
                select(func.max(col(Order.continuations))).where(
                    col(Order.run_id) == run_id, col(Order.status).not_in(ENDED)
                )
            )
            or 0
        )


def change_owner(order_id: str, from_run: str | None, to_run: str) -> None:
    """Make another run the owner of an order that belongs to ``from_run``."""
    with transaction() as session:
        owned = (col(Order.id) == order_id, col(Order.run_id) == from_run)
        update_orders(session, *owned, run_id=to_run, updated_at=utc_now())
