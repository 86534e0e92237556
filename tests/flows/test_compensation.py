"""The flow ``compensate``: undoes what is left, says loudly what it could not, ends it later."""

import logging
from collections.abc import Sequence

import pytest

from flows import compensation
from flows.compensation import UNDO, compensate, fail_and_compensate
from store.embedded_gateway import EmbeddedGateway
from store.errors import CheckoutFailed, CompensationFailed, PaymentGatewayUnavailable
from store.messages import NO_COURIER
from store.payments import Charge
from store.saga import fail_orders
from tasks.steps import UNDOS
from tests.flows.runs import Runs
from tests.shop import (
    an_order,
    carry_on,
    kept_cents,
    ledger,
    order_row,
    place,
    placed,
    points,
    saga,
    saga_records,
    status,
    stock,
)


def test_an_undo_that_fails_for_good_is_loud_and_a_later_round_ends_it(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("the refund is broken")

    running = runs.check_out(an_order("o-1", 50, redeem=True))
    run = runs.paused("o-1")
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR, "store.compensation"):
        patch.setattr(EmbeddedGateway, "refund", broken)
        runs.answer(run, outcome=NO_COURIER, reason="snow")
        assert running.result().is_failed()

    assert status("o-1") == "compensation_failed"
    assert {step: saga("o-1")[step] for step in UNDOS} == {
        "bill_customer": "done",
        "check_inventory": "undone",
        "redeem_points": "undone",
    }
    assert (stock(), points(), kept_cents()) == (500, 300, 700_00)
    record = saga_records("o-1")["bill_customer"]
    assert (record.undo_tries, record.undo_error) == (1, "ZeroDivisionError: the refund is broken")
    assert "undo refund_customer failed" in caplog.text
    (failed,) = runs.compensations("o-1")
    assert failed.state is not None
    assert failed.state.is_failed()
    assert failed.state.message is not None
    assert "CompensationFailed: not everything could be given back for o-1" in failed.state.message

    assert compensate(["o-1"]) == {"o-1": "compensated"}
    assert (status("o-1"), kept_cents()) == ("compensated", 0)
    assert order_row("o-1").error == "NoCourierAvailable"
    assert compensate(["o-1"]) == {}
    assert len(ledger("o-1")) == 2


def test_an_undo_that_meets_an_outage_is_tried_again_by_itself(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    refund = EmbeddedGateway.refund
    calls: list[int] = []

    def away_twice(gateway: EmbeddedGateway, charges: object) -> object:
        calls.append(1)
        if len(calls) < 3:
            raise PaymentGatewayUnavailable("not now")
        return refund(gateway, charges)  # type: ignore[arg-type]

    monkeypatch.setattr(EmbeddedGateway, "refund", away_twice)
    patient = {step: undo.with_options(retry_delay_seconds=0) for step, undo in UNDO.items()}
    monkeypatch.setattr(compensation, "UNDO", patient)
    placed("o-1", "prepare_order", 50, redeem=True)
    fail_orders(["o-1"], CheckoutFailed("stopped"))
    assert compensate(["o-1"]) == {"o-1": "compensated"}
    assert (len(calls), kept_cents()) == (3, 0)
    assert saga_records("o-1")["bill_customer"].undo_tries == 0


def test_a_group_is_given_back_order_by_order(runs: Runs) -> None:
    group = ["o-1", "o-2", "o-3", "o-4"]
    for order_id in group:
        place(order_id, 10, redeem=True)
    carry_on(group, "redeem_points")
    carry_on(["o-1", "o-2"], "prepare_order", after="redeem_points")
    fail_orders(["o-1", "o-3"], CheckoutFailed("stopped"))
    assert compensate(group) == {"o-1": "compensated", "o-3": "compensated"}
    assert [status(id_) for id_ in group] == ["compensated", "waiting", "compensated", "started"]
    carry_on(["o-2", "o-4"])
    assert stock() == 480


def test_a_group_that_could_not_all_be_given_back_names_who_is_left(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = [f"o-{n:02}" for n in range(12)]
    for order_id in group:
        place(order_id)
    carry_on(group, "bill_customer")
    fail_orders(group, CheckoutFailed("stopped"))
    with monkeypatch.context() as patch:
        patch.setattr(EmbeddedGateway, "refund", lambda *_: 1 / 0)
        with pytest.raises(CompensationFailed, match="o-08, o-09 and 2 more; it is tried again"):
            compensate(group)
    assert set(compensate(group).values()) == {"compensated"}
    assert (stock(), kept_cents()) == (500, 0)


def test_a_defect_that_one_undo_hits_is_recorded_with_that_order_alone(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = [f"o-{n}" for n in range(5)]
    for order_id in group:
        place(order_id)
    carry_on(group, "bill_customer")
    fail_orders(group, CheckoutFailed("stopped"))
    refund = EmbeddedGateway.refund

    def broken_for_one(gateway: EmbeddedGateway, charges: Sequence[Charge]) -> object:
        if any(charge.order_id == "o-3" for charge in charges):
            raise ZeroDivisionError("the refund is broken")
        return refund(gateway, charges)

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddedGateway, "refund", broken_for_one)
        with pytest.raises(CompensationFailed, match="given back for o-3; it is tried"):
            compensate(group)
    tries = {id_: saga_records(id_)["bill_customer"].undo_tries for id_ in group}
    assert tries == {"o-0": 0, "o-1": 0, "o-2": 0, "o-3": 1, "o-4": 0}
    assert compensate(group) == {"o-3": "compensated"}
    assert (stock(), kept_cents()) == (500, 0)


def test_the_run_of_a_compensation_is_found_by_each_of_its_orders(runs: Runs) -> None:
    group = ["o-1", "o-2"]
    for order_id in group:
        place(order_id)
    carry_on(group, "check_inventory")
    fail_and_compensate(dict.fromkeys(group, 1), CheckoutFailed("stopped"))
    (first,), (second,) = runs.compensations("o-1"), runs.compensations("o-2")
    assert first.id == second.id


def test_orders_that_go_on_are_left_alone(runs: Runs) -> None:
    placed("o-1", "find_couriers", 50, redeem=True)
    placed("o-2", "bill_customer", 5)
    assert compensate(["o-1", "o-2", "unknown"]) == {}
    assert (status("o-1"), status("o-2")) == ("dispatching", "started")
    assert stock() == 445
