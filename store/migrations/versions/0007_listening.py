"""the end of a batch's listening, and who submitted an order.

Revision: 0007.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column("batches", sa.Column("listens_until", sa.DateTime(timezone=True), nullable=True))
    op.add_column("orders", sa.Column("submitted_by", sa.String(64), nullable=True))


def downgrade() -> None:
    """Revert."""
    op.drop_column("orders", "submitted_by")
    op.drop_column("batches", "listens_until")
