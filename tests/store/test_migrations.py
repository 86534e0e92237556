"""The migrations make what the models say, keep every row, and may run while the shop is open."""

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlmodel import SQLModel

import store.database
import store.models
from deployments.migrate import main
from seed.catalogue import put_shop
from store.database import engine, migrate, revisions
from store.models import OrderStatus
from store.outages import is_outage
from tests.books_balance import assert_books_balance
from tests.shop import (
    NOWHERE,
    STEPS,
    assign,
    at_once,
    carry_on,
    end_run,
    place,
    placed,
    status,
    statuses,
)

VERSIONS = Path(str(store.database.__file__)).parent / "migrations" / "versions"
NEXT_MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision = "next"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade():
    with op.batch_alter_table("orders") as orders:
        orders.add_column(sa.Column("gift_note", sa.String(), nullable=True))
        orders.create_index("orders_by_gift_note", ["gift_note"])
    with op.batch_alter_table("books") as books:
        books.add_column(sa.Column("shelf", sa.Integer(), nullable=False, server_default="0"))
    {last}


def downgrade():
    with op.batch_alter_table("books") as books:
        books.drop_column("shelf")
    with op.batch_alter_table("orders") as orders:
        orders.drop_index("orders_by_gift_note")
        orders.drop_column("gift_note")
"""
"""A migration as the next version may bring it: code that knows nothing of it goes on."""


@pytest.fixture
def new_shop(empty_url: str, setting: Callable[[str, object], None]) -> str:
    """The URL of a database with nothing but the shop's first data."""
    setting("database_url", empty_url)
    migrate(empty_url)
    put_shop()
    return empty_url


def config(url: str) -> Config:
    settings = Config()
    settings.set_main_option("script_location", str(VERSIONS.parent))
    settings.attributes["url"] = url
    return settings


def with_next_migration(url: str, folder: Path, last: str = "") -> Config:
    """The store's migrations, and one more on top of them."""
    (head,) = ScriptDirectory.from_config(config(url)).get_heads()
    folder.mkdir(exist_ok=True)
    (folder / "next.py").write_text(NEXT_MIGRATION.format(head=head, last=last))
    settings = config(url)
    settings.set_main_option("path_separator", "newline")
    settings.set_main_option("version_locations", f"{VERSIONS}\n{folder}")
    return settings


def tried_again(change: Callable[[], object]) -> None:
    """Do it, again where the database ended it: a deadlock, a lock's time-out."""
    for _ in range(20):
        try:
            change()
        except DBAPIError as error:
            if not is_outage(error):
                raise
        else:
            return
    raise AssertionError("the database ended it 20 times")


def tables(url: str) -> set[str]:
    return set(inspect(engine(url)).get_table_names()) - {"alembic_version"}


def differences(url: str) -> list[object]:
    """What the database has otherwise than the models say."""
    with engine(url).connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        return list(compare_metadata(context, SQLModel.metadata))


def rows(url: str) -> Counter[str]:
    """How many rows each table has that has any."""
    with engine(url).connect() as connection:
        counts = {
            name: connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one()  # noqa: S608
            for name in sorted(tables(url))
        }
    return +Counter(counts)


def test_up_and_down_and_up_again(empty_url: str) -> None:
    migrate(empty_url)
    assert differences(empty_url) == []
    command.downgrade(config(empty_url), "base")
    assert tables(empty_url) == set()
    migrate(empty_url)
    migrate(empty_url)
    assert tables(empty_url) == set(SQLModel.metadata.tables)
    assert differences(empty_url) == []


def test_each_migration_keeps_every_row_of_a_shop_with_orders(
    new_shop: str, tmp_path: Path
) -> None:
    placed("dispatched", "dispatch_order", redeem=True)
    placed("waiting", "prepare_order", 2)
    placed("compensated", "bill_customer")
    end_run("compensated")
    place("compensated")
    before = rows(new_shop)
    assert all(before[name] for name in ("orders", "order_lines", "saga_log", "decisions"))
    settings = with_next_migration(new_shop, tmp_path / "next")
    newest_first = [r.revision for r in ScriptDirectory.from_config(settings).walk_revisions()]
    for revision in reversed(newest_first):
        command.upgrade(settings, revision)
        assert rows(new_shop) == before, revision
    for revision in newest_first[1:]:
        command.downgrade(settings, revision)
        assert rows(new_shop) == before, revision
    command.upgrade(settings, newest_first[1])
    assert (rows(new_shop), differences(new_shop)) == (before, [])
    with engine(new_shop).connect() as connection:
        assert connection.scalar(text("SELECT previous_currency FROM attempts")) == "USD"
    assign("waiting")
    carry_on(["waiting"], after="find_couriers")
    assert status("waiting") == OrderStatus.DISPATCHED
    assert_books_balance()


def test_the_next_migration_runs_up_and_down_while_checkouts_run(
    new_shop: str, tmp_path: Path
) -> None:
    settings = with_next_migration(new_shop, tmp_path / "next")
    is_over = threading.Event()
    checked_out: list[str] = []

    def check_out(shopper: int) -> None:
        number = 0
        while not (is_over.is_set() and number):
            number += 1
            order_id = f"order-{shopper}-{number}"
            # As a task tries again when the database is away or asks it to.
            tried_again(partial(place, order_id, run_id=order_id, redeem=True))
            for step in STEPS.values():
                tried_again(partial(step, [order_id]))
            checked_out.append(order_id)

    def migrate_up_and_down() -> None:
        try:
            for _ in range(3):
                tried_again(lambda: command.upgrade(settings, "head"))
                tried_again(lambda: command.downgrade(settings, "-1"))
        finally:
            is_over.set()

    answers = at_once(
        [migrate_up_and_down, lambda: check_out(1), lambda: check_out(2), lambda: check_out(3)]
    )
    assert answers == [None] * 4
    assert len(checked_out) >= 3
    assert statuses(checked_out) == {OrderStatus.DISPATCHED}
    assert differences(new_shop) == []
    assert_books_balance()


def test_two_that_migrate_at_once_do_it_once(empty_url: str) -> None:
    # Processes: alembic's own state is one for a process.
    together = [
        subprocess.Popen(
            [sys.executable, "-m", "deployments.migrate"],
            env={**os.environ, "STORE_DATABASE_URL": empty_url},
            cwd=VERSIONS.parents[2],
        )
        for _ in range(2)
    ]
    assert [process.wait(60) for process in together] == [0, 0]
    assert differences(empty_url) == []


def test_a_migration_that_fails_leaves_everything_as_it_was(new_shop: str, tmp_path: Path) -> None:
    placed("waiting", "prepare_order")
    before = rows(new_shop)
    with pytest.raises(ZeroDivisionError):
        command.upgrade(with_next_migration(new_shop, tmp_path / "next", "1 / 0"), "head")
    assert rows(new_shop) == before
    assert differences(new_shop) == []


def test_a_migration_does_not_wait_for_a_reader_for_long(new_shop: str, tmp_path: Path) -> None:
    # Behind a waiting ALTER TABLE every checkout would wait as well.
    with engine(new_shop).connect() as reader:
        reader.execute(text("SELECT count(*) FROM orders"))
        with pytest.raises(OperationalError, match="lock timeout"):
            command.upgrade(with_next_migration(new_shop, tmp_path / "next"), "head")
        place("meanwhile")
    assert differences(new_shop) == []


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
    assert len(ScriptDirectory.from_config(config(NOWHERE)).get_heads()) == 1


def test_the_command_migrates_and_says_between_which_versions(
    empty_url: str,
    setting: Callable[[str, object], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    setting("database_url", empty_url)
    newest = revisions(empty_url)[1]
    assert main(["--check"]) == 1
    assert tables(empty_url) == set()
    assert main([]) == 0
    assert main([]) == 0
    assert main(["--check"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"the database has no tables yet, the newest version is {newest}",
        f"migrated: no tables -> {newest}",
        f"the database is at the newest version, {newest}",
        f"the database is at the newest version, {newest}",
    ]
