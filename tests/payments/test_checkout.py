"""Checkouts that are paid by Stripe: the steps, and the flow in Prefect."""

from dataclasses import replace

import pytest

from reports.sales import sales
from store.database import snapshot, transaction
from store.errors import (
    BillingError,
    CompensationFailed,
    NoCourierAvailable,
    PaymentGatewayUnavailable,
    PaymentRefused,
)
from store.messages import NO_COURIER
from store.models import SagaRecord
from store.payments import DECLINED_METHOD
from store.saga import Backward
from store.stripe_gateway import CHARGE, MADE_WITHIN
from tasks import billing
from tasks.billing import bill_customer, refund_customer
from tests.flows.runs import Runs
from tests.payments.stand_in import CREATE, REFUND, Fault, StripeStandIn
from tests.sales_agree import EVER, added_up
from tests.shop import (
    an_order,
    at_once,
    carry_on,
    end_run,
    give_back,
    order_row,
    place,
    placed,
    saga,
    saga_records,
    set_order,
    status,
    statuses,
)


def of_order(order_id: str) -> dict[str, str]:
    return {f"metadata[{CHARGE}]": f"{order_id}:1"}


def test_each_order_of_a_group_has_the_ending_of_its_own_charge(
    database: str, paid_by_stripe: StripeStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(billing, "is_last_try", lambda: True)
    methods = {
        "good": None,
        "declined": DECLINED_METHOD,
        "nobodys": "pm_nobodys",
        "lost-before": None,
        "lost-after": None,
    }
    for order_id, method in methods.items():
        place(order_id, payment_method=method)
    for order_id in ("lost-before", "lost-after"):
        paid_by_stripe.faults.append(
            Fault(CREATE, about=of_order(order_id), is_done=order_id == "lost-after")
        )
    carry_on(list(methods), "calculate_total")
    assert bill_customer.fn(list(methods)) == ["good"]
    assert {id_: (saga(id_)["bill_customer"], order_row(id_).error) for id_ in methods} == {
        "good": ("done", None),
        "declined": ("void", "BillingError"),
        "nobodys": ("intended", "PaymentRefused"),
        "lost-before": ("intended", "BillingError"),
        "lost-after": ("intended", "BillingError"),
    }
    assert {end_run(id_) for id_ in methods if id_ != "good"} == {"compensated"}
    assert paid_by_stripe.captured() == {"good:1": 20_00, "lost-after:1": 20_00}
    assert paid_by_stripe.refunded() == {"lost-after:1": 20_00}
    with snapshot() as session:
        sums = added_up(sales(session, "day", EVER), ["captured_cents", "refunded_cents"])
    assert sums == {
        ("USD", "captured_cents"): paid_by_stripe.captured().total(),
        ("USD", "refunded_cents"): paid_by_stripe.refunded().total(),
    }


def test_a_charge_is_refunded_by_the_name_that_stripe_gave_it(
    database: str, paid_by_stripe: StripeStandIn
) -> None:
    placed("o-1", "bill_customer")
    set_order("o-1", status="compensating", error="CheckoutFailed")
    paid_by_stripe.keys.clear()
    assert refund_customer.fn(["o-1"]) == ["o-1"]
    given_back = saga_records("o-1")["bill_customer"].undo_result or {}
    assert given_back["amount_cents"] == 20_00
    assert given_back["reference"].startswith("re_")
    assert end_run("o-1") == "compensated"


def test_an_order_that_was_left_alone_for_a_day_while_it_was_billed_is_not_charged_again(
    database: str, paid_by_stripe: StripeStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(billing, "is_last_try", lambda: False)
    placed("o-1", "calculate_total")
    paid_by_stripe.faults.append(Fault(CREATE, is_done=True))
    with pytest.raises(Exception, match="no answer for o-1"):
        bill_customer.fn(["o-1"])
    paid_by_stripe.keys.clear()
    with transaction() as session:
        session.get_one(SagaRecord, ("o-1", 1, "bill_customer")).at -= MADE_WITHIN
    assert bill_customer.fn(["o-1"]) == ["o-1"]
    carry_on(["o-1"])
    assert status("o-1") == "dispatched"
    assert paid_by_stripe.captured() == {"o-1:1": 20_00}


def test_a_refund_that_stripe_refuses_is_left_to_a_person_and_the_others_are_settled(
    database: str, paid_by_stripe: StripeStandIn
) -> None:
    group = ["o-1", "o-2"]
    for order_id in group:
        placed(order_id, "bill_customer")
        set_order(order_id, status="compensating", error="CheckoutFailed")
    paid_by_stripe.faults.append(
        Fault(REFUND, about=of_order("o-1"), status=400, code="charge_disputed")
    )
    with pytest.raises(PaymentRefused, match=r"refund of o-1: Stripe does not take the call"):
        refund_customer.fn(group)
    assert [saga(id_)["bill_customer"] for id_ in group] == ["done", "undone"]
    assert {end_run(id_) for id_ in group} == {"compensated"}
    assert paid_by_stripe.refunded() == {"o-1:1": 20_00, "o-2:1": 20_00}


def refund_keys(paid_by_stripe: StripeStandIn) -> list[str]:
    return [call.headers["Idempotency-Key"] for call in paid_by_stripe.made(REFUND)]


def to_be_refunded(*order_ids: str) -> list[str]:
    for order_id in order_ids:
        placed(order_id, "bill_customer", 2)
        set_order(order_id, status="compensating", error="CheckoutFailed")
    return list(order_ids)


def no_balance(order_id: str) -> Fault:
    """Stripe's refusal while the account's balance is too small, which it repeats for a day."""
    about = {f"metadata[{CHARGE}]": f"{order_id}:1"}
    return Fault(REFUND, about=about, status=400, code="balance_insufficient", is_repeated=True)


def test_a_refund_for_which_the_balance_was_too_small_is_made_after_a_top_up(
    database: str, paid_by_stripe: StripeStandIn
) -> None:
    group = to_be_refunded("o-1", "o-2")
    paid_by_stripe.faults.append(no_balance("o-1"))
    with pytest.raises(PaymentRefused, match=r"refund of o-1: .*top up the balance"):
        refund_customer.fn(group)
    assert [saga(id_)["bill_customer"] for id_ in group] == ["done", "undone"]
    assert saga_records("o-1")["bill_customer"].result["refund"] == 2
    assert refund_customer.fn(group) == ["o-1"]
    assert sorted(refund_keys(paid_by_stripe)) == ["o-1:1:refund", "o-1:1:refund:2", "o-2:1:refund"]
    assert {end_run(id_) for id_ in group} == {"compensated"}
    assert paid_by_stripe.refunded() == {"o-1:1": 40_00, "o-2:1": 40_00}


def test_each_refusal_of_a_refund_takes_the_next_key_and_no_answer_keeps_it(
    database: str, paid_by_stripe: StripeStandIn
) -> None:
    to_be_refunded("o-1")
    refusal, silence = no_balance("o-1"), Fault(REFUND, status=503)
    for fault in (refusal, silence, replace(refusal), replace(silence)):
        paid_by_stripe.faults.append(fault)
        with pytest.raises((PaymentRefused, PaymentGatewayUnavailable)):
            refund_customer.fn(["o-1"])
    assert end_run("o-1") == "compensated"
    assert refund_keys(paid_by_stripe) == [
        "o-1:1:refund",
        "o-1:1:refund:2",
        "o-1:1:refund:2",
        "o-1:1:refund:3",
        "o-1:1:refund:3",
    ]
    assert paid_by_stripe.refunded() == {"o-1:1": 40_00}


def test_a_group_of_refused_refunds_is_asked_for_once_a_round_and_each_keeps_its_reason(
    database: str, paid_by_stripe: StripeStandIn
) -> None:
    group = to_be_refunded("o-1", "o-2", "o-3", "o-4")
    paid_by_stripe.faults += [no_balance("o-1"), replace(no_balance("o-3"), code="charge_disputed")]
    with pytest.raises(CompensationFailed, match="o-1, o-3"):
        give_back(*group)
    assert len(refund_keys(paid_by_stripe)) == 4
    undos = {id_: saga_records(id_)["bill_customer"] for id_ in group}
    assert [undos[id_].undo_tries for id_ in group] == [1, 0, 1, 0]
    for order_id, code in (("o-1", "balance_insufficient"), ("o-3", "charge_disputed")):
        beginning = f"PaymentRefused: refund of {order_id}: Stripe does not take the call ({code})"
        assert (undos[order_id].undo_error or "").startswith(beginning)
    give_back(*group)
    assert statuses(group) == {"compensated"}


def test_a_process_that_dies_before_the_next_key_is_recorded_does_not_use_it(
    database: str, paid_by_stripe: StripeStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_be_refunded("o-1")
    paid_by_stripe.faults.append(no_balance("o-1"))
    with monkeypatch.context() as dying:
        dying.setattr(Backward, "note", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            refund_customer.fn(["o-1"])
    with pytest.raises(PaymentRefused):
        refund_customer.fn(["o-1"])
    assert end_run("o-1") == "compensated"
    keys = ["o-1:1:refund", "o-1:1:refund", "o-1:1:refund:2"]
    assert refund_keys(paid_by_stripe) == keys


def test_a_refund_under_the_next_key_whose_answer_is_lost_is_made_once(
    database: str, paid_by_stripe: StripeStandIn
) -> None:
    to_be_refunded("o-1")
    paid_by_stripe.faults += [no_balance("o-1"), Fault(REFUND, is_done=True)]
    with pytest.raises(PaymentRefused):
        refund_customer.fn(["o-1"])
    with pytest.raises(PaymentGatewayUnavailable):
        refund_customer.fn(["o-1"])
    paid_by_stripe.keys.clear()
    assert end_run("o-1") == "compensated"
    assert paid_by_stripe.refunded() == {"o-1:1": 40_00}


def test_processes_that_refund_at_once_after_a_refusal_give_back_once(
    database: str, paid_by_stripe: StripeStandIn
) -> None:
    to_be_refunded("o-1")
    paid_by_stripe.faults.append(no_balance("o-1"))
    at_once([lambda: refund_customer.fn(["o-1"])] * 4)
    assert end_run("o-1") == "compensated"
    assert set(refund_keys(paid_by_stripe)) <= {"o-1:1:refund", "o-1:1:refund:2"}
    assert paid_by_stripe.refunded() == {"o-1:1": 40_00}


def test_checkouts_in_prefect_are_charged_declined_and_refunded(
    runs: Runs,
    paid_by_stripe: StripeStandIn,
) -> None:
    orders = {
        "charged": an_order("charged", 50, redeem=True),
        "declined": an_order("declined", payment_method=DECLINED_METHOD),
        "refunded": an_order("refunded", 2),
    }
    running = {order_id: runs.check_out(order) for order_id, order in orders.items()}
    runs.assign("charged")
    runs.answer(
        runs.paused("refunded"), outcome=NO_COURIER, reason="snow", answered_by="Ada", courier=""
    )
    assert running["charged"].result().result().billed_cents == 700_00
    with pytest.raises(BillingError, match=r"declined\. To be given back: 1 copies\.$"):
        running["declined"].result().result()
    with pytest.raises(NoCourierAvailable, match=r"snow\. To be given back: 40\.00 USD, 2 copies"):
        running["refunded"].result().result()
    assert {id_: status(id_) for id_ in orders} == {
        "charged": "dispatched",
        "declined": "compensated",
        "refunded": "compensated",
    }
    assert paid_by_stripe.captured() == {"charged:1": 700_00, "refunded:1": 40_00}
    assert paid_by_stripe.refunded() == {"refunded:1": 40_00}


def test_a_charge_that_gets_no_answer_is_tried_three_times_more_by_prefect(
    runs: Runs,
    paid_by_stripe: StripeStandIn,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bill_customer, "retry_delay_seconds", [0.0, 0.0, 0.0])
    paid_by_stripe.faults += [Fault(CREATE, status=503) for _ in range(3)]
    running = runs.check_out(an_order("o-1"))
    runs.assign("o-1")
    assert running.result().is_completed()
    assert len(paid_by_stripe.made(CREATE)) == 4
    assert paid_by_stripe.captured() == {"o-1:1": 20_00}


def test_a_declined_card_is_not_tried_again_by_prefect(
    runs: Runs,
    paid_by_stripe: StripeStandIn,
) -> None:
    running = runs.check_out(an_order("o-1", payment_method=DECLINED_METHOD))
    assert running.result().is_failed()
    assert len(paid_by_stripe.made(CREATE)) == 1
