"""the store's tables.

Revision: 0001.
"""

import sqlalchemy as sa
from alembic import op
from sqlmodel.sql.sqltypes import AutoString

from store.models import UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "books",
        sa.Column("id", AutoString(length=64), nullable=False),
        sa.Column("title", AutoString(), nullable=False),
        sa.Column("price_cents", sa.BigInteger(), nullable=True),
        sa.Column("quantity", sa.Integer(), nullable=False),
        sa.Column("initial_quantity", sa.Integer(), nullable=False),
        sa.CheckConstraint("quantity >= 0", name="books_quantity_not_negative"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "couriers",
        sa.Column("id", AutoString(length=64), nullable=False),
        sa.Column("name", AutoString(), nullable=False),
        sa.Column("capacity_copies", sa.Integer(), nullable=False),
        sa.Column("assigned_copies", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "assigned_copies >= 0 AND assigned_copies <= capacity_copies",
            name="couriers_within_capacity",
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "customers",
        sa.Column("id", AutoString(length=64), nullable=False),
        sa.Column("name", AutoString(), nullable=False),
        sa.Column("points", sa.Integer(), nullable=False),
        sa.Column("initial_points", sa.Integer(), nullable=False),
        sa.Column("payment_method", AutoString(length=64), nullable=False),
        sa.CheckConstraint("points >= 0", name="customers_points_not_negative"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "ledger",
        sa.Column("key", AutoString(length=160), nullable=False),
        sa.Column("order_id", AutoString(length=64), nullable=False),
        sa.Column("kind", AutoString(length=16), nullable=False),
        sa.Column("status", AutoString(length=16), nullable=False),
        sa.Column("amount_cents", sa.BigInteger(), nullable=False),
        sa.Column("currency", AutoString(length=3), nullable=False),
        sa.Column("payment_method", AutoString(length=64), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.CheckConstraint("amount_cents >= 0", name="ledger_amount_not_negative"),
        sa.PrimaryKeyConstraint("key"),
    )
    with op.batch_alter_table("ledger", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_ledger_order_id"), ["order_id"], unique=False)

    op.create_table(
        "notifications",
        sa.Column("key", AutoString(length=160), nullable=False),
        sa.Column("order_id", AutoString(length=64), nullable=False),
        sa.Column("subject", AutoString(), nullable=False),
        sa.Column("body", AutoString(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("published_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    with op.batch_alter_table("notifications", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_notifications_order_id"), ["order_id"], unique=False)

    op.create_table(
        "order_queue",
        sa.Column("id", AutoString(length=36), nullable=False),
        sa.Column("body", AutoString(), nullable=False),
        sa.Column("visible_at", UtcDateTime(), nullable=False),
        sa.Column("receive_count", sa.Integer(), nullable=False),
        sa.Column("sent_at", UtcDateTime(), nullable=False),
        sa.Column("dead_at", UtcDateTime(), nullable=True),
        sa.Column("dead_reason", AutoString(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("order_queue", schema=None) as batch_op:
        batch_op.create_index(
            "order_queue_visible",
            ["visible_at"],
            unique=False,
            postgresql_where=sa.text("dead_at IS NULL"),
        )

    op.create_table(
        "orders",
        sa.Column("id", AutoString(length=64), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("status", AutoString(length=32), nullable=False),
        sa.Column("run_id", AutoString(length=36), nullable=True),
        sa.Column("user_id", AutoString(length=64), nullable=False),
        sa.Column("redeem", sa.Boolean(), nullable=False),
        sa.Column("payment_method", AutoString(length=64), nullable=False),
        sa.Column("currency", AutoString(length=3), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("copies", sa.Integer(), nullable=False),
        sa.Column("total_cents", sa.BigInteger(), nullable=True),
        sa.Column("points_redeemed", sa.Integer(), nullable=False),
        sa.Column("due_cents", sa.BigInteger(), nullable=True),
        sa.Column("courier_id", AutoString(length=64), nullable=True),
        sa.Column("wait_until", UtcDateTime(), nullable=True),
        sa.Column("error", AutoString(length=64), nullable=True),
        sa.Column("message", AutoString(), nullable=True),
        sa.Column("continuations", sa.Integer(), nullable=False),
        sa.Column("continuing", sa.Integer(), nullable=False),
        sa.Column("announced_attempt", sa.Integer(), nullable=False),
        sa.Column("reminded_attempt", sa.Integer(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("orders", schema=None) as batch_op:
        batch_op.create_index("orders_by_run", ["run_id"], unique=False)
        batch_op.create_index(
            "orders_unfinished",
            ["status", "updated_at"],
            unique=False,
            postgresql_where=sa.text("status NOT IN ('dispatched', 'rejected', 'compensated')"),
        )

    op.create_table(
        "decisions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("order_id", AutoString(length=64), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("outcome", AutoString(length=32), nullable=False),
        sa.Column("courier_id", AutoString(length=64), nullable=True),
        sa.Column("reason", AutoString(), nullable=False),
        sa.Column("decided_by", AutoString(length=64), nullable=False),
        sa.Column("accepted", sa.Boolean(), nullable=False),
        sa.Column("decided_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["order_id"],
            ["orders.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("decisions", schema=None) as batch_op:
        batch_op.create_index(
            "decisions_one_accepted",
            ["order_id", "attempt"],
            unique=True,
            postgresql_where=sa.text("accepted"),
        )
        batch_op.create_index(batch_op.f("ix_decisions_order_id"), ["order_id"], unique=False)

    op.create_table(
        "order_lines",
        sa.Column("order_id", AutoString(length=64), nullable=False),
        sa.Column("book_id", AutoString(length=64), nullable=False),
        sa.Column("quantity", sa.Integer(), nullable=False),
        sa.Column("unit_price_cents", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["order_id"],
            ["orders.id"],
        ),
        sa.PrimaryKeyConstraint("order_id", "book_id"),
    )
    op.create_table(
        "saga_log",
        sa.Column("order_id", AutoString(length=64), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("step", AutoString(length=32), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("result", sa.JSON(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("undone_at", UtcDateTime(), nullable=True),
        sa.Column("undo_result", sa.JSON(), nullable=True),
        sa.Column("undo_tries", sa.Integer(), nullable=False),
        sa.Column("undo_error", AutoString(), nullable=True),
        sa.ForeignKeyConstraint(
            ["order_id"],
            ["orders.id"],
        ),
        sa.PrimaryKeyConstraint("order_id", "attempt", "step"),
    )


def downgrade() -> None:
    """Take back."""
    op.drop_table("saga_log")
    op.drop_table("order_lines")
    with op.batch_alter_table("decisions", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_decisions_order_id"))
        batch_op.drop_index(
            "decisions_one_accepted",
            postgresql_where=sa.text("accepted"),
        )

    op.drop_table("decisions")
    with op.batch_alter_table("orders", schema=None) as batch_op:
        batch_op.drop_index(
            "orders_unfinished",
            postgresql_where=sa.text("status NOT IN ('dispatched', 'rejected', 'compensated')"),
        )
        batch_op.drop_index("orders_by_run")

    op.drop_table("orders")
    with op.batch_alter_table("order_queue", schema=None) as batch_op:
        batch_op.drop_index(
            "order_queue_visible",
            postgresql_where=sa.text("dead_at IS NULL"),
        )

    op.drop_table("order_queue")
    with op.batch_alter_table("notifications", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_notifications_order_id"))

    op.drop_table("notifications")
    with op.batch_alter_table("ledger", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_ledger_order_id"))

    op.drop_table("ledger")
    op.drop_table("customers")
    op.drop_table("couriers")
    op.drop_table("books")
