"""Reads and changes of batches that listen."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, exists, func, update
from sqlmodel import col, select

from store.database import reading, transaction
from store.models import Batch, Order, OrderStatus, utc_now
from store.saga_log import update_orders
from store.sessions import WHOLE_RUN
from store.settings import settings
from tasks.retries import retried

PACE_SECONDS = 120
"""The last orders' rate and latencies are of this time."""
UNCLAIMED_SECONDS = 60
"""A batch that listens claims an order within two seconds."""
SILENT_SECONDS = 60
"""A batch that listens records a heartbeat every five seconds."""
LOOKED_AT = 100
"""Earlier batches that are taken over from at once; there are one or two."""
ESCALATED_AT_MOST = 20
"""Waiting orders with a run of their own: people answer one at a time, and when all couriers are
full, thousands wait that need no person."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How many orders were dispatched lately, and after what time.

    The seconds are from an order's submission to its dispatch.
    """

    dispatched: int
    median_seconds: float
    p95_seconds: float


@retried
def pace_of_run(run_id: str) -> Pace:
    """Return the pace of the run's orders over PACE_SECONDS.

    Those are read by the time of their ending, so an hour's batch costs no more than its start.
    """
    seconds = func.extract("epoch", col(Order.updated_at) - col(Order.created_at))
    with reading() as session:
        dispatched, median, p95 = session.execute(
            select(
                func.count(),
                func.percentile_cont(0.5).within_group(seconds),
                func.percentile_cont(0.95).within_group(seconds),
            ).where(
                col(Order.status) == OrderStatus.DISPATCHED,
                col(Order.updated_at) >= utc_now() - timedelta(seconds=PACE_SECONDS),
                col(Order.run_id) == run_id,
            )
        ).one()
        return Pace(dispatched, float(median or 0), float(p95 or 0))


@dataclass(frozen=True, slots=True)
class Backlog:
    """Submitted orders that no batch has claimed for a minute.

    ``of_front_ends`` counts those of them that a front end submitted.
    """

    orders: int
    of_front_ends: int
    oldest_seconds: float


def backlog() -> Backlog:
    """Return the submitted orders that have waited longer than UNCLAIMED_SECONDS."""
    now = utc_now()
    with reading() as session:
        orders, of_front_ends, oldest = session.execute(
            select(
                func.count(), func.count(col(Order.submitted_by)), func.min(col(Order.updated_at))
            ).where(
                col(Order.status) == OrderStatus.SUBMITTED,
                col(Order.updated_at) < now - timedelta(seconds=UNCLAIMED_SECONDS),
            )
        ).one()
        return Backlog(orders, of_front_ends, (now - oldest).total_seconds() if oldest else 0.0)


def is_listened() -> bool:
    """Return whether a batch with a recent heartbeat listens."""
    return _is_listening(col(Batch.moved_at) > utc_now() - timedelta(seconds=SILENT_SECONDS))


@retried
def take_over_waiting(from_run: str, to_run: str) -> bool:
    """Take over the waiting orders of a batch that has stopped listening.

    An order that has moved on, or has another owner by now, is left alone.

    Args:
        from_run: The batch's run.
        to_run: The run that listens.

    Returns:
        Whether an order was taken.
    """
    with transaction(WHOLE_RUN) as session:
        waiting = (col(Order.run_id) == from_run, col(Order.status) == OrderStatus.WAITING)
        return bool(update_orders(session, *waiting, run_id=to_run, updated_at=utc_now()))


@retried
def stopped_batches(run_id: str) -> Sequence[str]:
    """Return the other batches that listened, have stopped, and still wait."""
    with reading() as session:
        waits = exists().where(
            col(Order.run_id) == col(Batch.run_id), col(Order.status) == OrderStatus.WAITING
        )
        return session.scalars(
            select(Batch.run_id)
            .where(col(Batch.listens_until) <= utc_now(), col(Batch.run_id) != run_id, waits)
            .order_by(col(Batch.listens_until))
            .limit(LOOKED_AT)
        ).all()


@retried
def expired_waits(run_id: str, limit: int) -> list[str]:
    """Return orders of the run whose wait has expired."""
    with reading() as session:
        return list(
            session.scalars(
                select(Order.id)
                .where(
                    col(Order.run_id) == run_id,
                    col(Order.status) == OrderStatus.WAITING,
                    col(Order.wait_until) <= utc_now(),
                )
                .order_by(col(Order.id))
                .limit(limit)
            )
        )


@retried
def listen_until(run_id: str, until: datetime) -> None:
    """Record another end of the run's listening.

    After it the run's waiting orders are taken over.
    """
    with transaction() as session:
        session.execute(
            update(Batch).where(col(Batch.run_id) == run_id).values(listens_until=until)
        )


def listens(run_id: str) -> bool:
    """Return whether the run is a batch that listens."""
    return _is_listening(col(Batch.run_id) == run_id)


def _is_listening(condition: ColumnElement[bool]) -> bool:
    with reading() as session:
        listening = select(Batch.run_id).where(col(Batch.listens_until) > utc_now(), condition)
        return session.scalars(listening.limit(1)).first() is not None


@retried
def unanswered(run_id: str) -> list[str]:
    """Return waiting orders of the run that need a person.

    Those are the ones that have waited for STORE_ESCALATE_SECONDS, the longest first. No more are
    returned than may have a run of their own at the same time.
    """
    waited = timedelta(seconds=settings().courier_timeout_seconds - settings().escalate_seconds)
    with reading() as session:
        of_batch = exists().where(col(Batch.run_id) == col(Order.run_id))
        asked = session.scalar(
            select(func.count()).where(col(Order.status) == OrderStatus.WAITING, ~of_batch)
        )
        return list(
            session.scalars(
                select(Order.id)
                .where(
                    col(Order.run_id) == run_id,
                    col(Order.status) == OrderStatus.WAITING,
                    col(Order.wait_until) <= utc_now() + waited,
                )
                .order_by(col(Order.wait_until))
                .limit(max(0, ESCALATED_AT_MOST - (asked or 0)))
            )
        )


def hand_over_waiting(order_id: str, from_run: str | None, to_run: str, wait: str) -> bool:
    """Hand a waiting order of ``from_run`` over to its own run.

    Returns:
        Whether it was handed over; it was decided, or has another owner, otherwise.
    """
    waiting = (
        col(Order.id) == order_id,
        col(Order.run_id) == from_run,
        col(Order.status) == OrderStatus.WAITING,
    )
    with transaction() as session:
        return bool(
            update_orders(session, *waiting, run_id=to_run, wait=wait, updated_at=utc_now())
        )
