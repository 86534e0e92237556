"""A charge is captured once and refunded once, whatever the gateway answers and when."""

from collections.abc import Callable, Sequence

import pytest

from orders.intake import claim_orders, submit_orders
from store.embedded_gateway import EmbeddedGateway
from store.errors import (
    BillingError,
    CheckoutFailed,
    CustomerGone,
    KeyReused,
    PaymentGatewayUnavailable,
    PaymentRefused,
    StoreError,
)
from store.payments import Answer, Charge
from store.saga import fail_orders
from tasks import billing
from tasks.billing import bill_customer, refund_customer
from tests.shop import (
    add_customer,
    an_order,
    carry_on,
    end_run,
    give_back,
    kept_cents,
    ledger,
    order_row,
    place,
    placed,
    remove_customer,
    saga,
    saga_records,
    set_order,
    status,
)

DECLINED = "pm_card_chargeDeclined"


@pytest.fixture
def more_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The task that runs has tries left, as it has in Prefect before its last one."""
    monkeypatch.setattr(billing, "is_last_try", lambda: False)


def test_what_is_due_is_captured_under_a_key_of_the_attempt(database: str) -> None:
    placed("o-1", "redeem_points", 50, redeem=True)
    assert bill_customer.fn(["o-1"]) == ["o-1"]
    assert ledger() == [("o-1:1", "captured", 700_00)]
    assert saga_records("o-1")["bill_customer"].result == {
        "amount_cents": 700_00,
        "reference": "o-1:1",
    }


def test_an_order_is_billed_once_however_often_it_runs(database: str) -> None:
    placed("o-1", "calculate_total")
    for _ in range(3):
        assert bill_customer.fn(["o-1"]) == ["o-1"]
    assert ledger() == [("o-1:1", "captured", 20_00)]


def test_a_declined_card_ends_its_order_only(database: str) -> None:
    place("o-1", payment_method=DECLINED)
    place("o-2")
    carry_on(["o-1", "o-2"], "calculate_total")
    assert bill_customer.fn(["o-1", "o-2"]) == ["o-2"]
    assert order_row("o-1").message == "payment declined: the card was declined"
    assert end_run("o-1") == "compensated"
    assert ledger() == [("o-1:1", "declined", 20_00), ("o-2:1", "captured", 20_00)]


def test_a_declined_order_alone_raises_and_is_not_charged_when_it_runs_again(
    database: str,
) -> None:
    placed("o-1", "calculate_total", payment_method=DECLINED)
    for _ in range(2):
        with pytest.raises(BillingError, match=r"^payment declined: the card was declined$"):
            bill_customer.fn(["o-1"])
    assert kept_cents() == 0
    assert end_run("o-1") == "compensated"
    assert ledger() == [("o-1:1", "declined", 20_00)]


@pytest.mark.usefixtures("more_tries")
def test_a_gateway_that_fails_twice_is_asked_again_with_the_same_key(database: str) -> None:
    placed("o-1", "calculate_total", payment_method="pm_ledger_fail_2")
    for _ in range(2):
        with pytest.raises(PaymentGatewayUnavailable, match="no answer for o-1"):
            bill_customer.fn(["o-1"])
        assert saga("o-1")["bill_customer"] == "intended"
        assert kept_cents() == 0
    assert bill_customer.fn(["o-1"]) == ["o-1"]
    assert ledger() == [("o-1:1", "captured", 20_00)]


@pytest.mark.usefixtures("more_tries")
@pytest.mark.parametrize(
    ("method", "kept_after_the_first_try"),
    [("pm_ledger_timeout_before", 0), ("pm_ledger_timeout_after", 20_00)],
)
def test_a_time_out_leads_to_one_charge(
    database: str, method: str, kept_after_the_first_try: int
) -> None:
    placed("o-1", "calculate_total", payment_method=method)
    with pytest.raises(PaymentGatewayUnavailable):
        bill_customer.fn(["o-1"])
    assert kept_cents() == kept_after_the_first_try
    assert bill_customer.fn(["o-1"]) == ["o-1"]
    assert ledger() == [("o-1:1", "captured", 20_00)]


@pytest.mark.usefixtures("more_tries")
def test_the_orders_that_have_an_answer_are_not_asked_about_again(database: str) -> None:
    place("o-1", payment_method="pm_ledger_fail_1")
    place("o-2")
    place("o-3", payment_method=DECLINED)
    group = ["o-1", "o-2", "o-3"]
    carry_on(group, "calculate_total")
    with pytest.raises(PaymentGatewayUnavailable, match=r"^no answer for o-1$"):
        bill_customer.fn(group)
    assert [saga(id_)["bill_customer"] for id_ in group] == ["intended", "done", "void"]
    assert sorted(bill_customer.fn(group)) == ["o-1", "o-2"]
    assert kept_cents() == 40_00
    assert end_run("o-3") == "compensated"


@pytest.mark.parametrize("method", ["pm_ledger_fail_9", "pm_ledger_timeout_after"])
def test_a_charge_that_stays_unknown_ends_the_order_and_its_refund_settles_it(
    database: str, method: str
) -> None:
    placed("o-1", "calculate_total", payment_method=method)
    with pytest.raises(BillingError, match="outcome is unknown: the gateway did not answer"):
        bill_customer.fn(["o-1"])
    assert (status("o-1"), saga("o-1")["bill_customer"]) == ("compensating", "intended")
    assert end_run("o-1") == "compensated"
    assert saga("o-1")["bill_customer"] == "undone"
    assert kept_cents() == 0


def test_a_refund_gives_back_what_was_captured_once(database: str) -> None:
    placed("o-1", "bill_customer")
    set_order("o-1", status="compensating", error="CheckoutFailed")
    assert refund_customer.fn(["o-1"]) == ["o-1"]
    assert refund_customer.fn(["o-1"]) == []
    assert ledger() == [("o-1:1", "captured", 20_00), ("o-1:1:refund", "refunded", 20_00)]
    assert saga_records("o-1")["bill_customer"].undo_result == {
        "amount_cents": 20_00,
        "reference": "o-1:1:refund",
    }


def test_an_intent_whose_charge_never_left_is_settled_without_money(database: str) -> None:
    placed("o-1", "calculate_total", payment_method="pm_ledger_fail_9")
    with pytest.raises(BillingError):
        bill_customer.fn(["o-1"])
    refund_customer.fn(["o-1"])
    assert ledger() == [("o-1:1", "void", 20_00)]
    assert saga_records("o-1")["bill_customer"].undo_result == {
        "amount_cents": 0,
        "reference": "o-1:1",
    }
    end_run("o-1")


def test_an_order_that_goes_on_is_not_refunded(database: str) -> None:
    placed("o-1", "bill_customer")
    assert refund_customer.fn(["o-1"]) == []
    assert kept_cents() == 20_00


def test_a_refund_without_an_answer_is_asked_for_again_and_the_others_are_settled(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = ["o-1", "o-2"]
    for order_id in group:
        place(order_id)
    carry_on(group, "bill_customer")
    for order_id in group:
        set_order(order_id, status="compensating", error="CheckoutFailed")
    refund = EmbeddedGateway.refund

    def deaf_to_o_1(gateway: EmbeddedGateway, charges: Sequence[Charge]) -> dict[str, Answer]:
        answers = refund(gateway, [c for c in charges if c.order_id != "o-1"])
        return {"o-1:1": Answer("unknown", "o-1:1"), **answers}

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddedGateway, "refund", deaf_to_o_1)
        with pytest.raises(PaymentGatewayUnavailable, match=r"no answer for the refund of o-1$"):
            refund_customer.fn(group)
    assert (saga("o-1")["bill_customer"], saga("o-2")["bill_customer"]) == ("done", "undone")
    assert refund_customer.fn(group) == ["o-1"]
    assert kept_cents() == 0


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (
            lambda key: Answer("unknown", key),
            PaymentGatewayUnavailable,
            r"^no answer for the refund of o-00, o-01, .*, o-09 and 2 more$",
        ),
        (
            lambda key: Answer("refused", key, "the key is wrong"),
            PaymentRefused,
            r"^refund of o-00, o-01, .*, o-09 and 2 more: the key is wrong$",
        ),
        (
            lambda key: Answer("refused", key, f"no rights for {key}"),
            PaymentRefused,
            r"^refund of o-00: no rights for o-00:1; .*; refund of o-09: no .* o-09:1 and 2 more$",
        ),
    ],
    ids=["no answer", "one reason", "a reason for each"],
)
def test_what_a_group_of_refunds_fails_with_stays_short(
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[[str], Answer],
    error: type[StoreError],
    text: str,
) -> None:
    group = [f"o-{number:02}" for number in range(12)]
    for order_id in group:
        place(order_id)
    carry_on(group, "bill_customer")
    fail_orders(group, CheckoutFailed("the run failed"))
    with monkeypatch.context() as patch:
        patch.setattr(
            EmbeddedGateway, "refund", lambda _, charges: {c.key: answer(c.key) for c in charges}
        )
        with pytest.raises(error, match=text):
            refund_customer.fn(group)
    give_back(*group)


def test_a_charge_whose_key_was_used_otherwise_is_not_made(database: str) -> None:
    placed("o-1", "calculate_total")
    EmbeddedGateway().capture([Charge("o-1:1", "o-1", 1, "USD", "pm_card_visa")])
    with pytest.raises(KeyReused, match="key o-1:1 was used for 1 USD by pm_card_visa"):
        bill_customer.fn(["o-1"])
    assert ledger() == [("o-1:1", "captured", 1)]
    # Giving back gives back what was captured, not what should have been.
    assert end_run("o-1") == "compensated"
    assert ledger() == [("o-1:1", "captured", 1), ("o-1:1:refund", "refunded", 1)]


def test_an_old_attempts_late_answer_does_not_pay_for_the_new_attempt(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed("o-1", "calculate_total")
    capture = EmbeddedGateway.capture

    def slow(gateway: EmbeddedGateway, charges: Sequence[Charge]) -> dict[str, Answer]:
        answers = capture(gateway, charges)
        monkeypatch.undo()
        # While the answer is on its way the order is given back and begun again.
        end_run("o-1")
        placed("o-1", "calculate_total")
        return answers

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddedGateway, "capture", slow)
        bill_customer.fn(["o-1"])
    assert order_row("o-1").attempt == 2
    assert "bill_customer" not in saga("o-1")
    assert kept_cents() == 0
    carry_on(["o-1"])
    assert (status("o-1"), kept_cents()) == ("dispatched", 20_00)


def test_an_old_attempts_late_refund_does_not_count_for_the_new_attempt(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed("o-1", "bill_customer")
    fail_orders(["o-1"], CheckoutFailed("the run failed"))
    refund = EmbeddedGateway.refund

    def slow(gateway: EmbeddedGateway, charges: Sequence[Charge]) -> dict[str, Answer]:
        answers = refund(gateway, charges)
        patch.undo()
        # While the answer is on its way the order is begun again, billed, and fails once more.
        give_back("o-1")
        placed("o-1", "bill_customer")
        fail_orders(["o-1"], CheckoutFailed("the run failed"))
        return answers

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddedGateway, "refund", slow)
        with pytest.raises(PaymentGatewayUnavailable, match=r"no answer for the refund of o-1$"):
            refund_customer.fn(["o-1"])
    assert order_row("o-1").attempt == 2
    assert (saga("o-1")["bill_customer"], kept_cents()) == ("done", 20_00)
    assert give_back("o-1") == {"o-1": "compensated"}
    assert kept_cents() == 0


def test_a_customer_who_is_gone_is_not_charged_and_the_others_are(database: str) -> None:
    place("o-1", payment_method="pm_card_visa", user_id=add_customer("gone"))
    place("o-2")
    carry_on(["o-1", "o-2"], "calculate_total")
    remove_customer("gone")
    assert bill_customer.fn(["o-1", "o-2"]) == ["o-2"]
    assert (order_row("o-1").error, order_row("o-1").message) == (
        "CustomerGone",
        "customer gone is gone",
    )
    with pytest.raises(CustomerGone):
        bill_customer.fn(["o-1"])
    assert end_run("o-1") == "compensated"
    assert ledger("o-1") == []


@pytest.mark.usefixtures("more_tries")
def test_a_charge_in_doubt_is_asked_about_although_its_customer_is_gone(database: str) -> None:
    add_customer("gone")
    placed("o-1", "calculate_total", user_id="gone", payment_method="pm_ledger_timeout_after")
    with pytest.raises(PaymentGatewayUnavailable):
        bill_customer.fn(["o-1"])
    remove_customer("gone")
    assert bill_customer.fn(["o-1"]) == ["o-1"]
    assert kept_cents() == 20_00


def test_a_submitted_order_whose_customer_is_gone_is_not_charged(database: str) -> None:
    submit_orders([an_order("o-1", user_id=add_customer("gone"))])
    remove_customer("gone")
    assert claim_orders("run", 10) == ["o-1"]
    with pytest.raises(CustomerGone):
        carry_on(["o-1"], "bill_customer")
    assert end_run("o-1") == "compensated"
    assert ledger() == []
