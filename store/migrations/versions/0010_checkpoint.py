"""the audit's checkpoint, and indexes for `checkout list`.

An index that is already there is kept, so that a large shop may build it beforehand with CREATE
INDEX CONCURRENTLY, for which no checkout waits.

Revision: 0010.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

INDEXES = {
    "orders_by_age": ("orders", ["created_at", "id"]),
    "orders_by_customer": ("orders", ["user_id"]),
    "order_lines_by_book": ("order_lines", ["book_id"]),
}


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "audit_checkpoint",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("before", sa.DateTime(timezone=True), nullable=False),
        sa.Column("audited_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("full_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "checkpoint_copies",
        sa.Column("book_id", sa.String(64), primary_key=True),
        sa.Column("copies", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "checkpoint_points",
        sa.Column("customer_id", sa.String(64), primary_key=True),
        sa.Column("points", sa.BigInteger(), nullable=False),
    )
    for name, (table, columns) in INDEXES.items():
        op.create_index(name, table, columns, if_not_exists=True)


def downgrade() -> None:
    """Revert."""
    for name, (table, _) in INDEXES.items():
        op.drop_index(name, table)
    for table in ("checkpoint_points", "checkpoint_copies", "audit_checkpoint"):
        op.drop_table(table)
