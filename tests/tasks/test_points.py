"""Points are spent by increments, in whole points, and given back to whom they came from."""

from collections.abc import Callable

import pytest

from seed.catalogue import EDUARDO_SANTANA, JOHN_DOE, TEN_X_RULE
from store.errors import RedeemPointsError
from tasks.points import redeem_points, restore_points
from tests.shop import (
    add_book,
    add_customer,
    carry_on,
    end_run,
    ledger,
    order_row,
    place,
    placed,
    points,
    remove_customer,
    saga,
    saga_records,
    set_order,
    shop,
    status,
)


@pytest.mark.parametrize(
    ("price_cents", "redeemed", "due_cents"),
    [
        (1000_00, 300, 700_00),
        (300_00, 300, 0),
        (299_99, 299, 99),
        (20_00, 20, 0),
        (99, 0, 99),
        (0, 0, 0),
    ],
)
def test_points_pay_as_far_as_they_go_in_whole_points(
    database: str, price_cents: int, redeemed: int, due_cents: int
) -> None:
    add_book("book", 1, price_cents)
    placed("o-1", "redeem_points", book_id="book", redeem=True)
    order = order_row("o-1")
    assert (order.points_redeemed, order.due_cents) == (redeemed, due_cents)
    assert points() == 300 - redeemed
    assert saga_records("o-1")["redeem_points"].result == {
        "points": redeemed,
        "user_id": EDUARDO_SANTANA,
    }


@pytest.mark.parametrize(
    ("price_cents", "smallest_cents", "redeemed"),
    [
        (20_49, 50, 19),
        (20_50, 50, 20),
        (20_00, 50, 20),
        (300_49, 50, 299),
        (20_00, 2_50, 20),
        (20_10, 2_50, 17),
        (49, 50, 0),
        (1_49, 2_50, 0),
        (20_01, 0, 20),
    ],
)
def test_points_leave_nothing_to_pay_or_what_can_be_charged(
    database: str,
    setting: Callable[[str, object], None],
    price_cents: int,
    smallest_cents: int,
    redeemed: int,
) -> None:
    setting("smallest_charge_cents", smallest_cents)
    add_book("book", 1, price_cents)
    placed("o-1", "redeem_points", book_id="book", redeem=True)
    order = order_row("o-1")
    assert (order.points_redeemed, order.due_cents) == (redeemed, price_cents - redeemed * 100)


def test_points_are_spent_once_however_often_it_runs(database: str) -> None:
    placed("o-1", "calculate_total", 5, redeem=True)
    for _ in range(3):
        assert redeem_points.fn(["o-1"]) == ["o-1"]
    assert (points(), order_row("o-1").due_cents) == (200, 0)


def test_an_order_that_does_not_redeem_goes_on_untouched(database: str) -> None:
    placed("o-1", "calculate_total", 5)
    assert redeem_points.fn(["o-1"]) == ["o-1"]
    assert points() == 300
    assert "redeem_points" not in saga("o-1")


def test_one_customers_orders_in_a_group_share_the_points_in_their_order(database: str) -> None:
    for order_id in ("o-1", "o-2", "o-3"):
        place(order_id, 10, redeem=True)
    carry_on(["o-1", "o-2", "o-3"], "calculate_total")
    redeem_points.fn(["o-3", "o-1", "o-2"])
    assert [order_row(f"o-{n}").points_redeemed for n in (3, 1, 2)] == [200, 100, 0]
    assert points() == 0


def test_a_customer_who_is_gone_ends_her_order_only(database: str) -> None:
    add_customer("gone", 50)
    place("o-1", 5, user_id="gone", redeem=True)
    place("o-2", 5, redeem=True)
    carry_on(["o-1", "o-2"], "calculate_total")
    remove_customer("gone")
    assert redeem_points.fn(["o-1", "o-2"]) == ["o-2"]
    assert (order_row("o-1").error, order_row("o-1").message) == (
        "RedeemPointsError",
        "customer gone is gone",
    )
    assert end_run("o-1") == "compensated"
    with pytest.raises(RedeemPointsError):
        redeem_points.fn(["o-1"])


def test_giving_points_back_never_creates_a_customer_again(database: str) -> None:
    add_customer("gone", 50)
    placed("o-1", "bill_customer", 5, user_id="gone", redeem=True)
    remove_customer("gone")
    assert end_run("o-1") == "compensated"
    assert set(shop().points) == {EDUARDO_SANTANA, JOHN_DOE}
    record = saga_records("o-1")["redeem_points"]
    assert (record.state, record.undo_result) == (
        "undone",
        {"points": 0, "reason": "customer gone is gone"},
    )


def test_points_granted_meanwhile_are_kept_when_the_order_is_given_back(database: str) -> None:
    placed("o-1", "redeem_points", 5, redeem=True)
    placed("o-2", "redeem_points", 4, redeem=True)
    assert points() == 120
    assert end_run("o-1") == "compensated"
    assert points() == 220


def test_points_are_given_back_once_however_often_it_runs(database: str) -> None:
    placed("o-1", "redeem_points", 5, redeem=True)
    set_order("o-1", status="compensating", error="CheckoutFailed")
    assert restore_points.fn(["o-1"]) == ["o-1"]
    assert restore_points.fn(["o-1"]) == []
    assert points() == 300


def test_points_of_a_group_go_back_to_each_customer(database: str) -> None:
    place("o-1", 5, redeem=True)
    place("o-2", 5, redeem=True, user_id=JOHN_DOE)
    place("o-3", 1, redeem=True)
    group = ["o-1", "o-2", "o-3"]
    carry_on(group, "redeem_points")
    assert (points(), points(JOHN_DOE)) == (180, 0)
    for order_id in group:
        set_order(order_id, status="compensating", error="CheckoutFailed")
    assert restore_points.fn(group) == group
    assert (points(), points(JOHN_DOE)) == (300, 100)


def test_points_of_an_order_that_goes_on_are_not_given_back(database: str) -> None:
    placed("o-1", "redeem_points", 5, redeem=True)
    assert restore_points.fn(["o-1"]) == []
    assert points() == 200


def test_an_order_paid_wholly_in_points_is_not_billed_and_is_dispatched(database: str) -> None:
    placed("o-1", "dispatch_order", 15, redeem=True)
    assert (status("o-1"), points(), ledger()) == ("dispatched", 0, [])
    assert "bill_customer" not in saga("o-1")


def test_an_order_paid_wholly_in_points_gets_them_back(database: str) -> None:
    placed("o-1", "prepare_order", 15, redeem=True)
    assert end_run("o-1") == "compensated"
    assert (points(), ledger()) == (300, [])
    assert shop().stock[TEN_X_RULE] == 500
