"""Waiting orders are answered in the terminal, all of a call or none of them."""

import pytest

from flows.actions import by_hand
from flows.checkout import store_checkout
from orders.batches import begin_batch
from store.messages import CourierAnswer
from tests.flows.runs import Runs
from tests.shop import (
    an_order,
    assign,
    decisions,
    order_row,
    placed,
    set_capacities,
    shop,
    status,
)

from .conftest import Call

BY = ("--by", "Ada")


def test_an_answer_dispatches_the_orders_and_wakes_their_runs(runs: Runs, checkout: Call) -> None:
    running = [runs.check_out(an_order(id_)) for id_ in ("o-1", "o-2")]
    for id_ in ("o-1", "o-2"):
        runs.paused(id_)
    said = checkout("answer", "o-1", "o-2", "o-1", "--courier", "city-vans", *BY)
    assert (said.status, said.err) == (0, "")
    assert "Courier city-vans takes order o-1" in said.out
    assert [future.result().is_completed() for future in running] == [True, True]
    assert decisions("o-2") == [("courier assigned", "city-vans", True)]


def test_an_order_of_a_batch_that_no_courier_takes_has_the_reason(
    runs: Runs, checkout: Call
) -> None:
    begin_batch("00000000-0000-0000-0000-000000000001", None)
    placed("o-1", "prepare_order", run_id="00000000-0000-0000-0000-000000000001")
    said = checkout("answer", "o-1", "--none", "--reason", "snow", *BY, "--json")
    assert said.data == [{"order_id": "o-1", "status": "compensating"}]
    assert (order_row("o-1").error, order_row("o-1").message) == ("NoCourierAvailable", "snow")


def test_prefect_is_asked_once_for_all_orders_of_a_batch(
    runs: Runs, checkout: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = "00000000-0000-0000-0000-000000000001"
    begin_batch(run_id, None)
    asked: list[tuple[str | None, list[str]]] = []
    monkeypatch.setattr(by_hand, "record_answers_left", lambda _, *of: asked.append(of))
    for order_id in ("o-1", "o-2"):
        placed(order_id, "prepare_order", run_id=run_id)
    assert checkout("answer", "o-1", "o-2", "--courier", "city-vans", *BY).status == 0
    assert asked == [(run_id, ["o-1", "o-2"])]


def test_an_answer_that_prefect_accepted_before_counts(runs: Runs, checkout: Call) -> None:
    run = runs.client.create_flow_run(store_checkout)
    placed("o-1", "prepare_order", run_id=str(run.id))
    first = CourierAnswer(outcome="courier assigned", courier="city-vans", answered_by="Bob")
    runs.client.create_flow_run_input(
        run.id, "paused-courier-1-x-response", first.model_dump_json()
    )
    said = checkout("answer", "o-1", "--none", "--reason", "snow", *BY)
    assert (said.status, status("o-1")) == (1, "dispatching")
    assert "order: o-1 is dispatching by courier city-vans" in said.err


@pytest.mark.parametrize(
    ("orders", "wrong"),
    [
        (["o-1", "gone"], "There is no order gone"),
        (["o-1", "answered"], "answered is dispatching by courier small"),
        (["o-1", "o-2"], "has room for 3 copies, the 2 orders have 4"),
    ],
)
def test_what_cannot_be_answered_as_a_whole_changes_nothing(
    runs: Runs, checkout: Call, orders: list[str], wrong: str
) -> None:
    set_capacities(small=4)
    placed("answered", "prepare_order")
    assign("answered", "small")
    for id_ in ("o-1", "o-2"):
        placed(id_, "prepare_order", 2)
    before = shop()
    said = checkout("answer", *orders, "--courier", "small", *BY)
    assert said.status == 1
    assert wrong in said.err
    assert (status("o-1"), decisions("o-1"), shop()) == ("waiting", [], before)


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        (BY, "Give either --courier ID, or --none"),
        (("--courier", "small", "--none", *BY), "Give either --courier ID, or --none"),
        (("--none", *BY), "--reason is missing"),
        (("--courier", "small", "--reason", "snow", *BY), "--reason is for --none"),
        (("--courier", "small", "--by", " "), "--by is empty"),
        (("--courier", "x" * 65, *BY), "--courier: "),
        (("--courier", "small"), "--by"),
    ],
)
def test_wrong_usage_names_the_option(
    database: str, checkout: Call, options: tuple[str, ...], wrong: str
) -> None:
    said = checkout("answer", "o-1", *options)
    assert said.status == 2
    assert wrong in said.err
