"""`checkout stock`: copies that come in and go, while orders hold others."""

from collections.abc import Callable
from functools import partial

import pytest

from console.stock import COPIES_AT_MOST, add
from seed.catalogue import TEN_X_RULE
from store.database import transaction
from store.models import Book
from tests.console.conftest import Call
from tests.shop import add_book, at_once, end_run, placed, shop, stock

pytestmark = pytest.mark.usefixtures("database")


def test_what_came_in_and_what_is_gone_leave_the_books_balanced(checkout: Call) -> None:
    placed("o-1", "dispatch_order", 2)
    placed("o-2", "check_inventory", 3)
    before = stock()
    said = checkout("stock", "add", TEN_X_RULE, "40")
    assert said.out == (
        f"“The 10X Rule” ({TEN_X_RULE}): {before} copies in stock before, {before + 40} now\n"
    )
    left = checkout("stock", "remove", TEN_X_RULE, "15", "--json").data
    assert (left["in_stock"], left["held_or_sold"]) == (before + 25, 5)
    assert stock() == before + 25
    assert checkout("audit").status == 0
    end_run("o-2")
    assert stock() == before + 28
    assert checkout("audit").status == 0


def test_copies_that_orders_hold_cannot_be_removed(checkout: Call) -> None:
    add_book("rare", 5)
    placed("o-1", "check_inventory", 2, book_id="rare")
    before = shop()
    said = checkout("stock", "remove", "rare", "4")
    assert said.status == 1
    assert "(rare) has 3 copies in stock, fewer than 4. Nothing was changed." in said.err
    assert shop() == before
    assert checkout("stock", "remove", "rare", "3").status == 0
    assert checkout("audit").status == 0


def test_an_unknown_book_is_refused_with_where_to_look(checkout: Call) -> None:
    said = checkout("stock", "add", "no-such", "4")
    assert said.status == 1
    assert "There is no book no-such; `checkout stock list` has their ids." in said.err


@pytest.mark.parametrize("copies", ["0", "-1", "2.7", "1e2", "many", str(COPIES_AT_MOST + 1)])
def test_a_number_of_copies_that_makes_no_sense_changes_nothing(
    checkout: Call, copies: str
) -> None:
    before = stock()
    said = checkout("stock", "add", TEN_X_RULE, copies)
    assert (said.status, stock()) == (2, before)


def test_deliveries_and_orders_at_the_same_time_lose_no_copy(checkout: Call) -> None:
    before = stock()
    calls: list[Callable[[], object]] = []
    for n in range(4):
        calls += [partial(placed, f"o-{n}", "prepare_order", 2), partial(add, TEN_X_RULE, 10)]
    assert at_once(calls) == ["o-0", 0, "o-1", 0, "o-2", 0, "o-3", 0]
    assert stock() == before + 40 - 8
    assert checkout("audit").status == 0


def test_the_list_begins_with_the_fewest(checkout: Call) -> None:
    add_book("last", 1)
    add_book("none", 0)
    with transaction() as session:
        session.get_one(Book, "none").title = "50 % off"
    said = checkout("stock", "list", "--limit", "2", "--json")
    assert [(book["book_id"], book["in_stock"]) for book in said.data] == [("none", 0), ("last", 1)]
    assert "There are more than these 2" in said.err
    few = checkout("stock", "list", "--below", "1", "--json").data
    assert [book["book_id"] for book in few] == ["none"]
    assert "50 % off" in checkout("stock", "list", "--title", "% OFF").out
    assert checkout("stock", "list", "--title", "%o").out == "There is no such book.\n"
