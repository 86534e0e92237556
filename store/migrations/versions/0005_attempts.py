"""what asked for each attempt of an order, in place of the last one's alone.

Revision: 0005.
"""

import sqlalchemy as sa
from alembic import op
from sqlmodel.sql.sqltypes import AutoString

from store.models import UtcDateTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "attempts",
        sa.Column("order_id", AutoString(length=64), nullable=False),
        sa.Column("asked_by", AutoString(length=36), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("began_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["order_id"], ["orders.id"]),
        sa.PrimaryKeyConstraint("order_id", "asked_by"),
    )
    op.execute(
        "INSERT INTO attempts (order_id, asked_by, attempt, began_at) "
        "SELECT id, asked_by, attempt, updated_at FROM orders WHERE asked_by IS NOT NULL"
    )
    with op.batch_alter_table("orders") as orders:
        orders.drop_column("asked_by")


def downgrade() -> None:
    """Revert."""
    with op.batch_alter_table("orders") as orders:
        orders.add_column(sa.Column("asked_by", sa.String(length=36), nullable=True))
    op.execute(
        "UPDATE orders SET asked_by = (SELECT asked_by FROM attempts "
        "WHERE attempts.order_id = orders.id AND attempts.attempt = orders.attempt)"
    )
    op.drop_table("attempts")
