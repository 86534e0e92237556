"""Alembic's entry: runs the migrations on the URL that ``store.database.migrate`` gives."""

from alembic import context
from sqlmodel import SQLModel

import store.models  # noqa: F401  (fills SQLModel.metadata)
from store.database import engine
from store.settings import settings


def run() -> None:
    """Run the migrations in one transaction."""
    url = context.config.attributes.get("url") or settings().database_url
    with engine(url).connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=SQLModel.metadata,
            render_as_batch=connection.dialect.name == "sqlite",
        )
        with context.begin_transaction():
            context.run_migrations()


run()
