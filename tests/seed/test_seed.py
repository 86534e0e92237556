"""Seeding puts the original's shop, twice changes nothing, and nothing is deleted unasked."""

import io

import pytest
from rich.console import Console
from sqlmodel import select

from seed.__main__ import main
from seed.catalogue import (
    EDUARDO_SANTANA,
    JOHN_DOE,
    STRIPED_PAJAMAS,
    TEN_X_RULE,
    empty,
    popularity,
    put_catalogue,
    put_shop,
)
from store.database import reading
from store.models import Book, Courier, Customer
from tests.shop import (
    assigned_copies,
    carry_on,
    place,
    placed,
    points,
    set_capacities,
    shop,
    status,
    stock,
)


def seed(monkeypatch: pytest.MonkeyPatch, *arguments: str, answer: str | None = None) -> int:
    """Run ``python -m seed`` with arguments; the question, if there is one, is answered.

    Returns its exit status.
    """
    asked: list[str] = []

    def reply(_console: Console, question: str) -> str:
        asked.append(question)
        assert answer is not None
        return answer

    with monkeypatch.context() as patch:
        patch.setattr("sys.argv", ["seed", *arguments])
        patch.setattr(Console, "input", reply)
        try:
            return main()
        finally:
            assert len(asked) == (answer is not None)


def catalogue() -> tuple[list[Book], list[Customer], list[Courier]]:
    with reading() as session:
        found = (
            list(session.exec(select(Book).order_by(Book.id))),
            list(session.exec(select(Customer).order_by(Customer.id))),
            list(session.exec(select(Courier).order_by(Courier.id))),
        )
        session.expunge_all()
        return found


def test_the_originals_books_and_users_are_there(database: str) -> None:
    books, customers, couriers = catalogue()
    assert {(b.id, b.title, b.quantity, b.price_cents, b.initial_quantity) for b in books} == {
        (TEN_X_RULE, "The 10X Rule", 500, 20_00, 500),
        (STRIPED_PAJAMAS, "The Boy in the Striped Pajamas", 400, 75_00, 400),
    }
    assert {(c.id, c.name, c.points, c.initial_points) for c in customers} == {
        (EDUARDO_SANTANA, "Eduardo Santana", 300, 300),
        (JOHN_DOE, "John Doe", 100, 100),
    }
    assert TEN_X_RULE == "01G4E1A9GF5CZWET09RSBR04PV"
    assert EDUARDO_SANTANA == "01G4E1AZW2Q1X3QQEYBACQXMFH"
    assert all(courier.capacity_copies > 50 for courier in couriers)


def test_seeding_twice_changes_nothing(
    database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    placed("o-1", "bill_customer", 50, redeem=True)
    before = (shop(), catalogue())
    for _ in range(2):
        seed(monkeypatch)
        assert "0 rows are new" in capsys.readouterr().out
        assert put_shop() == 0
    assert (shop(), catalogue()) == before


def test_what_is_missing_is_put_and_the_rest_stays(database: str) -> None:
    placed("o-1", "check_inventory", 50)
    assert put_catalogue(3, 2) == 5
    assert put_catalogue(4, 2) == 1
    assert stock() == 450


def test_the_catalogue_is_the_same_each_time_and_a_larger_one_begins_with_it(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed(monkeypatch, "--books", "20", "--users", "30")
    first = catalogue()
    seed(monkeypatch, "--reset", "--yes", "--books", "20", "--users", "30")
    assert catalogue() == first
    seed(monkeypatch, "--books", "40", "--users", "30")
    titles = [(b.id, b.title, b.price_cents, b.quantity) for b in catalogue()[0]]
    assert {(b.id, b.title, b.price_cents, b.quantity) for b in first[0]} < set(titles)
    assert len(titles) == 42


def test_popular_titles_have_more_stock_and_every_title_can_be_sold(database: str) -> None:
    put_catalogue(50, 5)
    books = [book for book in catalogue()[0] if book.id.startswith("book-")]
    stocks = [book.quantity for book in books]
    assert stocks == sorted(stocks, reverse=True)
    assert all(book.price_cents and book.price_cents >= 5_00 for book in books)
    weights = popularity(50)
    assert weights == sorted(weights, reverse=True)
    assert sum(weights[:10]) > sum(weights[10:])
    place("o-1", 2, book_id="book-000049", user_id="customer-000004", redeem=True)
    carry_on(["o-1"])
    assert stock("book-000049") == books[-1].quantity - 2


@pytest.mark.parametrize("answer", ["", "y", "no", "YES!"])
def test_reset_deletes_nothing_unless_it_is_answered_yes(
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: str,
) -> None:
    placed("o-1", "bill_customer", 50)
    before = shop()
    assert seed(monkeypatch, "--reset", answer=answer) == 1
    assert "Nothing was changed." in capsys.readouterr().err
    assert shop() == before


def test_reset_deletes_nothing_where_nobody_answers(
    database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    placed("o-1", "bill_customer", 50)
    before = shop()
    monkeypatch.setattr("sys.argv", ["seed", "--reset"])
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main() == 1
    assert "Nothing was changed." in capsys.readouterr().err
    assert shop() == before


@pytest.mark.parametrize("asked", [True, False])
def test_reset_starts_over(database: str, monkeypatch: pytest.MonkeyPatch, asked: bool) -> None:
    fresh = shop()
    placed("o-1", "dispatch_order", 50, redeem=True)
    if asked:
        seed(monkeypatch, "--reset", answer="yes")
    else:
        seed(monkeypatch, "--reset", "--yes")
    assert shop() == fresh
    assert (stock(), points()) == (500, 300)


@pytest.mark.parametrize("arguments", [("--books", "-1"), ("--users", "-1"), ("--books", "many")])
def test_a_number_that_is_none_is_refused(
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, str],
) -> None:
    assert seed(monkeypatch, *arguments) == 2
    assert arguments[0] in capsys.readouterr().err


def test_seeding_makes_the_tables_of_an_empty_database(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORE_DATABASE_URL", empty_url)
    seed(monkeypatch)
    assert (stock(), points()) == (500, 300)


def test_a_shop_puts_couriers_of_its_own_without_the_example_data(
    database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    empty()
    seed(monkeypatch, "--courier", "anna", "30", "--courier", "otto", "5")
    capsys.readouterr()
    seed(monkeypatch, "--courier", "otto", "50")
    assert capsys.readouterr().out == (
        "0 couriers are new, 1 were there; each takes as many copies at a time as given.\n"
    )
    books, customers, couriers = catalogue()
    assert (books, customers) == ([], [])
    assert [(each.id, each.capacity_copies) for each in couriers] == [("anna", 30), ("otto", 50)]


def test_a_courier_keeps_room_for_what_it_has_in_hand(
    database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    placed("o-1", "find_couriers", 10)
    assert seed(monkeypatch, "--courier", "city-vans", "9") == 1
    assert "courier city-vans has 10 copies in hand" in capsys.readouterr().err
    seed(monkeypatch, "--courier", "city-vans", "10")
    (city_vans,) = [each for each in catalogue()[2] if each.id == "city-vans"]
    assert (city_vans.capacity_copies, city_vans.assigned_copies) == (10, 10)


def test_a_courier_that_was_deleted_with_parcels_in_hand_can_be_put_again(
    database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    placed("o-1", "find_couriers", 10)
    set_capacities(others=1)
    assert seed(monkeypatch, "--courier", "city-vans", "9") == 1
    assert "courier city-vans has 10 copies in hand" in capsys.readouterr().err
    assert seed(monkeypatch, "--courier", "city-vans", "50") == 0
    assert assigned_copies() == {"city-vans": 10}
    carry_on(["o-1"], after="find_couriers")
    assert (status("o-1"), assigned_copies()) == ("dispatched", {})


@pytest.mark.parametrize("id_", ["", " anna", "an\nna", "a" * 65])
def test_a_courier_whose_id_nobody_can_type_is_refused(
    monkeypatch: pytest.MonkeyPatch, id_: str
) -> None:
    assert seed(monkeypatch, "--courier", id_, "5") == 2


@pytest.mark.parametrize("copies", ["-1", "many", "1.5"])
def test_a_courier_without_a_number_of_copies_is_refused(
    monkeypatch: pytest.MonkeyPatch, copies: str
) -> None:
    assert seed(monkeypatch, "--courier", "anna", copies) == 2
