"""how the attempt before a later one ended.

Revision: 0009.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply.

    Of an attempt that ended before, only the currency is known, where the embedded gateway has
    taken its money.
    """
    op.add_column("attempts", sa.Column("previous_status", sa.String(32), nullable=True))
    op.add_column("attempts", sa.Column("previous_error", sa.String(64), nullable=True))
    op.add_column("attempts", sa.Column("previous_currency", sa.String(3), nullable=True))
    op.add_column(
        "attempts", sa.Column("previous_ended_at", sa.DateTime(timezone=True), nullable=True)
    )
    op.execute(
        "UPDATE attempts SET previous_currency = ledger.currency FROM ledger "
        "WHERE ledger.key = attempts.order_id || ':' || (attempts.attempt - 1)"
    )


def downgrade() -> None:
    """Revert."""
    for name in ("previous_ended_at", "previous_currency", "previous_error", "previous_status"):
        op.drop_column("attempts", name)
