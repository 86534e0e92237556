"""Each SQLSTATE that passes comes from a real PostgreSQL, through driver and SQLAlchemy."""

import os
import pickle
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, OperationalError

from deployments.embedded import EmbeddedPostgres
from store.database import engine
from store.outages import OUTAGES, is_outage, sqlstate_of
from tests.polling import wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL that may be hurt."""
    with EmbeddedPostgres(tmp_path_factory.mktemp("outages") / "data", durable=False) as server:
        server.create_database("hurt")
        yield server


@pytest.fixture
def hurt(server: EmbeddedPostgres) -> Iterator[Engine]:
    store = engine(server.sqlalchemy_url("hurt"))
    with store.begin() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS books (id int PRIMARY KEY, n int)"))
        connection.execute(text("TRUNCATE books"))
        connection.execute(text("INSERT INTO books VALUES (1, 1), (2, 2)"))
    yield store
    store.dispose()


def backend(connection: Connection) -> int:
    return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())


def ask(connection: Connection, *statements: str) -> None:
    for statement in statements:
        connection.execute(text(statement))


def wait_until_gone(hurt: Engine, pid: int) -> None:
    def is_gone() -> bool:
        with hurt.connect() as onlooker:
            sessions = "SELECT 1 FROM pg_stat_activity WHERE pid = :pid"
            return onlooker.execute(text(sessions), {"pid": pid}).first() is None

    wait_until(is_gone, f"end of session {pid}")


def read_only(hurt: Engine, session: Connection) -> None:
    ask(session, "SET default_transaction_read_only = on", "COMMIT", "UPDATE books SET n = 0")


def idle_in_transaction(hurt: Engine, session: Connection) -> None:
    ask(session, "SET idle_in_transaction_session_timeout = '50ms'")
    wait_until_gone(hurt, backend(session))
    ask(session, "SELECT 1")


def long_transaction(hurt: Engine, session: Connection) -> None:
    ask(session, "SET LOCAL transaction_timeout = 0", "SET LOCAL transaction_timeout = '50ms'")
    ask(session, "SELECT pg_sleep(20)")


def overtaken(hurt: Engine, session: Connection) -> None:
    ask(session, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "SELECT * FROM books")
    with hurt.begin() as rival:
        ask(rival, "UPDATE books SET n = 7")
    ask(session, "UPDATE books SET n = 8")


def deadlock(hurt: Engine, session: Connection) -> None:
    with hurt.connect() as rival, ThreadPoolExecutor(1) as thread:
        for each, row in ((session, 1), (rival, 2)):
            ask(each, f"UPDATE books SET n = 0 WHERE id = {row}")  # noqa: S608
        ask(session, "SET deadlock_timeout = '50ms'")
        ask(rival, "SET deadlock_timeout = '1h'")
        waiting = thread.submit(ask, rival, "UPDATE books SET n = 0 WHERE id = 1")
        try:
            ask(session, "UPDATE books SET n = 0 WHERE id = 2")
        finally:
            session.rollback()
            waiting.result(timeout=60)


def too_much_on_disk(hurt: Engine, session: Connection) -> None:
    ask(session, "SET temp_file_limit = '64kB'", "SET work_mem = '64kB'")
    ask(session, "SELECT n FROM generate_series(1, 100000) n ORDER BY n DESC")


def locked_out(hurt: Engine, session: Connection) -> None:
    with hurt.connect() as rival:
        ask(rival, "UPDATE books SET n = 0")
        ask(session, "SET lock_timeout = '50ms'", "UPDATE books SET n = 1")


def long_statement(hurt: Engine, session: Connection) -> None:
    ask(session, "SET statement_timeout = '50ms'", "SELECT pg_sleep(20)")


def ended_by_an_operator(hurt: Engine, session: Connection) -> None:
    pid = backend(session)
    with hurt.begin() as operator:
        operator.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
    wait_until_gone(hurt, pid)
    ask(session, "SELECT 1")


def crash_of_another(hurt: Engine, session: Connection) -> None:
    ask(session, "SELECT 1")
    with hurt.connect() as victim:
        os.kill(backend(victim), signal.SIGKILL)

        def answers() -> bool:
            # While it recovers it lets nobody in, and libpq has no code for that.
            try:
                with hurt.connect():
                    return True
            except DBAPIError as error:
                if not is_outage(error):
                    raise
                return False

        wait_until(answers, "server after its recovery")
    ask(session, "SELECT 1")


def idle_session(hurt: Engine, session: Connection) -> None:
    ask(session, "SET idle_session_timeout = '50ms'")
    pid = backend(session)
    session.commit()
    wait_until_gone(hurt, pid)
    ask(session, "SELECT 1")


PROVOKED: dict[str, Callable[[Engine, Connection], None]] = {
    "25006": read_only,
    "25P03": idle_in_transaction,
    "25P04": long_transaction,
    "40001": overtaken,
    "40P01": deadlock,
    "53400": too_much_on_disk,
    "55P03": locked_out,
    "57014": long_statement,
    "57P01": ended_by_an_operator,
    "57P02": crash_of_another,
    "57P05": idle_session,
}
RAISED = (
    *("08000", "08001", "08003", "08004", "08006", "08P01", "53000", "53100", "53200", "53300"),
    *("57000", "57P03", "57P04", "58000", "58030"),
)
"""Those for which a disk or a machine would have to break; the server raises them on demand."""
DEFECTS = (
    *("0A000", "22012", "23505", "25001", "25P02", "28000", "28P01", "3D000", "40000", "40002"),
    *("42501", "42P01", "54000", "54001", "55000", "58P01", "F0000", "XX000", "XX001"),
)


@pytest.mark.parametrize("code", PROVOKED)
def test_what_passes_is_an_outage_by_its_code(hurt: Engine, code: str) -> None:
    with hurt.connect() as session:
        with pytest.raises(DBAPIError) as raised:
            PROVOKED[code](hurt, session)
        session.invalidate()
    # The crashing server closes the connection, and may be faster than the read of its reason.
    assert sqlstate_of(raised.value) in {code, None if code == "57P02" else code}
    assert is_outage(raised.value)


def raise_code(hurt: Engine, code: str) -> DBAPIError:
    with pytest.raises(DBAPIError) as raised, hurt.connect() as session:
        ask(session, f"DO $$ BEGIN RAISE 'as asked' USING ERRCODE = '{code}'; END $$")
    assert sqlstate_of(raised.value) == code
    return raised.value


@pytest.mark.parametrize("code", RAISED)
def test_what_needs_a_broken_machine_is_an_outage_too(hurt: Engine, code: str) -> None:
    assert is_outage(raise_code(hurt, code))


@pytest.mark.parametrize("code", DEFECTS)
def test_what_would_be_raised_again_is_no_outage(hurt: Engine, code: str) -> None:
    assert not is_outage(raise_code(hurt, code))


def test_an_outage_stays_one_on_its_way_from_another_process(hurt: Engine) -> None:
    with pytest.raises(DBAPIError) as raised, hurt.connect() as session:
        locked_out(hurt, session)
    carried = pickle.loads(pickle.dumps(raised.value))  # noqa: S301
    assert sqlstate_of(carried) == "55P03"
    assert is_outage(carried)


def test_each_code_and_class_of_the_table_is_tried() -> None:
    tried = {*PROVOKED, *RAISED}
    assert all(any(code.startswith(entry) for code in tried) for entry in OUTAGES)
    assert all(code in OUTAGES or code[:2] in OUTAGES for code in tried)


def test_a_server_with_all_connections_in_use_is_an_outage(
    hurt: Engine, server: EmbeddedPostgres
) -> None:
    with hurt.begin() as owner, suppress(DBAPIError):
        ask(owner, "CREATE ROLE crowd LOGIN CONNECTION LIMIT 0")
    crowd = engine(server.sqlalchemy_url("hurt").replace("postgres@", "crowd@"))
    with pytest.raises(OperationalError, match="too many connections") as raised, crowd.connect():
        pass
    assert is_outage(raised.value)


@pytest.mark.parametrize("missing", ["role", "database"])
def test_a_refused_connection_has_no_code_and_counts_as_no_answer(
    server: EmbeddedPostgres, missing: str
) -> None:
    url = server.sqlalchemy_url("nowhere" if missing == "database" else "hurt")
    url = url.replace("postgres@", "nobody@") if missing == "role" else url
    with pytest.raises(OperationalError, match="does not exist") as raised, engine(url).connect():
        pass
    assert sqlstate_of(raised.value) is None
    assert is_outage(raised.value)


def test_connections_to_a_read_only_server_are_dropped(hurt: Engine) -> None:
    with hurt.connect() as one, hurt.connect() as other:
        before = {backend(one), backend(other)}
    with pytest.raises(DBAPIError), hurt.connect() as session:
        ask(session, "SET TRANSACTION READ ONLY", "UPDATE books SET n = 0")
    with hurt.connect() as one, hurt.connect() as other:
        assert not before & {backend(one), backend(other)}
