"""The session that others wait for is named, whoever looks."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session

from seed.catalogue import TEN_X_RULE
from store.blockers import Blocker, blockers
from store.database import engine, reading, transaction
from store.models import Book
from store.settings import settings
from tests.polling import wait_until


def lock_a_book() -> None:
    with transaction() as session:
        session.get_one(Book, TEN_X_RULE, with_for_update=True)


def seen(waiting: int) -> list[Blocker]:
    def look() -> list[Blocker] | None:
        with reading() as session:
            found = blockers(session)
        return found if [each.waiting for each in found] == [waiting] else None

    return wait_until(look, f"{waiting} sessions that wait for one")


@contextmanager
def held_up(rivals: int) -> Iterator[Session]:
    """A session that holds a book, with rivals that stand behind it, and behind each other."""
    with ThreadPoolExecutor(rivals) as threads:
        with transaction() as session:
            session.get_one(Book, TEN_X_RULE, with_for_update=True)
            waiting = [threads.submit(lock_a_book) for _ in range(rivals)]
            yield session
        for each in waiting:
            each.result(timeout=60)


def test_a_shop_in_which_nobody_waits_has_none(database: str) -> None:
    with transaction(), reading() as session:
        assert blockers(session) == []


def test_the_session_that_all_others_wait_for_is_named_with_their_number(database: str) -> None:
    with held_up(3) as session:
        pid = session.execute(text("SELECT pg_backend_pid()")).scalar_one()
        [blocker] = seen(3)
        assert blocker.pid == pid
        assert blocker.name.endswith(f":{os.getpid()}")
        assert blocker.state == "idle in transaction"
        assert blocker.seconds > 0


def test_of_another_roles_session_an_ordinary_role_sees_who_it_is_alone(database: str) -> None:
    url = settings().database_url
    with engine(url).begin() as owner, suppress(DBAPIError):
        owner.execute(text("CREATE ROLE onlooker LOGIN"))
    ordinary = engine(url.replace("postgres@", "onlooker@"))
    with held_up(1) as session, ordinary.connect() as onlooker:
        pid = session.execute(text("SELECT pg_backend_pid()")).scalar_one()
        seen(1)
        [blocker] = blockers(Session(onlooker))
        assert (blocker.pid, blocker.is_hidden, blocker.seconds) == (pid, True, 0)
        assert blocker.name.endswith(f":{os.getpid()}")
        # What the doctor names as the remedy.
        with engine(url).begin() as owner:
            owner.execute(text("GRANT pg_read_all_stats TO onlooker"))
        [blocker] = blockers(Session(onlooker))
        assert not blocker.is_hidden
        assert blocker.seconds > 0
        with engine(url).begin() as owner:
            owner.execute(text("REVOKE pg_read_all_stats FROM onlooker"))
    ordinary.dispose()
