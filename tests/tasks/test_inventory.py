"""Copies are reserved once, all of an order or none, and never more than there are."""

import pytest

from seed.catalogue import STRIPED_PAJAMAS, TEN_X_RULE
from store.errors import BookHasNoPrice, BookNotFound, BookOutOfStock, NoCourierAvailable
from tasks.inventory import check_inventory, restore_quantity
from tests.shop import (
    add_book,
    end_run,
    ledger,
    order_row,
    place,
    placed,
    queued,
    saga,
    saga_records,
    set_capacities,
    set_order,
    set_price,
    shop,
    status,
    stock,
)


def test_the_copies_of_every_title_are_reserved_and_recorded(database: str) -> None:
    place("o-1", items={TEN_X_RULE: 5, STRIPED_PAJAMAS: 7})
    assert check_inventory.fn(["o-1"]) == ["o-1"]
    assert (stock(TEN_X_RULE), stock(STRIPED_PAJAMAS)) == (495, 393)
    record = saga_records("o-1")["check_inventory"]
    assert record.state == "done"
    assert record.result == {"copies": {TEN_X_RULE: 5, STRIPED_PAJAMAS: 7}}


def test_copies_are_reserved_once_however_often_it_runs(database: str) -> None:
    place("o-1", 5)
    for _ in range(3):
        assert check_inventory.fn(["o-1"]) == ["o-1"]
    assert stock() == 495


def test_the_last_copy_can_be_sold(database: str) -> None:
    add_book("rare", 1)
    place("o-1", book_id="rare")
    assert check_inventory.fn(["o-1"]) == ["o-1"]
    assert stock("rare") == 0


@pytest.mark.parametrize(
    ("error", "text", "options"),
    [
        (BookNotFound, "^no book has the id unknown$", {"book_id": "unknown"}),
        (BookOutOfStock, r"The 10X Rule.*: 501 asked for, 500 in stock", {"quantity": 501}),
        (BookHasNoPrice, "“Book unpriced” .* has no price", {"book_id": "unpriced"}),
        (BookOutOfStock, "1 asked for, 0 in stock", {"book_id": "sold-out"}),
        (BookNotFound, "unknown", {"items": {TEN_X_RULE: 1, "unknown": 1}}),
        (BookOutOfStock, "401 asked", {"items": {TEN_X_RULE: 1, STRIPED_PAJAMAS: 401}}),
    ],
)
def test_an_order_that_cannot_be_served_takes_nothing(
    database: str, error: type[Exception], text: str, options: dict[str, object]
) -> None:
    add_book("unpriced", 9, price_cents=None)
    add_book("sold-out", 0)
    place("o-1", redeem=True, **options)  # type: ignore[arg-type]
    before = shop()
    with pytest.raises(error, match=text):
        check_inventory.fn(["o-1"])
    assert shop() == before
    assert (status("o-1"), saga("o-1"), ledger(), queued()) == ("rejected", {}, [], [])
    assert order_row("o-1").error == error.__name__


def test_orders_of_a_group_that_can_be_served_are_served_in_their_order(database: str) -> None:
    add_book("few", 10)
    place("o-1", 6, book_id="few")
    place("o-2", 5, book_id="few")
    place("o-3", 4, book_id="few")
    place("o-4", book_id="unknown")
    assert check_inventory.fn(["o-4", "o-3", "o-2", "o-1"]) == ["o-3", "o-2"]
    assert stock("few") == 1
    assert [status(f"o-{n}") for n in (1, 2, 3, 4)] == [
        "rejected",
        "started",
        "started",
        "rejected",
    ]
    assert order_row("o-1").message == "“Book few” (few): 6 asked for, 1 in stock"


def test_a_group_of_which_no_order_goes_on_raises_the_first_ones_error(database: str) -> None:
    place("o-1", book_id="unknown")
    place("o-2", 501)
    with pytest.raises(BookOutOfStock):
        check_inventory.fn(["o-2", "o-1"])
    assert order_row("o-1").error == "BookNotFound"


def test_an_order_that_ended_reserves_nothing_and_its_error_is_raised_again(database: str) -> None:
    place("o-1", 501)
    for _ in range(2):
        with pytest.raises(BookOutOfStock, match="501 asked for, 500 in stock"):
            check_inventory.fn(["o-1"])


def test_copies_that_came_meanwhile_are_kept_when_others_are_given_back(database: str) -> None:
    placed("o-1", "check_inventory", 5)
    placed("o-2", "check_inventory", 3)
    assert end_run("o-1") == "compensated"
    assert stock() == 497
    record = saga_records("o-1")["check_inventory"]
    assert (record.state, record.undo_result) == ("undone", {"copies": {TEN_X_RULE: 5}})
    assert record.undone_at is not None


def test_copies_are_given_back_once_however_often_it_runs(database: str) -> None:
    placed("o-1", "check_inventory", 5)
    set_order("o-1", status="compensating", error="CheckoutFailed")
    assert restore_quantity.fn(["o-1"]) == ["o-1"]
    assert restore_quantity.fn(["o-1"]) == []
    assert stock() == 500


@pytest.mark.parametrize("state", ["started", "dispatching", "dispatched"])
def test_copies_of_an_order_that_goes_on_are_not_given_back(database: str, state: str) -> None:
    placed("o-1", "check_inventory", 5)
    set_order("o-1", status=state)
    assert restore_quantity.fn(["o-1"]) == []
    assert stock() == 495
    set_order("o-1", status="started")


def test_copies_that_were_never_taken_are_not_given_back(database: str) -> None:
    place("o-1", 5)
    set_order("o-1", status="compensating", error="CheckoutFailed")
    assert restore_quantity.fn(["o-1"]) == []
    assert stock() == 500


def test_a_price_taken_away_after_the_reservation_does_not_hinder_giving_back(
    database: str,
) -> None:
    placed("o-1", "check_inventory", 5)
    set_price(TEN_X_RULE, None)
    assert end_run("o-1") == "compensated"
    assert stock() == 500


@pytest.mark.parametrize(
    ("capacities", "quantity", "why"),
    [
        ({"small": 10, "large": 120}, 121, "^no courier carries 121 copies at once$"),
        ({}, 1, "^no courier has any capacity$"),
    ],
    ids=["some", "none"],
)
def test_an_order_that_no_courier_can_carry_is_ended_before_it_is_charged(
    database: str, capacities: dict[str, int], quantity: int, why: str
) -> None:
    set_capacities(**capacities)
    place("too-large", quantity, redeem=True)
    before = shop()
    with pytest.raises(NoCourierAvailable, match=why):
        check_inventory.fn(["too-large"])
    assert (status("too-large"), order_row("too-large").error) == ("rejected", "NoCourierAvailable")
    assert shop() == before
    assert (saga("too-large"), ledger()) == ({}, [])


def test_whole_capacities_count_and_not_what_is_free_of_them(database: str) -> None:
    set_capacities(only=10)
    placed("busy", "find_couriers", 8)
    place("fits", 10)
    place("cart", items={TEN_X_RULE: 6, STRIPED_PAJAMAS: 5})
    assert check_inventory.fn(["cart", "fits"]) == ["fits"]
    assert order_row("cart").message == "no courier carries 11 copies at once"


def test_an_order_that_is_too_large_and_out_of_stock_is_out_of_stock(database: str) -> None:
    place("o-1", 501)
    with pytest.raises(BookOutOfStock):
        check_inventory.fn(["o-1"])
