"""Read orders from the database."""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

from sqlalchemy import func
from sqlmodel import col, select

from store.archived_orders import require_not_archived
from store.bulk import among, read_rows
from store.database import reading
from store.errors import OrderError, OrderNotFound, recorded_error
from store.models import Order, OrderLine, OrderStatus
from tasks.retries import retried


def read_order(order_id: str) -> Order:
    """Return the order as it stands.

    Raises:
        OrderNotFound: no order has the id.
        OrderArchived: the order was archived.
    """
    with reading() as session:
        order = session.get(Order, order_id)
        if order is None:
            require_not_archived(session, order_id)
            of_run = session.scalars(select(Order.id).where(Order.run_id == order_id).limit(2))
            raise OrderNotFound(_not_there(order_id, of_run.all()))
        return order


def _not_there(order_id: str, of_run: Sequence[str]) -> str:
    """Return why no order is found, naming the run of this id."""
    match of_run:
        case []:
            why = ", or its run has not begun yet. `checkout list` shows those there are."
        case [one]:
            why = f"; this is the id of the run of order {one}."
        case _:
            why = "; this is the id of a batch's run, and `checkout list` shows orders."
    return f"There is no order {order_id}{why}"


def recorded_among(order_ids: Collection[str]) -> set[str]:
    """Return those of the order ids that an order has."""
    with reading() as session:
        return set(session.exec(select(Order.id).where(among(col(Order.id), order_ids))))


def find_orders(
    *,
    id_part: str | None = None,
    status: OrderStatus | None = None,
    user_id: str | None = None,
    book_id: str | None = None,
    accepted_from: datetime | None = None,
    accepted_until: datetime | None = None,
    limit: int,
) -> list[Order]:
    """Return the newest orders that match all filters."""
    wanted = select(Order)
    if id_part is not None:
        wanted = wanted.where(col(Order.id).icontains(id_part, autoescape=True))
    if status is not None:
        wanted = wanted.where(col(Order.status) == status)
    if user_id is not None:
        wanted = wanted.where(col(Order.user_id) == user_id)
    if book_id is not None:
        with_book = select(OrderLine.order_id).where(col(OrderLine.book_id) == book_id)
        wanted = wanted.where(col(Order.id).in_(with_book))
    if accepted_from is not None:
        wanted = wanted.where(col(Order.created_at) >= accepted_from)
    if accepted_until is not None:
        wanted = wanted.where(col(Order.created_at) <= accepted_until)
    newest_first = (col(Order.created_at).desc(), col(Order.id).desc())
    with reading() as session:
        return list(session.exec(wanted.order_by(*newest_first).limit(limit)))


def count_orders(status: OrderStatus) -> int:
    """Return how many orders have the status."""
    with reading() as session:
        return (
            session.scalar(select(func.count(col(Order.id))).where(col(Order.status) == status))
            or 0
        )


def outcome_error(order: Order) -> OrderError:
    """Return the error that ended, or is ending, the order."""
    return recorded_error(order.error, order.message)


@retried
def statuses_of(order_ids: Iterable[str]) -> dict[str, str]:
    """Return the statuses of those orders that exist."""
    with reading() as session:
        found = read_rows(
            session, select(Order.id, Order.status).where(among(col(Order.id), order_ids))
        )
        return dict(map(tuple, found))
