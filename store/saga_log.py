"""The saga log of each order's steps, and the lock on orders.

The steps are registered, since the table of steps stands above, beside the tasks.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement
from sqlmodel import Session, col, select

from store.archived_orders import require_not_archived
from store.bulk import among, read_rows, update_rows
from store.errors import OrderNotFound
from store.models import Order, SagaRecord


class SagaOrder(NamedTuple):
    """What a step sees of an order."""

    id: str
    attempt: int
    status: str
    user_id: str
    redeem: bool
    payment_method: str
    currency: str
    copies: int
    total_cents: int | None
    points_redeemed: int
    due_cents: int | None
    courier_id: str | None
    error: str | None
    message: str | None


class StepRule(NamedTuple):
    """What the saga must know of a step.

    ``is_awaited`` returns whether an order's later steps wait for the step's record; ``has_undo``
    says whether it takes something that is to be given back.
    """

    name: str
    is_awaited: Callable[[SagaOrder], bool]
    has_undo: bool


_registered: list[StepRule] = []


def register_steps(rules: Sequence[StepRule]) -> None:
    """Register the steps in their order.

    `tasks/steps.py` does so when it is imported. A step waits for the one before it, so that a
    process left over from an earlier attempt cannot run ahead of the present one.
    """
    _registered[:] = rules


def steps() -> Sequence[StepRule]:
    """Return the registered steps in their order."""
    # Without its steps an order would seem to have taken nothing.
    if not _registered:
        raise RuntimeError("no steps are registered: import tasks.steps first")
    return _registered


def compensable() -> list[str]:
    """Return the names of the steps that have an undo."""
    return [step.name for step in steps() if step.has_undo]


def require_known(name: str) -> None:
    """Raise LookupError for a name without a registered step."""
    if name not in (step.name for step in steps()):
        raise LookupError(f"{name} is not in the table of steps (tasks/steps.py)")


_SAGA_ORDER = [getattr(Order, name) for name in SagaOrder._fields]


def lock_orders(session: Session, order_ids: Sequence[str]) -> dict[str, SagaOrder]:
    """Lock the orders and return them by id.

    They are locked in the order of their ids, so that two groups cannot deadlock.
    """
    rows = read_rows(
        session,
        select(*_SAGA_ORDER)
        .where(among(col(Order.id), order_ids))
        .order_by(col(Order.id))
        .with_for_update(),
    )
    return {row[0]: SagaOrder._make(row) for row in rows}


def lock_order(session: Session, order_id: str) -> SagaOrder:
    """Lock an order and return it.

    Raises:
        OrderArchived: the order was archived; a run of it may have waited for longer.
        OrderNotFound: no order has the id.
    """
    order = lock_orders(session, [order_id]).get(order_id)
    if order is None:
        require_not_archived(session, order_id)
        raise OrderNotFound(f"There is no order {order_id}")
    return order


def update_orders(
    session: Session, *conditions: ColumnElement[bool], **columns: object
) -> list[str]:
    """Update the orders that meet all conditions and return their ids.

    They are locked by id first, as in :func:`lock_orders`; an UPDATE alone locks them in any order.
    """
    matching = select(Order.id).where(*conditions).order_by(col(Order.id)).with_for_update()
    order_ids = [id_ for (id_,) in read_rows(session, matching)]
    update_rows(session, Order, [{"id": id_} for id_ in order_ids], **columns)
    return order_ids


class StepRecord(NamedTuple):
    """The saga log's record of a step in the present attempt."""

    order_id: str
    attempt: int
    step: str
    state: str
    result: dict[str, Any]
    at: datetime
    undo_result: dict[str, Any] | None
    undo_tries: int
    undo_error: str | None


_STEP_RECORD = [getattr(SagaRecord, name) for name in StepRecord._fields]


def records(session: Session, orders: Sequence[SagaOrder], of: Sequence[str]) -> list[StepRecord]:
    """Return the records of the orders' present attempts for these steps."""
    if not orders:
        return []
    attempt = {order.id: order.attempt for order in orders}
    found = read_rows(
        session,
        select(*_STEP_RECORD).where(
            among(col(SagaRecord.order_id), attempt), col(SagaRecord.step).in_(of)
        ),
    )
    made = map(StepRecord._make, found)
    return [record for record in made if record.attempt == attempt[record.order_id]]
