"""A transaction is all or nothing, readers keep out of the way, and the insert knows its keys."""

import threading
from contextlib import ExitStack
from typing import cast

import pytest
from sqlalchemy import Executable, QueuePool, text, update
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlmodel import col

from seed.catalogue import JOHN_DOE, TEN_X_RULE
from store.database import (
    engine,
    migrate,
    release_connections,
    transaction,
)
from store.models import Book, Courier, Customer
from store.outages import is_outage
from store.settings import settings
from tests.shop import NOWHERE, at_once, points, stock


def take_a_copy() -> None:
    with transaction() as session:
        book = session.get_one(Book, TEN_X_RULE, with_for_update=True)
        session.execute(
            update(Book).where(col(Book.id) == book.id).values(quantity=book.quantity - 1)
        )
        session.execute(
            update(Book)
            .where(col(Book.id) == book.id)
            .values(initial_quantity=col(Book.initial_quantity) - 1)
        )


def test_an_error_takes_the_whole_transaction_back(database: str) -> None:
    def sell_out_and_fail() -> None:
        with transaction() as session:
            session.execute(update(Book).values(quantity=1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        sell_out_and_fail()
    assert stock() == 500


def test_forty_transactions_that_read_first_and_write_later_lose_no_update(database: str) -> None:
    answers = at_once([take_a_copy] * 40)
    assert answers == [None] * 40
    assert stock() == 460


def test_a_reader_does_not_wait_for_a_writer_nor_see_half_of_it(database: str) -> None:
    with transaction() as session:
        session.execute(update(Book).values(quantity=0))
        seen: list[int] = []
        reader = threading.Thread(target=lambda: seen.append(stock()))
        reader.start()
        reader.join(timeout=20)
        assert seen == [500]
        session.rollback()


@pytest.mark.parametrize(
    "broken",
    [
        update(Book).where(col(Book.id) == TEN_X_RULE).values(quantity=-1),
        update(Customer).where(col(Customer.id) == JOHN_DOE).values(points=-1),
        update(Courier).values(assigned_copies=col(Courier.capacity_copies) + 1),
    ],
    ids=["stock", "points", "capacity"],
)
def test_the_database_itself_refuses_less_than_nothing(database: str, broken: Executable) -> None:
    with pytest.raises(IntegrityError), transaction() as session:
        session.execute(broken)
    assert (stock(), points(JOHN_DOE)) == (500, 100)


def test_a_refusal_of_the_database_is_no_connection_error(database: str) -> None:
    with pytest.raises(IntegrityError) as refused, transaction() as session:
        session.execute(update(Book).values(quantity=-1))
    assert not is_outage(refused.value)
    assert not is_outage(ValueError("no"))


def test_a_database_that_is_away_is_a_connection_error() -> None:
    with pytest.raises(OperationalError) as away, engine(NOWHERE).connect():
        pass
    assert is_outage(away.value)


def test_the_widest_batch_has_its_connections(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool(), "_timeout", 0.01)
    with ExitStack() as in_use:
        for _ in range(32 + 1):
            in_use.enter_context(engine(settings().database_url).connect())
    release_connections()


def pool() -> QueuePool:
    return cast(QueuePool, engine(settings().database_url).pool)


def test_released_connections_are_closed_and_the_next_one_is_made_anew(database: str) -> None:
    with engine(settings().database_url).connect() as connection:
        before = connection.connection.dbapi_connection
    release_connections()
    assert pool().checkedin() == 0
    with engine(settings().database_url).connect() as connection:
        assert connection.connection.dbapi_connection is not before
    assert stock() == 500


def test_a_connection_in_use_is_not_released_and_is_kept_for_the_next_one(database: str) -> None:
    release_connections()
    with transaction() as session:
        in_use = session.connection().connection.dbapi_connection
        release_connections()
        assert session.execute(text("SELECT 1")).scalar() == 1
    with transaction() as session:
        assert session.connection().connection.dbapi_connection is in_use


def test_migrating_again_changes_nothing(database: str) -> None:
    migrate(settings().database_url)
    assert stock() == 500


def test_an_error_of_the_database_does_not_quote_the_row(database: str) -> None:
    with pytest.raises(IntegrityError) as refused, transaction() as session:
        session.execute(update(Customer).where(col(Customer.id) == JOHN_DOE).values(points=-77))
    said = f"{refused.value} {refused.value.orig}"
    assert "customers_points_not_negative" in said
    assert "John" not in said
    assert "77" not in said


def test_an_error_of_the_database_is_one_line_without_the_statement(database: str) -> None:
    with pytest.raises(IntegrityError) as refused, transaction() as session:
        session.execute(update(Customer).where(col(Customer.id) == JOHN_DOE).values(points=-77))
    said = str(refused.value)
    assert "customers_points_not_negative" in said
    assert len(said.splitlines()) == 1
    assert not any(word in said for word in ("UPDATE", "SQL", "http"))
    (note,) = refused.value.__notes__
    assert note.startswith("[SQL: UPDATE customers")


def test_the_error_of_a_database_that_is_away_is_one_line() -> None:
    with pytest.raises(OperationalError) as away, engine(NOWHERE).connect():
        pass
    assert len(str(away.value).splitlines()) == 1
    assert "http" not in str(away.value)
