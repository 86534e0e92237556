"""batch runs, and their orders by status.

Revision: 0003.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "batches",
        sa.Column("run_id", sa.String(length=36), primary_key=True),
        sa.Column("source", sa.String(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("moved_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.drop_index("orders_by_run", table_name="orders")
    op.create_index("orders_by_run", "orders", ["run_id", "status", "id"])


def downgrade() -> None:
    """Revert."""
    op.drop_index("orders_by_run", table_name="orders")
    op.create_index("orders_by_run", "orders", ["run_id"])
    op.drop_table("batches")
