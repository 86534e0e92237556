"""The tables of archived orders, and what is asked of them.

An archived order is in a file and in no other table.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Column
from sqlmodel import Field, Session, SQLModel, col, select

from store.bulk import among, read_rows
from store.database import reading
from store.errors import OrderArchived
from store.models import ID_LENGTH, UtcDateTime, utc_now


class Archive(SQLModel, table=True):
    """A file of archived orders, one month's or the rest of one.

    It is planned before its file is written. ``from_at`` and ``until_at`` bound when its orders
    ended, ``accepted_from`` is when the first of them was accepted. ``sha256`` is that of the
    file, ``sums`` are those of its trailer, ``archived`` counts the orders that were deleted from
    the other tables.
    """

    __tablename__ = "archives"

    id: int | None = Field(default=None, primary_key=True)
    location: str = Field(unique=True)
    month: str = Field(max_length=7)
    from_at: datetime = Field(sa_type=UtcDateTime)
    until_at: datetime = Field(sa_type=UtcDateTime)
    planned_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)
    written_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    sha256: str | None = Field(default=None, max_length=64)
    sums: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    accepted_from: datetime | None = Field(default=None, sa_type=UtcDateTime)
    verified_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    deleted_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    archived: int | None = None


class ArchivedOrder(SQLModel, table=True):
    """An order that is in an archive and in no other table.

    It is kept for ever, so that its id is never taken for a new order's.
    """

    __tablename__ = "archived_orders"

    order_id: str = Field(primary_key=True, max_length=ID_LENGTH)
    archive_id: int = Field(foreign_key="archives.id", index=True)


def require_not_archived(session: Session, order_id: str) -> None:
    """Raise OrderArchived if an archive has the order.

    Raises:
        OrderArchived: it has.
    """
    if session.get(ArchivedOrder, order_id) is not None:
        raise archived(order_id)


def archived(order_id: str) -> OrderArchived:
    """Return the refusal of whatever is asked of an archived order."""
    return OrderArchived(
        f"orderId: {order_id} belongs to an order that ended long ago and is archived; "
        f"`checkout show {order_id}` names its file. Use another orderId for another order. "
        "Nothing was changed."
    )


def archive_of(order_id: str) -> Archive | None:
    """Return the archive that has the order, if one does."""
    with reading() as session:
        return session.exec(
            select(Archive)
            .join(ArchivedOrder, col(ArchivedOrder.archive_id) == col(Archive.id))
            .where(ArchivedOrder.order_id == order_id)
        ).first()


def archived_among(
    session: Session, order_ids: Sequence[str], archive_id: int | None = None
) -> set[str]:
    """Return those of the order ids that an archive has.

    Args:
        session: The transaction.
        order_ids: The ids.
        archive_id: The archive; left out, any.
    """
    wanted = select(ArchivedOrder.order_id).where(among(col(ArchivedOrder.order_id), order_ids))
    if archive_id is not None:
        wanted = wanted.where(col(ArchivedOrder.archive_id) == archive_id)
    return {id_ for (id_,) in read_rows(session, wanted)}
