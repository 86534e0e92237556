"""the store's tables.

It is the first one, and has the number of the last of those that it replaces: a database that they
have brought there has the same tables.

Revision: 0006.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = None
branch_labels = None
depends_on = None

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "books",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("title", sa.String(), nullable=False),
        sa.Column("price_cents", sa.BigInteger(), nullable=True),
        sa.Column("quantity", sa.Integer(), nullable=False),
        sa.Column("initial_quantity", sa.Integer(), nullable=False),
        sa.CheckConstraint("quantity >= 0", name="books_quantity_not_negative"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "couriers",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
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
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("points", sa.Integer(), nullable=False),
        sa.Column("initial_points", sa.Integer(), nullable=False),
        sa.Column("payment_method", sa.String(64), nullable=False),
        sa.CheckConstraint("points >= 0", name="customers_points_not_negative"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "ledger",
        sa.Column("key", sa.String(160), nullable=False),
        sa.Column("order_id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("amount_cents", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.String(3), nullable=False),
        sa.Column("payment_method", sa.String(64), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.CheckConstraint("amount_cents >= 0", name="ledger_amount_not_negative"),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_index("ix_ledger_order_id", "ledger", ["order_id"])
    op.create_table(
        "notifications",
        sa.Column("key", sa.String(160), nullable=False),
        sa.Column("order_id", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("body", sa.String(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("published_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_index("ix_notifications_order_id", "notifications", ["order_id"])
    op.create_table(
        "order_queue",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("body", sa.String(), nullable=False),
        sa.Column("visible_at", MOMENT, nullable=False),
        sa.Column("receive_count", sa.Integer(), nullable=False),
        sa.Column("sent_at", MOMENT, nullable=False),
        sa.Column("dead_at", MOMENT, nullable=True),
        sa.Column("dead_reason", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "order_queue_visible",
        "order_queue",
        ["visible_at"],
        postgresql_where=sa.text("dead_at IS NULL"),
    )
    op.create_table(
        "batches",
        sa.Column("run_id", sa.String(36), nullable=False),
        sa.Column("source", sa.String(), nullable=True),
        sa.Column("started_at", MOMENT, nullable=False),
        sa.Column("moved_at", MOMENT, nullable=False),
        sa.Column("wait", sa.String(16), nullable=True),
        sa.PrimaryKeyConstraint("run_id"),
    )
    op.create_table(
        "orders",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("run_id", sa.String(36), nullable=True),
        sa.Column("user_id", sa.String(64), nullable=False),
        sa.Column("redeem", sa.Boolean(), nullable=False),
        sa.Column("payment_method", sa.String(64), nullable=False),
        sa.Column("currency", sa.String(3), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("copies", sa.Integer(), nullable=False),
        sa.Column("total_cents", sa.BigInteger(), nullable=True),
        sa.Column("points_redeemed", sa.Integer(), nullable=False),
        sa.Column("due_cents", sa.BigInteger(), nullable=True),
        sa.Column("courier_id", sa.String(64), nullable=True),
        sa.Column("wait_until", MOMENT, nullable=True),
        sa.Column("error", sa.String(64), nullable=True),
        sa.Column("message", sa.String(), nullable=True),
        sa.Column("continuations", sa.Integer(), nullable=False),
        sa.Column("announced_attempt", sa.Integer(), nullable=False),
        sa.Column("reminded_attempt", sa.Integer(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.Column("wait", sa.String(16), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("orders_by_run", "orders", ["run_id", "status", "id"])
    op.create_index(
        "orders_unfinished",
        "orders",
        ["status", "updated_at"],
        postgresql_where=sa.text("status NOT IN ('dispatched', 'rejected', 'compensated')"),
    )
    op.create_index(
        "orders_ended",
        "orders",
        ["status", "updated_at"],
        postgresql_where=sa.text("status IN ('dispatched', 'rejected', 'compensated')"),
    )
    op.create_table(
        "attempts",
        sa.Column("order_id", sa.String(64), nullable=False),
        sa.Column("asked_by", sa.String(36), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("began_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["order_id"], ["orders.id"]),
        sa.PrimaryKeyConstraint("order_id", "asked_by"),
    )
    op.create_table(
        "decisions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("order_id", sa.String(64), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.String(32), nullable=False),
        sa.Column("courier_id", sa.String(64), nullable=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("decided_by", sa.String(64), nullable=False),
        sa.Column("accepted", sa.Boolean(), nullable=False),
        sa.Column("decided_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["order_id"], ["orders.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_decisions_order_id", "decisions", ["order_id"])
    op.create_index(
        "decisions_one_accepted",
        "decisions",
        ["order_id", "attempt"],
        unique=True,
        postgresql_where=sa.text("accepted"),
    )
    op.create_table(
        "order_lines",
        sa.Column("order_id", sa.String(64), nullable=False),
        sa.Column("book_id", sa.String(64), nullable=False),
        sa.Column("quantity", sa.Integer(), nullable=False),
        sa.Column("unit_price_cents", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["order_id"], ["orders.id"]),
        sa.PrimaryKeyConstraint("order_id", "book_id"),
    )
    op.create_table(
        "saga_log",
        sa.Column("order_id", sa.String(64), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("step", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("result", sa.JSON(), nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sa.Column("undone_at", MOMENT, nullable=True),
        sa.Column("undo_result", sa.JSON(), nullable=True),
        sa.Column("undo_tries", sa.Integer(), nullable=False),
        sa.Column("undo_error", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["order_id"], ["orders.id"]),
        sa.PrimaryKeyConstraint("order_id", "attempt", "step"),
    )


def downgrade() -> None:
    """Revert."""
    for table in (
        "saga_log",
        "order_lines",
        "decisions",
        "attempts",
        "orders",
        "batches",
        "order_queue",
        "notifications",
        "ledger",
        "customers",
        "couriers",
        "books",
    ):
        op.drop_table(table)
