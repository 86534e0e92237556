"""Alembic's entry: runs the migrations on the URL that ``store.database.migrate`` gives.

All of them are one transaction: a database is at the old version or at the new one, and whoever
migrates at the same moment waits and finds it done.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from alembic import context
from sqlalchemy import Connection, text
from sqlmodel import SQLModel

import store.models  # noqa: F401  (fills SQLModel.metadata)
from store.database import engine
from store.sessions import MIGRATION, limit
from store.settings import settings

MIGRATION_LOCK = 5_370_190
"""The advisory lock of whoever migrates; any number that nobody else takes."""


def run() -> None:
    """Run the migrations in one transaction."""
    url = context.config.attributes.get("url") or settings().database_url
    with engine(url).connect() as connection:
        is_sqlite = connection.dialect.name == "sqlite"
        context.configure(
            connection=connection,
            target_metadata=SQLModel.metadata,
            render_as_batch=is_sqlite,
            transactional_ddl=True,
        )
        with _sqlite_tables_replaceable(connection), context.begin_transaction():
            if not is_sqlite:
                # Another migration may take its time; it is over when this one has the lock.
                limit(connection, MIGRATION._replace(lock_seconds=0))
                connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
                limit(connection, MIGRATION)
            context.run_migrations()
            if is_sqlite and (broken := connection.execute(text("PRAGMA foreign_key_check")).all()):
                raise RuntimeError(
                    f"the migration would leave rows without what they name: {broken}"
                )


@contextmanager
def _sqlite_tables_replaceable(connection: Connection) -> Iterator[None]:
    """Let a table be replaced on SQLite while other tables' rows refer to it.

    Alembic changes a SQLite table by making it anew. Dropping the old one counts as deleting its
    rows, which the foreign keys forbid. The switch has no effect inside a transaction.
    """
    if connection.dialect.name != "sqlite":
        yield
        return
    driver = connection.connection.driver_connection
    if driver is None:
        raise AssertionError("an open connection has a driver's")
    driver.execute("PRAGMA foreign_keys = OFF")
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys = ON")


run()
