"""The tables of the audit's checkpoint.

Apart from the other tables, since no step reads or writes them.
"""

from datetime import datetime

from sqlalchemy import BigInteger
from sqlmodel import Field, Session, SQLModel, delete

from store.models import ID_LENGTH, UtcDateTime

ONLY_ROW = 1


class AuditCheckpoint(SQLModel, table=True):
    """The last clean audit, in one row.

    Orders that ended before ``before`` were audited. ``full_at`` is when all orders were audited
    last. Without a row the next audit reads all orders.
    """

    __tablename__ = "audit_checkpoint"

    id: int = Field(default=ONLY_ROW, primary_key=True)
    before: datetime = Field(sa_type=UtcDateTime)
    audited_at: datetime = Field(sa_type=UtcDateTime)
    full_at: datetime = Field(sa_type=UtcDateTime)


class CheckpointCopies(SQLModel, table=True):
    """Copies of a book in orders dispatched before the checkpoint."""

    __tablename__ = "checkpoint_copies"

    book_id: str = Field(primary_key=True, max_length=ID_LENGTH)
    copies: int = Field(sa_type=BigInteger)


class CheckpointPoints(SQLModel, table=True):
    """Points that a customer spent on orders dispatched before the checkpoint."""

    __tablename__ = "checkpoint_points"

    customer_id: str = Field(primary_key=True, max_length=ID_LENGTH)
    points: int = Field(sa_type=BigInteger)


def forget_checkpoint(session: Session) -> None:
    """Make the next audit a full one.

    For a transaction that changes what the checkpoint has counted.
    """
    session.execute(delete(AuditCheckpoint))
