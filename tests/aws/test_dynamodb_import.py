"""The original's tables move in over real HTTP: all of it, once, and never over a live shop."""

import csv
import json
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import boto3
import pytest
from boto3.dynamodb.types import TypeSerializer
from botocore.awsrequest import AWSPreparedRequest
from sqlmodel import func, select

from seed import dynamodb
from seed.catalogue import EDUARDO_SANTANA, TEN_X_RULE, empty, put_couriers
from store.database import reading
from store.models import Book, Customer
from tests.aws.cloud import Faults, dynamodb_error, forget_clients
from tests.shop import place, placed

KEYS = {"book": "bookId", "user": "userId"}


@dataclass
class OldShop:
    """The original's two tables, and the command that imports them."""

    client: Any
    tables: dict[str, str]
    folder: Path

    def put(self, kind: str, *items: Mapping[str, Any]) -> None:
        write = TypeSerializer().serialize
        requests = [
            {"PutRequest": {"Item": {name: write(value) for name, value in item.items()}}}
            for item in items
        ]
        for start in range(0, len(requests), 25):
            batch = {self.tables[kind]: requests[start : start + 25]}
            self.client.batch_write_item(RequestItems=batch)

    def import_(self, *options: str) -> int:
        return dynamodb.main(
            [
                *("--book-table", self.tables["book"], "--user-table", self.tables["user"]),
                *("--folder", str(self.folder), *options),
            ]
        )

    def outcomes(self, kind: str) -> dict[str, int]:
        kept = json.loads((self.folder / "state.json").read_text())
        found: dict[str, int] = kept["progress"][self.tables[kind]]["outcomes"]
        return {name: count for name, count in found.items() if count}

    def rejects(self) -> list[tuple[str, str, str]]:
        """The rejected items: key, field, reason."""
        with (self.folder / "rejects.csv").open(newline="") as file:
            return [(row["key"], row["field"], row["reason"]) for row in csv.DictReader(file)]


@pytest.fixture
def old_shop(database: str, endpoint_url: str, tmp_path: Path, setting: Any) -> Iterator[OldShop]:
    """Two empty tables of the original's shape, and an empty shop here."""
    empty()
    setting("aws_endpoint_url", endpoint_url)
    client = boto3.client("dynamodb", endpoint_url=endpoint_url)
    tables = {kind: f"{kind}-{uuid4().hex[:12]}" for kind in KEYS}
    for kind, key in KEYS.items():
        client.create_table(
            TableName=tables[kind],
            BillingMode="PAY_PER_REQUEST",
            KeySchema=[{"AttributeName": key, "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": key, "AttributeType": "S"}],
        )
    created = list(tables.values())
    yield OldShop(client, tables, tmp_path / "import")
    for table in created:
        client.delete_table(TableName=table)


def a_book(id_: str = TEN_X_RULE, **fields: Any) -> dict[str, Any]:
    """A book as the original's seed-books.js puts it."""
    return {"bookId": id_, "title": "The 10X Rule", "quantity": 500, "price": 20} | fields


def a_user(id_: str = EDUARDO_SANTANA, **fields: Any) -> dict[str, Any]:
    """A user as the original's seed-users.js puts it."""
    return {"userId": id_, "name": "Eduardo Santana", "points": 300} | fields


def the_book(id_: str = TEN_X_RULE) -> tuple[str, int | None, int, int]:
    with reading() as session:
        book = session.get_one(Book, id_)
        return book.title, book.price_cents, book.quantity, book.initial_quantity


def the_customer(id_: str = EDUARDO_SANTANA) -> tuple[str, int, int, str]:
    with reading() as session:
        customer = session.get_one(Customer, id_)
        return customer.name, customer.points, customer.initial_points, customer.payment_method


def let_through(_request: AWSPreparedRequest) -> None:
    """Leave the call to the stand-in for AWS."""


def counts() -> tuple[int, int]:
    with reading() as session:
        books = session.exec(select(func.count()).select_from(Book)).one()
        return books, session.exec(select(func.count()).select_from(Customer)).one()


def test_the_originals_items_become_books_and_customers(old_shop: OldShop) -> None:
    old_shop.put("book", a_book())
    old_shop.put("user", a_user())
    assert old_shop.import_() == 0
    assert the_book() == ("The 10X Rule", 20_00, 500, 500)
    assert the_customer() == ("Eduardo Santana", 300, 300, "pm_card_visa")
    assert old_shop.rejects() == []


def test_what_is_missing_is_made_up_for_and_said(
    old_shop: OldShop, capsys: pytest.CaptureFixture[str]
) -> None:
    old_shop.put("book", {"bookId": "bare"}, a_book("null", price=None), a_book(isbn="X"))
    old_shop.put("user", {"userId": "bare"})
    assert old_shop.import_("--payment-method", "pm_later") == 0
    assert the_book("bare") == ("bare", None, 0, 0)
    assert the_book("null") == ("The 10X Rule", None, 500, 500)
    assert the_customer("bare") == ("", 0, 0, "pm_later")
    printed = capsys.readouterr().out
    for kind, said in (
        ("book", "2 items have no price"),
        ("book", "1 items have no title"),
        ("book", "isbn of 1 items has no place here"),
        ("user", "1 items have no points"),
    ):
        assert f"{old_shop.tables[kind]}: {said}" in printed


def test_an_item_that_cannot_be_taken_is_listed_and_keeps_no_other_from_it(
    old_shop: OldShop,
) -> None:
    old_shop.put("book", a_book("oversold", quantity=-3), a_book("good"))
    assert old_shop.import_() == 1
    ((key, field, reason),) = old_shop.rejects()
    assert (key, field) == ("oversold", "quantity")
    assert "more copies were sold than there were" in reason
    assert old_shop.outcomes("book") == {"new": 1, "rejected": 1}
    assert the_book("good") == ("The 10X Rule", 20_00, 500, 500)


def test_a_user_that_cannot_be_taken_is_listed_and_only_its_owner_may_read_it(
    old_shop: OldShop,
) -> None:
    old_shop.put(
        "user", a_user("someone@example.com"), a_user("=1+1"), a_user(points=Decimal("0.5"))
    )
    assert old_shop.import_() == 1
    assert {(key, field) for key, field, _ in old_shop.rejects()} == {
        ("someone@example.com", "userId"),
        # A spreadsheet would take it for a formula.
        ("'=1+1", "userId"),
        (EDUARDO_SANTANA, "points"),
    }
    for path in (old_shop.folder, *old_shop.folder.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_importing_twice_changes_nothing(old_shop: OldShop) -> None:
    old_shop.put("book", a_book(), a_book("other"))
    old_shop.put("user", a_user())
    old_shop.import_()
    assert old_shop.import_() == 0
    assert old_shop.outcomes("book") == {"unchanged": 2}
    assert old_shop.outcomes("user") == {"unchanged": 1}
    assert counts() == (2, 1)


def test_until_the_first_order_an_import_brings_known_rows_up_to_date(old_shop: OldShop) -> None:
    old_shop.put("book", a_book())
    old_shop.put("user", a_user())
    old_shop.import_()
    old_shop.put("book", a_book(quantity=450, price=21), a_book("new"))
    old_shop.put("user", a_user(points=0))
    # Who pays with what is this shop's own from the start: the original does not know it.
    assert old_shop.import_("--payment-method", "pm_other") == 0
    assert the_book() == ("The 10X Rule", 21_00, 450, 450)
    assert the_customer() == ("Eduardo Santana", 0, 0, "pm_card_visa")
    assert old_shop.outcomes("book") == {"brought up to date": 1, "new": 1}


def test_from_the_first_order_on_live_stock_and_points_are_left_as_they_are(
    old_shop: OldShop,
) -> None:
    old_shop.put("book", a_book(), a_book("untouched"))
    old_shop.put("user", a_user())
    old_shop.import_()
    put_couriers({"van": 100})
    placed("o-1", "redeem_points", 10, redeem=True)
    old_shop.put("book", a_book(), a_book("untouched", price=1), a_book("new"))
    old_shop.put("user", a_user(), a_user("new", points=7))
    assert old_shop.import_() == 0
    assert the_book() == ("The 10X Rule", 20_00, 490, 500)
    assert the_book("untouched") == ("The 10X Rule", 20_00, 500, 500)
    assert the_customer() == ("Eduardo Santana", 100, 300, "pm_card_visa")
    assert the_customer("new")[1] == 7
    assert old_shop.outcomes("book") == {"left as it is here": 2, "new": 1}
    assert old_shop.outcomes("user") == {"left as it is here": 1, "new": 1}


@pytest.fixture
def stop_after(old_shop: OldShop, faults: Faults, no_delays: None) -> Callable[[int], None]:
    """Imports, with DynamoDB away after so many pages; it is back afterwards."""

    def stop(pages: int) -> None:
        away = dynamodb_error(503, "ServiceUnavailable")
        faults.answer("Scan", *[let_through] * pages, then=away)
        assert old_shop.import_() == 1
        forget_clients()

    return stop


def test_an_interrupted_import_goes_on_where_it_was(
    old_shop: OldShop,
    stop_after: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(dynamodb, "PAGE_ITEMS", 2)
    old_shop.put("book", *(a_book(f"book-{n}") for n in range(7)), a_book("bad", price=-1))
    old_shop.put("user", a_user())
    stop_after(2)
    assert "the same command goes on from there" in capsys.readouterr().err
    read_before = sum(old_shop.outcomes("book").values())
    assert read_before == 4
    # What was written after the last noted page is read again, and not listed twice.
    with (old_shop.folder / "rejects.csv").open("a") as file:
        file.write("cut off in the mid")
    assert old_shop.import_() == 1
    assert "goes on" in capsys.readouterr().out
    assert old_shop.outcomes("book") == {"new": 7, "rejected": 1}
    assert [key for key, _, _ in old_shop.rejects()] == ["bad"]
    assert counts() == (7, 1)


def test_a_page_that_was_put_but_not_noted_is_put_once(
    old_shop: OldShop, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_shop.put("book", a_book())
    with monkeypatch.context() as patch:
        patch.setattr(dynamodb.ImportFolder, "note", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            old_shop.import_()
    assert counts() == (1, 0)
    assert old_shop.import_() == 0
    assert old_shop.outcomes("book") == {"unchanged": 1}
    assert the_book() == ("The 10X Rule", 20_00, 500, 500)


def test_an_unfinished_import_of_something_else_is_refused(
    old_shop: OldShop, stop_after: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    old_shop.put("book", a_book())
    stop_after(1)
    old_shop.tables["book"], old_shop.tables["user"] = old_shop.tables["user"], "another"
    assert old_shop.import_() == 1
    assert "keeps an unfinished import of other tables" in capsys.readouterr().err


def test_a_table_that_is_not_there_and_one_of_another_shape_are_named(
    old_shop: OldShop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old_shop.tables["book"], gone = "gone", old_shop.tables["book"]
    assert old_shop.import_() == 1
    assert "reading gone: ResourceNotFoundException" in capsys.readouterr().err

    monkeypatch.setattr(dynamodb, "PAGE_ITEMS", 1)
    old_shop.folder = old_shop.folder.with_name("of-another-shape")
    old_shop.tables["book"], old_shop.tables["user"] = old_shop.tables["user"], gone
    old_shop.put("book", a_user("a"), a_user("b"))
    assert old_shop.import_() == 1
    assert "its key is userId, not the text bookId" in capsys.readouterr().err


def test_the_items_of_several_pages_move_in_with_totals_that_add_up(
    old_shop: OldShop, capsys: pytest.CaptureFixture[str]
) -> None:
    books = [
        a_book(f"book-{n}", quantity=n % 50, price=Decimal(n % 97) / 4, shelf="A")
        for n in range(2_000)
    ]
    old_shop.put("book", *books)
    old_shop.put("user", *(a_user(f"user-{n}", points=n % 10) for n in range(1_490)))
    old_shop.put("user", *(a_user(f"bad-{n}", points=-1) for n in range(10)))
    assert old_shop.import_() == 1
    assert old_shop.outcomes("book") == {"new": 2_000}
    assert old_shop.outcomes("user") == {"new": 1_490, "rejected": 10}
    copies, points = 2_000 // 50 * sum(range(50)), 1_490 // 10 * sum(range(10))
    assert (
        f"The shop has 2000 books with {copies} copies, 1490 customers with {points} points."
        in capsys.readouterr().out
    )
    place("o-1", 1, book_id="book-49", user_id="user-1")
