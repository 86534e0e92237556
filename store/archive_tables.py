"""The tables of archived orders."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Column
from sqlmodel import Field, SQLModel

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
