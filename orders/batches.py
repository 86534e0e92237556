"""Batches as runs that carry many orders, and their sums.

Nothing here reads more of a batch than a page of ids or a few sums, however large it is.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, case, cast, func, update
from sqlalchemy import select as select_columns
from sqlmodel import col, select

from store.bulk import among, insert_missing, read_rows
from store.database import reading, transaction
from store.errors import BatchNotFound
from store.models import ENDED, Batch, Order, OrderStatus, SagaRecord, StepState, utc_now
from store.saga_log import update_orders
from store.sessions import WHOLE_RUN
from tasks.retries import retried


@retried
def begin_batch(
    run_id: str, source: str | None, wait: str | None = None, listen_seconds: int = 0
) -> tuple[Batch, bool]:
    """Record the run's batch once and return its record.

    It is returned with whether this execution is the run's first.

    Args:
        run_id: The flow run.
        source: The file of its orders, if it has one; a batch recorded already keeps its own.
        wait: How it waits for couriers, ``pause`` or ``suspend``.
        listen_seconds: How long it claims what comes in; a batch recorded already keeps its end.
    """
    listens_until = utc_now() + timedelta(seconds=listen_seconds) if listen_seconds else None
    with transaction() as session:
        inserted = insert_missing(session, Batch, [_batch(run_id, source, wait, listens_until)])
        batch = session.get_one(Batch, run_id)
        return batch, bool(inserted)


def _batch(
    run_id: str, source: str | None, wait: str | None, listens_until: datetime | None
) -> dict[str, Any]:
    now = utc_now()
    return {
        "run_id": run_id,
        "source": source,
        "wait": wait,
        "started_at": now,
        "moved_at": now,
        "listens_until": listens_until,
    }


@retried
def touch_batch(run_id: str) -> None:
    """Record a heartbeat of the batch, so that recovery leaves it alone."""
    with transaction() as session:
        session.execute(update(Batch).where(col(Batch.run_id) == run_id).values(moved_at=utc_now()))


def change_batch_owner(from_run: str, to_run: str) -> None:
    """Make another run the owner of a batch and its unfinished orders.

    Safe to repeat: orders that have the new owner are passed over.

    Args:
        from_run: The run that carries the batch; it must be recorded.
        to_run: The run that goes on with it; recorded as carrying the same source.
    """
    with transaction(WHOLE_RUN) as session:
        batch = session.get_one(Batch, from_run)
        goes_on = _batch(to_run, batch.source, batch.wait, batch.listens_until)
        insert_missing(session, Batch, [goes_on])
        unfinished = (col(Order.run_id) == from_run, col(Order.status).not_in(ENDED))
        update_orders(session, *unfinished, run_id=to_run, updated_at=utc_now())


def read_batch(run_id: str) -> Batch:
    """Return the record of the run's batch, which must exist."""
    with reading() as session:
        return session.get_one(Batch, run_id)


def batches_among(run_ids: Sequence[str]) -> dict[str, datetime]:
    """Return the runs that carry a batch with their last heartbeats."""
    with reading() as session:
        found = session.execute(
            select(col(Batch.run_id), col(Batch.moved_at)).where(col(Batch.run_id).in_(run_ids))
        )
        return dict(found.all())


def require_batch(run_id: str) -> None:
    """Raise BatchNotFound unless a batch ran under this id.

    Raises:
        BatchNotFound: no batch was carried out in this run.
    """
    if not batches_among([run_id]):
        raise BatchNotFound(
            f"no batch was carried out in a run {run_id}; it is the id of the batch's flow run, "
            "which its page in the UI shows. Nothing was done."
        )


def pages_of_run(run_id: str, statuses: Sequence[OrderStatus], size: int) -> Iterator[list[str]]:
    """Yield the run's orders of these statuses in pages of ``size`` ids.

    Orders may change their status between pages: none comes twice, and one that gets the status
    behind the page that is looked at is not missed for good, since its run asks again.
    """
    for status in statuses:
        last = ""
        while page := _page(run_id, status, last, size):
            yield page
            last = page[-1]


@retried
def _page(run_id: str, status: OrderStatus, after: str, size: int) -> list[str]:
    with reading() as session:
        page = (
            select(Order.id)
            .where(col(Order.run_id) == run_id, col(Order.status) == status, col(Order.id) > after)
            .order_by(Order.id)
            .limit(size)
        )
        return [id_ for (id_,) in read_rows(session, page)]


@retried
def count_by_status(run_id: str) -> dict[str, int]:
    """Return how many of the run's orders have each status."""
    with reading() as session:
        found = session.execute(
            select(col(Order.status), func.count())
            .where(col(Order.run_id) == run_id)
            .group_by(col(Order.status))
        )
        return dict(found.all())


@retried
def being_undone(order_ids: Sequence[str]) -> list[str]:
    """Return the failed orders with effects still to be undone."""
    with reading() as session:
        return list(
            session.scalars(
                select(Order.id).where(
                    among(col(Order.id), order_ids), col(Order.status) == OrderStatus.COMPENSATING
                )
            )
        )


def last_move_of(order_ids: Sequence[str]) -> datetime | None:
    """Return when the orders last changed or did a step, else None."""
    with reading() as session:
        changed = session.scalar(
            select(func.max(col(Order.updated_at))).where(among(col(Order.id), order_ids))
        )
        did = session.scalar(
            select(func.max(col(SagaRecord.at))).where(among(col(SagaRecord.order_id), order_ids))
        )
        return max(filter(None, (changed, did)), default=None)


@retried
def waits_until(run_id: str) -> datetime | None:
    """Return when the run's last wait ends, None if no order waits."""
    with reading() as session:
        return session.scalar(
            select(func.max(col(Order.wait_until))).where(
                col(Order.run_id) == run_id, col(Order.status) == OrderStatus.WAITING
            )
        )


@dataclass(frozen=True, slots=True)
class FailedOrder:
    """An order of a batch that was not dispatched, and why."""

    order_id: str
    status: str
    error: str
    message: str


@retried
def failed_orders(run_id: str, after: str = "", limit: int = 1_000) -> list[FailedOrder]:
    """Return a page of the run's orders that have failed, by id.

    Args:
        run_id: The flow run.
        after: The last id of the page before; empty for the first page.
        limit: How many at most.
    """
    with reading() as session:
        found = session.execute(
            select(col(Order.id), col(Order.status), col(Order.error), col(Order.message))
            .where(
                col(Order.run_id) == run_id, col(Order.error).is_not(None), col(Order.id) > after
            )
            .order_by(col(Order.id))
            .limit(limit)
        )
        return [
            FailedOrder(id_, status, error or "", message or "")
            for id_, status, error, message in found
        ]


@dataclass(frozen=True, slots=True)
class Sums:
    """A batch's orders by status and error, its money and points.

    Money is cents. The most frequent statuses and errors come first. A charge that is still in
    doubt counts as nothing until its refund finds it out.
    """

    by_status: dict[str, int]
    by_error: dict[str, int]
    captured_cents: int
    refunded_cents: int
    points_redeemed: int
    points_restored: int


@retried
def sums_of_run(run_id: str) -> Sums:
    """Return the sums of the run's orders in their present attempts."""
    with reading() as session:
        by_status: Counter[str] = Counter()
        by_error: Counter[str] = Counter()
        for status, error, count in session.execute(
            select(col(Order.status), col(Order.error), func.count())
            .where(col(Order.run_id) == run_id)
            .group_by(col(Order.status), col(Order.error))
            .order_by(col(Order.status), col(Order.error))
        ):
            by_status[status] += count
            if error:
                by_error[error] += count
        refunded_cents = _number(col(SagaRecord.undo_result)["amount_cents"])
        # A charge in doubt has no reference: what its refund found is all that was captured.
        has_reference = col(SagaRecord.result)["reference"].as_string().is_not(None)
        captured_cents = case((has_reference, col(Order.due_cents)), else_=refunded_cents)
        taken = (
            select_columns(
                col(SagaRecord.step),
                func.sum(captured_cents),
                func.sum(refunded_cents),
                func.sum(col(Order.points_redeemed)),
                func.sum(_number(col(SagaRecord.undo_result)["points"])),
            )
            .join(
                Order,
                (col(Order.id) == col(SagaRecord.order_id))
                & (col(Order.attempt) == col(SagaRecord.attempt)),
            )
            .where(
                col(Order.run_id) == run_id,
                col(SagaRecord.step).in_(["bill_customer", "redeem_points"]),
                col(SagaRecord.state).in_([StepState.DONE, StepState.UNDONE]),
            )
            .group_by(col(SagaRecord.step))
        )
        steps = {step: tuple(int(s or 0) for s in sums) for step, *sums in session.execute(taken)}
        captured, refunded, _, _ = steps.get("bill_customer", (0, 0, 0, 0))
        _, _, redeemed, restored = steps.get("redeem_points", (0, 0, 0, 0))
        return Sums(
            dict(by_status.most_common()),
            dict(by_error.most_common()),
            captured_cents=captured,
            refunded_cents=refunded,
            points_redeemed=redeemed,
            points_restored=restored,
        )


def _number(json_field: Any) -> ColumnElement[int]:
    """Return a JSON field as a 64-bit number, large enough for cents.

    JSON's own `as_integer` has 32 bits.
    """
    return cast(json_field.as_string(), BigInteger)
