"""Rows in bulk: what is written is what is read, and no table is read whole."""

from collections.abc import Sequence
from datetime import timedelta

import pytest
from sqlalchemy.exc import DataError
from sqlmodel import Session, col, select

from seed.catalogue import EDUARDO_SANTANA, JOHN_DOE, TEN_X_RULE
from store.bulk import among, increase, insert_missing, insert_rows, update_rows
from store.database import reading, transaction
from store.models import Batch, Book, Customer, Notification, Order, SagaRecord, utc_now
from tests.shop import place, points

pytestmark = pytest.mark.usefixtures("database")

NAMES = ["plain", 'O\'Brien "quoted" \\ 100 %s :x', "Ærøskøbing 書籍 🎉"]


@pytest.mark.parametrize("name", NAMES)
def test_inserted_rows_are_read_as_they_were_given(name: str) -> None:
    now = utc_now()
    data = {"name": name, "cents": 2**40, "none": None, "flag": True, "list": [1, {"a": "b"}]}
    rows = [
        {"key": f"{name}-{n}", "order_id": "o", "subject": name, "body": "", "data": data}
        for n in range(3)
    ]
    with transaction() as session:
        insert_rows(session, Notification, rows, published_at=now)
    with reading() as session:
        found = session.exec(select(Notification).order_by(Notification.key)).all()
        assert [n.key for n in found] == [row["key"] for row in rows]
        assert {(n.subject, n.published_at) for n in found} == {(name, now)}
        assert [n.data for n in found] == [data] * 3


def test_a_moment_given_with_its_row_compares_with_those_given_for_all() -> None:
    now = utc_now().replace(microsecond=0)
    moments = [now, now + timedelta(microseconds=1), now + timedelta(seconds=1)]
    rows = [{"run_id": f"r-{n}", "started_at": at} for n, at in enumerate(moments)]
    with transaction() as session:
        insert_rows(session, Batch, rows, moved_at=moments[1])
    with reading() as session:
        found = session.exec(select(Batch).order_by(Batch.run_id)).all()
        assert [batch.started_at for batch in found] == moments
        later = select(Batch.run_id).where(col(Batch.started_at) >= col(Batch.moved_at))
        assert sorted(session.exec(later)) == ["r-1", "r-2"]


def a_book(book_id: str, title: str = "new") -> dict[str, object]:
    return {
        "id": book_id,
        "title": title,
        "price_cents": 1,
        "quantity": 1,
        "initial_quantity": 1,
    }


def test_only_rows_whose_key_is_free_are_inserted() -> None:
    with transaction() as session:
        new = insert_missing(session, Book, [a_book("b"), a_book(TEN_X_RULE), a_book("a")])
    assert sorted(new) == [("a",), ("b",)]
    with reading() as session:
        assert session.get_one(Book, TEN_X_RULE).title == "The 10X Rule"


@pytest.mark.parametrize("rows", [[], [a_book(TEN_X_RULE)]])
def test_inserting_nothing_new_tells_so(rows: Sequence[dict[str, object]]) -> None:
    with transaction() as session:
        assert insert_missing(session, Book, rows) == []


def test_thousands_of_rows_are_inserted_in_one_call() -> None:
    with transaction() as session:
        new = insert_missing(session, Book, [a_book(f"b-{n}") for n in range(3000)])
    assert len(set(new)) == 3000


def test_rows_are_updated_by_their_whole_key_and_no_others() -> None:
    for order_id in ("o-1", "o-2"):
        place(order_id)
    keys = [(id_, attempt, step) for id_ in ("o-1", "o-2") for attempt in (1, 2) for step in "ab"]
    with transaction() as session:
        insert_rows(
            session,
            SagaRecord,
            [{"order_id": id_, "attempt": attempt, "step": step} for id_, attempt, step in keys],
            state="done",
            result={},
            at=utc_now(),
            undo_tries=0,
        )
    changed = [
        {"order_id": "o-1", "attempt": 2, "step": "a", "undo_tries": 5, "undo_error": None},
        {"order_id": "o-2", "attempt": 1, "step": "b", "undo_tries": 7, "undo_error": "no"},
        {"order_id": "o-3", "attempt": 1, "step": "a", "undo_tries": 9, "undo_error": "nobody"},
    ]
    with transaction() as session:
        update_rows(session, SagaRecord, changed, state="undone")
    with reading() as session:
        found = {(r.order_id, r.attempt, r.step): r for r in session.exec(select(SagaRecord))}
        assert set(found) == set(keys)
        assert {
            key: (r.state, r.undo_tries, r.undo_error)
            for key, r in found.items()
            if r.state != "done"
        } == {("o-1", 2, "a"): ("undone", 5, None), ("o-2", 1, "b"): ("undone", 7, "no")}
    with transaction() as session:
        for key in keys:
            session.delete(session.get_one(SagaRecord, key))


def test_amounts_are_added_to_what_is_there() -> None:
    with transaction() as session:
        increase(session, Customer, "points", {EDUARDO_SANTANA: -20, JOHN_DOE: 0, "nobody": 4})
    assert (points(), points(JOHN_DOE)) == (280, 100)
    with transaction() as session:
        increase(session, Customer, "points", {EDUARDO_SANTANA: 20})
        increase(session, Customer, "points", {})
    assert points() == 300


def test_among_no_ids_is_nothing() -> None:
    place("o-1")
    with reading() as session:
        assert found(session, []) == []
        assert found(session, ["o-1", "o-1", "o-2"]) == ["o-1"]


@pytest.mark.parametrize(
    "id_", ['a "quoted" one', "a\\b", "{x}", "x,y", "NULL", "", " ", "a\nb", "é 書"]
)
def test_among_ids_is_the_very_one(id_: str) -> None:
    others = {"a", "b", "x", "y"}
    with transaction() as session:
        insert_rows(session, Book, [a_book(each) for each in {id_, *others}])
        for asked, expected in (([id_], {id_}), (["x", id_, "none"], {"x", id_})):
            books = session.scalars(select(Book.id).where(among(col(Book.id), asked)))
            assert set(books) == expected


def test_among_ids_is_none_that_postgresql_cannot_have() -> None:
    with pytest.raises(ValueError, match="NUL"):
        among(col(Order.id), ["a\0b"])


def found(session: Session, ids: list[str]) -> list[str]:
    return list(session.scalars(select(Order.id).where(among(col(Order.id), ids))))


def test_an_error_about_rows_in_bulk_does_not_quote_them(database: str) -> None:
    rows = [{"id": "c", "name": "Jane Roe\0", "points": 1, "initial_points": 1}]
    with pytest.raises(DataError) as refused, transaction() as session:
        insert_rows(session, Customer, rows, payment_method="pm_card_visa")
    said = f"{refused.value} {refused.value.orig}"
    assert "unsupported Unicode escape sequence" in said
    assert "Jane" not in said


def test_a_moment_without_its_zone_is_refused() -> None:
    now = utc_now().replace(tzinfo=None)
    with pytest.raises(ValueError, match="has no time zone"), transaction() as session:
        insert_rows(session, Batch, [{"run_id": "r", "started_at": now}], moved_at=utc_now())
