"""what asked for an order's attempt, in place of a count of restarts.

Revision: 0002.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("orders") as orders:
        orders.add_column(sa.Column("asked_by", sa.String(length=36), nullable=True))
        orders.drop_column("continuing")


def downgrade() -> None:
    """Revert."""
    with op.batch_alter_table("orders") as orders:
        orders.add_column(
            sa.Column("continuing", sa.Integer(), nullable=False, server_default=sa.text("0"))
        )
        orders.drop_column("asked_by")
