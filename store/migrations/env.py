"""Alembic's entry, which runs migrations for ``store.database.migrate``.

All of them are one transaction: a database is at the old version or at the new one, and a
concurrent migration waits and finds it done.
"""

from alembic import context
from sqlalchemy import text
from sqlmodel import SQLModel

import store.archived_orders
import store.checkpoint
import store.models  # noqa: F401  (these fill SQLModel.metadata)
from store.database import engine
from store.sessions import MIGRATION, limit
from store.settings import settings

MIGRATION_LOCK = 5_370_190
"""The advisory lock of whoever migrates; any number that nobody else takes."""


def run() -> None:
    """Run the migrations in one transaction."""
    url = context.config.attributes.get("url") or settings().database_url
    with engine(url).connect() as connection:
        context.configure(connection=connection, target_metadata=SQLModel.metadata)
        with context.begin_transaction():
            # Another migration may take its time; it is over when this one has the lock.
            limit(connection, MIGRATION._replace(lock_seconds=0))
            connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
            limit(connection, MIGRATION)
            context.run_migrations()


run()
