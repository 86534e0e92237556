"""ended orders by status and time.

Revision: 0004.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    ended = sa.text("status IN ('dispatched', 'rejected', 'compensated')")
    op.create_index(
        "orders_ended",
        "orders",
        ["status", "updated_at"],
        postgresql_where=ended,
    )


def downgrade() -> None:
    """Revert."""
    op.drop_index("orders_ended", table_name="orders")
