"""Each kind of session has its limits and a name, and a standstill ends by itself."""

import os
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlmodel import Session

from store.database import engine, reading, release_connections, snapshot, transaction
from store.sessions import (
    MIGRATION,
    READING,
    SNAPSHOT,
    STEP,
    TO_THE_SERVER,
    WHOLE_RUN,
    Limits,
    connect_arguments,
    limit,
)
from store.settings import settings

NAMES = (
    "lock_timeout",
    "statement_timeout",
    "idle_in_transaction_session_timeout",
    "transaction_timeout",
)


def limits_of(session: Session) -> Limits:
    query = "SELECT setting::int / 1000 FROM pg_settings WHERE name = :name"
    return Limits(*(session.execute(text(query), {"name": name}).scalar_one() for name in NAMES))


@pytest.mark.parametrize(
    ("begin", "limits"),
    [
        (transaction, STEP),
        (lambda: transaction(WHOLE_RUN), WHOLE_RUN),
        (reading, READING),
        (snapshot, SNAPSHOT),
    ],
    ids=["step", "whole run", "reading", "snapshot"],
)
def test_each_kind_of_session_has_its_limits_and_the_next_one_its_own(
    database: str, begin: Callable[[], AbstractContextManager[Session]], limits: Limits
) -> None:
    release_connections()
    with begin() as session:
        assert limits_of(session) == limits
    with transaction() as session:
        assert limits_of(session) == STEP


def test_a_longer_limit_holds_where_a_shorter_one_has_begun(database: str) -> None:
    with engine(settings().database_url).connect() as connection:
        connection.execute(text("SET transaction_timeout = '1s'"))
        connection.commit()
        limit(connection, SNAPSHOT)
        connection.execute(text("SELECT pg_sleep(1.5)"))
        connection.invalidate()


def test_whoever_waits_for_a_frozen_session_gets_its_lock_in_a_minute() -> None:
    for holder in (STEP, WHOLE_RUN, MIGRATION):
        assert holder.idle_seconds < STEP.lock_seconds < STEP.statement_seconds < 60
    assert STEP.statement_seconds < STEP.transaction_seconds <= 60


def test_a_session_is_named_by_its_host_and_process(database: str) -> None:
    with transaction() as session:
        name = session.execute(text("SHOW application_name")).scalar_one()
    assert name == f"store {socket.gethostname()}:{os.getpid()}"


def test_a_long_host_name_keeps_the_process(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "é" * 80)
    release_connections()
    with transaction() as session:
        name = session.execute(text("SHOW application_name")).scalar_one()
    release_connections()
    assert name.startswith("store ???")
    assert name.endswith(f":{os.getpid()}")


def test_a_connection_notices_that_its_server_is_gone(database: str) -> None:
    with engine(settings().database_url).connect() as connection:
        driver = connection.connection.dbapi_connection
        given = driver.info.get_parameters()  # type: ignore[union-attr]
    assert {name: int(given[name]) for name in TO_THE_SERVER} == TO_THE_SERVER


def test_what_the_address_gives_comes_first(database: str) -> None:
    url = make_url(settings().database_url).update_query_dict(
        {"application_name": "mine", "connect_timeout": "77"}
    )
    assert "connect_timeout" not in connect_arguments(url)
    named = engine(url.render_as_string(hide_password=False))
    with named.connect() as connection:
        assert connection.execute(text("SHOW application_name")).scalar_one() == "mine"
    named.dispose()
