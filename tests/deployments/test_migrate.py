"""The command that migrates says what is wrong, where, and what to do, and changes nothing then."""

from collections.abc import Callable

import pytest
from sqlalchemy import create_engine, text

from deployments.migrate import main
from store.database import LAST_WITH_REPLACED, REPLACED, migrate, revisions

Setting = Callable[[str, object], None]


@pytest.fixture
def url(empty_url: str, setting: Setting) -> str:
    setting("database_url", empty_url)
    return empty_url


def version_of(url: str) -> str:
    engine = create_engine(url)
    with engine.connect() as connection:
        found = str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar())
    engine.dispose()
    return found


def test_a_database_that_a_newer_version_has_migrated_is_left_alone(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    migrate(url)
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'newer'"))
    engine.dispose()
    assert main([]) == 1
    assert "version newer, which this code does not know" in capsys.readouterr().err
    assert version_of(url) == "newer"


@pytest.mark.parametrize("version", REPLACED)
def test_a_database_from_before_the_first_migration_is_left_alone_with_the_remedy(
    url: str, capsys: pytest.CaptureFixture[str], version: str
) -> None:
    migrate(url)
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :v"), {"v": version})
    engine.dispose()
    for arguments in ([], ["--check"]):
        assert main(arguments) == 1
        said = capsys.readouterr().err
        assert (
            f"the database is at version {version}, from before all migrations became one; run"
            in said
        )
        assert f"of commit {LAST_WITH_REPLACED}, then again" in said
        assert said.endswith("Nothing was changed\n")
    assert version_of(url) == version


def test_a_database_with_all_migrations_is_at_the_newest(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    migrate(url)
    stands_at, newest = revisions(url)
    assert version_of(url) == stands_at == newest
    assert main([]) == 0
    assert capsys.readouterr().out == f"the database is at the newest version, {newest}\n"


def test_a_setting_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("STORE_DATABASE_URL", raising=False)
    assert main([]) == 1
    assert "STORE_DATABASE_URL" in capsys.readouterr().err


def test_a_folder_of_secrets_that_is_missing_is_named(
    setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    setting("secrets_folder", "/nowhere/secrets")
    assert main([]) == 1
    assert "STORE_SECRETS_FOLDER: there is no folder /nowhere/secrets" in capsys.readouterr().err


def test_a_database_that_does_not_answer_is_said_without_its_password(
    setting: Setting, capsys: pytest.CaptureFixture[str]
) -> None:
    setting("database_url", "postgresql+psycopg://shop:a-password@127.0.0.1:9/store")
    assert main([]) == 1
    said = capsys.readouterr().err
    assert "STORE_DATABASE_URL" in said
    assert "a-password" not in said
