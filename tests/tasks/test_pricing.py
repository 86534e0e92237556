"""The total is fixed once; a price that changes later does not count."""

import pytest
from sqlalchemy.exc import IntegrityError

from seed.catalogue import STRIPED_PAJAMAS, TEN_X_RULE
from store.errors import BookHasNoPrice
from tasks.pricing import calculate_total
from tests.shop import carry_on, end_run, order_row, place, placed, saga, set_price, status, stock


def test_the_total_is_the_sum_of_all_titles(database: str) -> None:
    placed("o-1", "check_inventory", items={TEN_X_RULE: 3, STRIPED_PAJAMAS: 2})
    assert calculate_total.fn(["o-1"]) == ["o-1"]
    assert (order_row("o-1").total_cents, order_row("o-1").due_cents) == (210_00, 210_00)


def test_a_price_that_changes_later_does_not_count(database: str) -> None:
    placed("o-1", "calculate_total", 3)
    set_price(TEN_X_RULE, 99_00)
    assert calculate_total.fn(["o-1"]) == ["o-1"]
    assert order_row("o-1").total_cents == 60_00


def test_a_total_beyond_32_bits_is_exact(database: str) -> None:
    set_price(TEN_X_RULE, 999_999_999_99)
    placed("o-1", "calculate_total", 200)
    assert order_row("o-1").total_cents == 200 * 999_999_999_99


def test_an_order_whose_price_is_gone_is_given_back_and_the_others_go_on(database: str) -> None:
    place("o-1", 3)
    place("o-2", 3, book_id=STRIPED_PAJAMAS)
    carry_on(["o-1", "o-2"], "check_inventory")
    set_price(TEN_X_RULE, None)
    assert calculate_total.fn(["o-1", "o-2"]) == ["o-2"]
    assert order_row("o-1").message == f"book {TEN_X_RULE} has no price any more"
    assert status("o-1") == "compensating"
    assert end_run("o-1") == "compensated"
    assert saga("o-1") == {"check_inventory": "undone"}
    assert stock() == 500


def test_an_order_alone_whose_price_is_gone_raises(database: str) -> None:
    placed("o-1", "check_inventory")
    set_price(TEN_X_RULE, None)
    with pytest.raises(BookHasNoPrice, match="no price any more"):
        calculate_total.fn(["o-1"])


def test_no_price_is_below_zero_since_it_would_give_points_away(database: str) -> None:
    set_price(TEN_X_RULE, 0)
    placed("o-1", "dispatch_order", 3, redeem=True)
    assert (order_row("o-1").points_redeemed, order_row("o-1").due_cents) == (0, 0)
    with pytest.raises(IntegrityError, match="books_price_not_negative"):
        set_price(TEN_X_RULE, -1)
