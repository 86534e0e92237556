"""The migrations make the tables that the models describe, and can be taken back."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect
from sqlmodel import SQLModel

import store.database
import store.models
from deployments.embedded import EmbeddedPostgres
from store.database import engine, migrate
from tests.conftest import KINDS


@pytest.fixture(params=KINDS)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without tables."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'empty.db'}"
        yield url
        engine(url).dispose()
        return
    server: EmbeddedPostgres = request.getfixturevalue("postgres")
    server.create_database("migrations")
    url = server.sqlalchemy_url("migrations")
    yield url
    engine(url).dispose()
    server.drop_database("migrations")


def config(url: str) -> Config:
    settings = Config()
    folder = Path(str(store.database.__file__)).parent / "migrations"
    settings.set_main_option("script_location", str(folder))
    settings.attributes["url"] = url
    return settings


def tables(url: str) -> set[str]:
    return set(inspect(engine(url)).get_table_names()) - {"alembic_version"}


def test_up_and_down_and_up_again(empty_url: str) -> None:
    migrate(empty_url)
    assert tables(empty_url) == set(SQLModel.metadata.tables)
    command.downgrade(config(empty_url), "base")
    assert tables(empty_url) == set()
    migrate(empty_url)
    migrate(empty_url)
    assert tables(empty_url) == set(SQLModel.metadata.tables)


def test_the_migrations_make_what_the_models_say(empty_url: str) -> None:
    migrate(empty_url)
    with engine(empty_url).connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, SQLModel.metadata) == []


def test_the_databases_checks_are_there(empty_url: str) -> None:
    migrate(empty_url)
    found = {
        check["name"]
        for table in SQLModel.metadata.tables
        for check in inspect(engine(empty_url)).get_check_constraints(table)
    }
    described = {
        constraint.name
        for table in SQLModel.metadata.tables.values()
        for constraint in table.constraints
        if type(constraint).__name__ == "CheckConstraint"
    }
    assert found == described


def test_there_is_one_newest_migration() -> None:
    assert len(ScriptDirectory.from_config(config("sqlite://")).get_heads()) == 1
