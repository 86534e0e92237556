"""What recovery sees of the orders that have not ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlmodel import Session, col, select

from store.database import reading
from store.models import BEFORE_PIVOT, ENDED, HOLDING, Batch, Order, OrderStatus, SagaRecord


@dataclass(frozen=True, slots=True)
class UnfinishedOrder:
    """What recovery sees of an order that has not ended.

    ``moved_at`` is its last change or step, or its batch's last heartbeat; ``asked_at`` is when
    a courier was last asked for it. ``undo_tries`` is how often giving back what it still holds has
    failed.
    """

    id: str
    attempt: int
    status: str
    run_id: str | None
    wait_until: datetime | None
    moved_at: datetime
    asked_at: datetime | None
    continuations: int
    undo_tries: int
    reminded: bool


def unfinished_orders(after: str, limit: int) -> list[UnfinishedOrder]:
    """Return a page of begun, unfinished orders, by id."""
    begun = col(Order.status).not_in([*ENDED, OrderStatus.SUBMITTED])
    # On its own, so that the index of unfinished orders serves it: for the order and the limit
    # PostgreSQL would walk years of ended orders by id.
    found = select(Order.id).where(begun, col(Order.id) > after).cte().prefix_with("MATERIALIZED")
    with reading() as session:
        orders = session.exec(
            select(Order).join(found, found.c.id == Order.id).order_by(found.c.id).limit(limit)
        ).all()
        return _as_unfinished(session, orders)


def as_unfinished(order: Order) -> UnfinishedOrder:
    """Return what recovery sees of this order."""
    with reading() as session:
        return _as_unfinished(session, [order])[0]


def _as_unfinished(session: Session, orders: Sequence[Order]) -> list[UnfinishedOrder]:
    records: dict[str, list[SagaRecord]] = {order.id: [] for order in orders}
    attempts = {order.id: order.attempt for order in orders}
    for record in session.exec(select(SagaRecord).where(col(SagaRecord.order_id).in_(records))):
        if record.attempt == attempts[record.order_id]:
            records[record.order_id].append(record)
    batches = {
        batch.run_id: batch.moved_at
        for batch in session.exec(
            select(Batch).where(col(Batch.run_id).in_({order.run_id for order in orders}))
        )
    }
    return [
        _unfinished(order, records[order.id], batches.get(order.run_id or "")) for order in orders
    ]


def _unfinished(
    order: Order, records: Sequence[SagaRecord], batch_moved_at: datetime | None
) -> UnfinishedOrder:
    moves = [order.updated_at, *(record.at for record in records)]
    if batch_moved_at is not None and order.status in BEFORE_PIVOT:
        moves.append(batch_moved_at)
    return UnfinishedOrder(
        id=order.id,
        attempt=order.attempt,
        status=order.status,
        run_id=order.run_id,
        wait_until=order.wait_until if order.status == OrderStatus.WAITING else None,
        moved_at=max(moves),
        asked_at=next((r.at for r in records if r.step == "prepare_order"), None),
        continuations=order.continuations,
        undo_tries=max((r.undo_tries for r in records if r.state in HOLDING), default=0),
        # A batch is asked about as a whole; hundreds of reminders would help nobody.
        reminded=order.reminded_attempt == order.attempt or batch_moved_at is not None,
    )
