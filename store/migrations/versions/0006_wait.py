"""how each order and each batch waits, for a run that takes it over.

Revision: 0006.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    for table in ("orders", "batches"):
        with op.batch_alter_table(table) as altered:
            altered.add_column(sa.Column("wait", sa.String(length=16), nullable=True))


def downgrade() -> None:
    """Revert."""
    for table in ("orders", "batches"):
        with op.batch_alter_table(table) as altered:
            altered.drop_column("wait")
