"""The embedded PostgreSQL starts anywhere, serves both drivers, and never outlives its owner."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from deployments.embedded import EmbeddedPostgres
from deployments.local import PROJECT_DIR
from deployments.machine import SetupError
from tests.polling import wait_until


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(tmp_path_factory.mktemp("pg") / "data", durable=False) as server:
        yield server


def processes_on(folder: Path) -> list[psutil.Process]:
    """The processes that name this folder in their command."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(folder) in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_it_serves_sqlalchemy_with_room_for_many_processes(postgres: EmbeddedPostgres) -> None:
    postgres.create_database("store")
    engine = create_engine(postgres.sqlalchemy_url("store"))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT current_database()")).scalar() == "store"
        assert connection.execute(text("SHOW max_connections")).scalar() == "300"
        assert connection.execute(text("SHOW listen_addresses")).scalar() == ""
    engine.dispose()


def test_it_has_what_prefects_server_needs(postgres: EmbeddedPostgres) -> None:
    postgres.create_database("prefect")

    async def similarity() -> float:
        engine = create_async_engine(postgres.prefect_url("prefect"))
        async with engine.begin() as connection:
            await connection.execute(text("CREATE EXTENSION IF NOT EXISTS pg_trgm"))
            found: float = (
                await connection.execute(text("SELECT similarity('a', 'a')"))
            ).scalar_one()
        await engine.dispose()
        return found

    assert asyncio.run(similarity()) == 1.0


def test_a_database_is_made_once_and_can_be_dropped(postgres: EmbeddedPostgres) -> None:
    postgres.create_database("again")
    postgres.create_database("again")
    engine = create_engine(postgres.sqlalchemy_url("again"))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE kept (id int)"))
    engine.dispose()
    postgres.drop_database("again")
    postgres.drop_database("again")
    postgres.create_database("again")
    engine = create_engine(postgres.sqlalchemy_url("again"))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT to_regclass('kept')")).scalar() is None
    engine.dispose()


def test_data_outlives_the_server_even_in_a_deep_folder(tmp_path: Path) -> None:
    data_dir = tmp_path / ("deep" * 20) / ("deeper" * 10) / "data"
    with EmbeddedPostgres(data_dir, durable=False) as server:
        server.create_database("kept")
        socket_dir = Path(server.sqlalchemy_url("kept").partition("host=")[2])
    assert not socket_dir.exists()
    wait_until(lambda: not processes_on(data_dir), "end of its processes")
    with EmbeddedPostgres(data_dir, durable=False) as server:
        engine = create_engine(server.sqlalchemy_url("kept"))
        with engine.connect() as connection:
            assert connection.execute(text("SELECT 1")).scalar() == 1
        engine.dispose()


def test_the_folders_above_the_data_stay_as_closed_as_they_were(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with EmbeddedPostgres(closed / "data", durable=False) as server:
        server.create_database("store")
    assert closed.stat().st_mode & 0o777 == 0o700


def test_a_second_server_on_the_same_data_is_refused_with_its_reason(
    postgres: EmbeddedPostgres,
) -> None:
    with pytest.raises(SetupError, match=r"postmaster\.pid"):
        EmbeddedPostgres(postgres.data_dir).start()
    postgres.create_database("still_there")


def test_an_address_is_given_only_while_it_runs(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="not running"):
        EmbeddedPostgres(tmp_path / "data").sqlalchemy_url("store")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_running_when_its_owner_is_killed(
    tmp_path: Path, number: signal.Signals
) -> None:
    owner = (
        "import sys, signal; from pathlib import Path\n"
        "from deployments.embedded import EmbeddedPostgres\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "server = EmbeddedPostgres(Path(sys.argv[1]), durable=False)\n"
        "server.start(); print('started', flush=True); signal.pause()\n"
    )
    data_dir = tmp_path / "data"
    with subprocess.Popen(
        [sys.executable, "-c", owner, str(data_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT_DIR)},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        assert processes_on(data_dir)
        process.send_signal(number)
    wait_until(lambda: not processes_on(data_dir), "end of its processes")
    assert not (data_dir / "postmaster.pid").exists()


def test_data_of_another_postgresql_are_refused_with_what_to_do(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "PG_VERSION").write_text("17\n")
    with pytest.raises(SetupError, match=r"PostgreSQL 17; .* move the folder away"):
        EmbeddedPostgres(data_dir).start()
    assert [path.name for path in data_dir.iterdir()] == ["PG_VERSION"]


def test_a_folder_with_something_else_in_it_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "letter.txt").write_text("kept")
    with pytest.raises(SetupError, match="no PostgreSQL's data"):
        EmbeddedPostgres(data_dir).start()
    assert (data_dir / "letter.txt").read_text() == "kept"
