"""Each error that can end an order: how it comes about, what it says, and what is left of it."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from unittest.mock import patch
from uuid import uuid4

import pytest
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from orders.lookup import outcome_error, read_order
from orders.waits import expire_waits
from seed.catalogue import TEN_X_RULE
from store.database import transaction
from store.embedded_gateway import EmbeddedGateway
from store.errors import (
    BillingError,
    BookHasNoPrice,
    BookNotFound,
    BookOutOfStock,
    CheckoutFailed,
    CompensationFailed,
    CourierWaitExpired,
    CustomerGone,
    NoCourierAvailable,
    OrderCancelled,
    OrderError,
    PaymentRefused,
    RedeemPointsError,
    recorded_error,
)
from store.messages import NO_COURIER, CheckoutOrder, CourierAnswer
from store.models import Book, Customer, utc_now
from store.payments import Answer, Charge
from store.saga import fail_orders
from tasks.couriers import record_answer
from tests.shop import (
    add_book,
    add_customer,
    carry_on,
    end_run,
    give_back,
    kept_cents,
    place,
    placed,
    points,
    remove_customer,
    saga_records,
    send,
    set_capacities,
    set_order,
    set_price,
    status,
    stock,
)


def unknown_book() -> None:
    place("o-1", book_id="unknown", redeem=True)
    carry_on(["o-1"], "check_inventory")


def too_many_copies() -> None:
    place("o-1", 501, redeem=True)
    carry_on(["o-1"], "check_inventory")


def price_taken_away() -> None:
    placed("o-1", "check_inventory", redeem=True)
    set_price(TEN_X_RULE, None)
    carry_on(["o-1"], "calculate_total", after="check_inventory")


def customer_gone() -> None:
    placed("o-1", "calculate_total", user_id=add_customer("gone", 5), redeem=True)
    remove_customer("gone")
    carry_on(["o-1"], "redeem_points", after="calculate_total")


def customer_deleted() -> None:
    placed("o-1", "calculate_total", user_id=add_customer("gone", 5))
    remove_customer("gone")
    carry_on(["o-1"], "bill_customer", after="calculate_total")


def card_declined() -> None:
    placed("o-1", "redeem_points", 50, redeem=True, payment_method="pm_card_chargeDeclined")
    carry_on(["o-1"], "bill_customer", after="redeem_points")


def call_refused() -> None:
    def refuse(_: EmbeddedGateway, charges: Sequence[Charge]) -> dict[str, Answer]:
        return {c.key: Answer("refused", c.key, "the key is wrong: set it") for c in charges}

    placed("o-1", "redeem_points", 50, redeem=True)
    with patch.object(EmbeddedGateway, "capture", refuse):
        carry_on(["o-1"], "bill_customer", after="redeem_points")


def nobody_carries_it() -> None:
    placed("o-1", "prepare_order", 50, redeem=True)
    record_answer("o-1", CourierAnswer(outcome=NO_COURIER, reason="snow", answered_by="Ada"))


def nobody_answered() -> None:
    placed("o-1", "prepare_order", 50, redeem=True)
    set_order("o-1", wait_until=utc_now() - timedelta(seconds=1))
    expire_waits(["o-1"])


def cancelled() -> None:
    placed("o-1", "prepare_order", 50, redeem=True)
    fail_orders(["o-1"], OrderCancelled("the run was cancelled in Prefect"))


def defect() -> None:
    placed("o-1", "bill_customer", 50, redeem=True)
    fail_orders(["o-1"], CheckoutFailed("ZeroDivisionError: division by zero"))


WAYS: dict[type[OrderError], tuple[Callable[[], None], str, str]] = {
    BookNotFound: (unknown_book, "no book has the id unknown", "rejected"),
    BookOutOfStock: (too_many_copies, "501 asked for, 500 in stock", "rejected"),
    BookHasNoPrice: (price_taken_away, "has no price any more", "compensated"),
    RedeemPointsError: (customer_gone, "customer gone is gone", "compensated"),
    CustomerGone: (customer_deleted, "customer gone is gone", "compensated"),
    BillingError: (card_declined, "payment declined: the card was declined", "compensated"),
    PaymentRefused: (call_refused, "the key is wrong: set it", "compensated"),
    NoCourierAvailable: (nobody_carries_it, "snow", "compensated"),
    CourierWaitExpired: (nobody_answered, "no courier answered until ", "compensated"),
    OrderCancelled: (cancelled, "the run was cancelled in Prefect", "compensated"),
    CheckoutFailed: (defect, "division by zero", "compensated"),
}


@pytest.mark.parametrize("error", list(WAYS), ids=lambda error: error.__name__)
def test_each_error_ends_its_order_is_kept_with_it_and_leaves_nothing_taken(
    database: str, error: type[OrderError]
) -> None:
    way, text, ending = WAYS[error]
    try:
        way()
    except OrderError as raised:
        assert type(raised) is error  # noqa: PT017
    kept = outcome_error(read_order("o-1"))
    assert type(kept) is error
    assert text in str(kept)

    assert end_run("o-1") == ending
    assert str(outcome_error(read_order("o-1"))) == str(kept)
    assert (stock(), points(), kept_cents()) == (500, 300, 0)


def restock() -> None:
    with transaction() as session:
        book = session.get_one(Book, TEN_X_RULE)
        book.quantity += 1
        book.initial_quantity += 1
    # No courier of the shop takes so many copies.
    set_capacities(freight=501)


MEND: dict[type[OrderError], Callable[[], object]] = {
    BookNotFound: lambda: add_book("unknown", 1),
    BookOutOfStock: restock,
    BookHasNoPrice: lambda: set_price(TEN_X_RULE, 20_00),
    RedeemPointsError: lambda: add_customer("gone", 5),
    CustomerGone: lambda: add_customer("gone", 5),
}
"""What the runbook has a person do before the order is tried again, where it is a change here."""


@pytest.mark.parametrize("error", list(WAYS), ids=lambda error: error.__name__)
def test_after_the_runbooks_remedy_the_order_is_dispatched(
    database: str, error: type[OrderError]
) -> None:
    with suppress(error):
        WAYS[error][0]()
    end_run("o-1")
    MEND.get(error, lambda: None)()
    again = {**read_order("o-1").request, "orderId": "o-1"}
    if error is BillingError:
        again |= {"orderId": "o-2", "paymentMethod": "pm_card_visa"}
    send(CheckoutOrder.model_validate(again), str(uuid4()))
    carry_on([again["orderId"]])
    assert status(again["orderId"]) == "dispatched"


def test_every_error_of_an_order_stands_in_the_table() -> None:
    assert {error.__name__: error for error in WAYS} == OrderError.by_name


def test_a_recorded_error_that_nobody_knows_any_more_is_a_failed_checkout() -> None:
    assert type(recorded_error("ErrorOfAnOldVersion", "it was so")) is CheckoutFailed


def test_a_technical_failure_is_kept_in_one_line_without_a_statement(database: str) -> None:
    placed("o-1", "bill_customer")
    with pytest.raises(IntegrityError) as defect, transaction() as session:
        session.execute(update(Customer).values(points=-1))
    fail_orders(["o-1"], CheckoutFailed(f"IntegrityError: {defect.value}"))
    message = read_order("o-1").message or ""
    assert "customers_points_not_negative" in message
    assert (len(message.splitlines()), "UPDATE" in message) == (1, False)
    with (
        patch.object(EmbeddedGateway, "refund", side_effect=ValueError("of two\nlines")),
        pytest.raises(CompensationFailed),
    ):
        give_back("o-1")
    assert saga_records("o-1")["bill_customer"].undo_error == "ValueError: of two lines"
    give_back("o-1")


def test_a_text_of_several_lines_is_kept_in_one(database: str) -> None:
    placed("o-1", "bill_customer")
    # The last one would clear the terminal of who lists the orders.
    fail_orders(["o-1"], CheckoutFailed("ValueError: one\n  two\r\nthree\x1b[2J"))
    assert read_order("o-1").message == "ValueError: one two three [2J"
    give_back("o-1")
