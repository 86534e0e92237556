"""The tables of the store's database.

Money is whole minor units (cents), time is UTC, a quantity is whole copies.
"""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, BigInteger, CheckConstraint, Column, Dialect, Index, String, text
from sqlalchemy import DateTime as SqlDateTime
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel

ID_LENGTH = 64


def in_utc(moment: datetime) -> datetime:
    """Return the moment in UTC.

    Raises:
        ValueError: it has no time zone.
    """
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone; use store.models.utc_now()")
    return moment.astimezone(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC, whatever the time zone of the session."""

    impl = SqlDateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Refuse a naive time, store the rest as UTC."""
        return None if value is None else in_utc(value)

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Return the time in UTC."""
        # Nearly all are one of these two; `astimezone` would be a tenth of a batch's Python.
        return value if value is None or value.tzinfo is UTC else value.astimezone(UTC)


def utc_now() -> datetime:
    """Return the present moment, with its zone."""
    return datetime.now(UTC)


class OrderStatus(StrEnum):
    """The status of an order.

    The database's answer to this decides, not a Prefect state.
    """

    SUBMITTED = "submitted"
    STARTED = "started"
    WAITING = "waiting"
    DISPATCHING = "dispatching"
    DISPATCHED = "dispatched"
    COMPENSATING = "compensating"
    COMPENSATED = "compensated"
    COMPENSATION_FAILED = "compensation_failed"
    REJECTED = "rejected"


BEFORE_PIVOT = (OrderStatus.SUBMITTED, OrderStatus.STARTED, OrderStatus.WAITING)
"""A failure in these is compensated."""
GOING_FORWARD = (
    OrderStatus.STARTED,
    OrderStatus.WAITING,
    OrderStatus.DISPATCHING,
    OrderStatus.DISPATCHED,
)
"""A step may be done, or is done, in these."""
UNDOING = (OrderStatus.COMPENSATING, OrderStatus.COMPENSATION_FAILED)
"""An undo may be done in these."""
FAILED = (OrderStatus.REJECTED, OrderStatus.COMPENSATED)
"""An order in these ended without a dispatch; a person may begin a new attempt."""
ENDED = (OrderStatus.DISPATCHED, *FAILED)
"""Nothing happens to an order in these, until a person begins a new attempt."""


class StepState(StrEnum):
    """The state of a step in the saga log.

    ``void`` is an intent that was refused, with no effect.
    """

    INTENDED = "intended"
    DONE = "done"
    VOID = "void"
    UNDONE = "undone"


HOLDING = (StepState.INTENDED, StepState.DONE)
"""A step in these has, or may have, an effect that is not undone."""


class Book(SQLModel, table=True):
    """A title of the catalogue.

    ``initial_quantity`` is every copy that ever came in (I1).
    """

    __tablename__ = "books"
    __table_args__ = (
        CheckConstraint("quantity >= 0", name="books_quantity_not_negative"),
        CheckConstraint("price_cents >= 0", name="books_price_not_negative"),
    )

    id: str = Field(primary_key=True, max_length=ID_LENGTH)
    title: str
    price_cents: int | None = Field(default=None, sa_type=BigInteger)
    quantity: int
    initial_quantity: int


class Customer(SQLModel, table=True):
    """A customer and their points.

    ``initial_points`` is every point that was ever granted (I2).
    """

    __tablename__ = "customers"
    __table_args__ = (CheckConstraint("points >= 0", name="customers_points_not_negative"),)

    id: str = Field(primary_key=True, max_length=ID_LENGTH)
    name: str
    points: int
    initial_points: int
    payment_method: str = Field(max_length=ID_LENGTH)


class Courier(SQLModel, table=True):
    """A courier and the accepted copies not yet handed over."""

    __tablename__ = "couriers"
    __table_args__ = (
        CheckConstraint(
            "assigned_copies >= 0 AND assigned_copies <= capacity_copies",
            name="couriers_within_capacity",
        ),
    )

    id: str = Field(primary_key=True, max_length=ID_LENGTH)
    name: str
    capacity_copies: int
    assigned_copies: int = 0


class Order(SQLModel, table=True):
    """One order, with its input, owner, attempt and status.

    The owner is a flow run.

    ``wait`` is how its run waits for a courier, ``pause`` or ``suspend``; a run that takes the
    order over waits in the same way.

    ``submitted_by`` is the name of the front end that submitted it, if one did.
    """

    __tablename__ = "orders"
    __table_args__ = (
        Index("orders_by_run", "run_id", "status", "id"),
        Index(
            "orders_unfinished",
            "status",
            "updated_at",
            postgresql_where=text("status NOT IN ('dispatched', 'rejected', 'compensated')"),
        ),
        # An order comes into it once, when it ends: the figures of the last hour cost no more in a
        # shop with years of orders.
        Index(
            "orders_ended",
            "status",
            "updated_at",
            postgresql_where=text("status IN ('dispatched', 'rejected', 'compensated')"),
        ),
        Index("orders_by_age", "created_at", "id"),
        Index("orders_by_customer", "user_id"),
    )

    id: str = Field(primary_key=True, max_length=ID_LENGTH)
    attempt: int = 1
    status: str = Field(max_length=32)
    run_id: str | None = Field(default=None, max_length=36)
    user_id: str = Field(max_length=ID_LENGTH)
    redeem: bool
    payment_method: str = Field(max_length=ID_LENGTH)
    currency: str = Field(max_length=3)
    request: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    copies: int
    total_cents: int | None = Field(default=None, sa_type=BigInteger)
    points_redeemed: int = 0
    due_cents: int | None = Field(default=None, sa_type=BigInteger)
    courier_id: str | None = Field(default=None, max_length=ID_LENGTH)
    wait: str | None = Field(default=None, max_length=16)
    wait_until: datetime | None = Field(default=None, sa_type=UtcDateTime)
    error: str | None = Field(default=None, max_length=ID_LENGTH)
    message: str | None = None
    continuations: int = 0
    announced_attempt: int = 0
    reminded_attempt: int = 0
    created_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)
    updated_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)
    submitted_by: str | None = Field(default=None, max_length=ID_LENGTH)


class Attempt(SQLModel, table=True):
    """A second or later attempt of an order, one for each request.

    A late request counts as well.

    ``asked_by`` is the id of the state in which Prefect keeps a person's Retry, or that of the
    batch's run that was told to take failed orders again.

    ``previous_status`` and the like are how the attempt before this one ended, since the order's
    row is that of its present attempt. They are missing for attempts that began before version
    0009.
    """

    __tablename__ = "attempts"

    order_id: str = Field(primary_key=True, foreign_key="orders.id", max_length=ID_LENGTH)
    asked_by: str = Field(primary_key=True, max_length=36)
    attempt: int
    began_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)
    previous_status: str | None = Field(default=None, max_length=32)
    previous_error: str | None = Field(default=None, max_length=ID_LENGTH)
    previous_currency: str | None = Field(default=None, max_length=3)
    previous_ended_at: datetime | None = Field(default=None, sa_type=UtcDateTime)


class Batch(SQLModel, table=True):
    """A flow run that carries many orders.

    ``moved_at`` is its last heartbeat: one order may stand still while the others move.
    ``listens_until`` is when it stops claiming what comes in; none for one that does not listen.
    """

    __tablename__ = "batches"

    run_id: str = Field(primary_key=True, max_length=36)
    source: str | None = None
    wait: str | None = Field(default=None, max_length=16)
    started_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)
    moved_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)
    listens_until: datetime | None = Field(default=None, sa_type=UtcDateTime)


class OrderLine(SQLModel, table=True):
    """Copies of one title in an order.

    The unit price is set by ``calculate_total``.
    """

    __tablename__ = "order_lines"
    __table_args__ = (Index("order_lines_by_book", "book_id"),)

    order_id: str = Field(primary_key=True, foreign_key="orders.id", max_length=ID_LENGTH)
    book_id: str = Field(primary_key=True, max_length=ID_LENGTH)
    quantity: int
    unit_price_cents: int | None = Field(default=None, sa_type=BigInteger)


class SagaRecord(SQLModel, table=True):
    """The saga log's record of a step in an order's attempt.

    ``result`` holds just what the undo needs. An undone step is marked, never erased; a failed
    undo keeps its error and the number of its tries.
    """

    __tablename__ = "saga_log"

    order_id: str = Field(primary_key=True, foreign_key="orders.id", max_length=ID_LENGTH)
    attempt: int = Field(primary_key=True)
    step: str = Field(primary_key=True, max_length=32)
    state: str = Field(sa_column=Column(String(16), nullable=False))
    result: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    at: datetime = Field(sa_type=UtcDateTime)
    undone_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    undo_result: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON))
    undo_tries: int = 0
    undo_error: str | None = None


class Decision(SQLModel, table=True):
    """A courier's answer to an order.

    At most one of an attempt is accepted, and it is the pivot.

    An answer that came too late, or second, is kept with ``accepted`` false and holds no
    capacity of its courier.
    """

    __tablename__ = "decisions"
    __table_args__ = (
        Index(
            "decisions_one_accepted",
            "order_id",
            "attempt",
            unique=True,
            postgresql_where=text("accepted"),
        ),
    )

    id: int | None = Field(default=None, primary_key=True)
    order_id: str = Field(foreign_key="orders.id", max_length=ID_LENGTH, index=True)
    attempt: int
    outcome: str = Field(max_length=32)
    courier_id: str | None = Field(default=None, max_length=ID_LENGTH)
    reason: str = ""
    decided_by: str = Field(max_length=ID_LENGTH)
    accepted: bool
    decided_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)


class QueuedMessage(SQLModel, table=True):
    """A message of the embedded order queue.

    One with ``dead_at`` is a dead letter.
    """

    __tablename__ = "order_queue"
    __table_args__ = (
        Index("order_queue_visible", "visible_at", postgresql_where=text("dead_at IS NULL")),
    )

    id: str = Field(primary_key=True, max_length=36)
    body: str
    visible_at: datetime = Field(sa_type=UtcDateTime)
    receive_count: int = 0
    sent_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)
    dead_at: datetime | None = Field(default=None, sa_type=UtcDateTime)
    dead_reason: str | None = None


class Notification(SQLModel, table=True):
    """A message published to the embedded topic.

    ``key`` makes publishing again harmless.
    """

    __tablename__ = "notifications"

    key: str = Field(primary_key=True, max_length=160)
    order_id: str = Field(max_length=ID_LENGTH, index=True)
    subject: str
    body: str
    data: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    published_at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)


class LedgerEntry(SQLModel, table=True):
    """A movement of money at the embedded payment gateway.

    ``key`` is the idempotency key.

    The gateway is a party of its own: it writes in its own transactions, as a payment provider
    would, and the steps read its records only through it. The table keeps its name: workers of the
    version before use it during an update, and archives have it.
    """

    __tablename__ = "ledger"
    __table_args__ = (CheckConstraint("amount_cents >= 0", name="ledger_amount_not_negative"),)

    key: str = Field(primary_key=True, max_length=160)
    order_id: str = Field(max_length=ID_LENGTH, index=True)
    kind: str = Field(max_length=16)
    status: str = Field(max_length=16)
    amount_cents: int = Field(sa_type=BigInteger)
    currency: str = Field(max_length=3)
    payment_method: str = Field(max_length=ID_LENGTH)
    tries: int = 1
    at: datetime = Field(default_factory=utc_now, sa_type=UtcDateTime)
