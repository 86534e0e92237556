"""no price below zero.

Revision: 0012.
"""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

CHECK = "books_price_not_negative"


def upgrade() -> None:
    """Apply.

    A book that has such a price is not sold any more. Its orders gave points to their customers.
    """
    op.execute("UPDATE books SET price_cents = NULL WHERE price_cents < 0")
    op.create_check_constraint(CHECK, "books", "price_cents >= 0")


def downgrade() -> None:
    """Revert."""
    op.drop_constraint(CHECK, "books")
