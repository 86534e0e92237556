"""One order's story on the command line: where it stands, what comes next, one timeline."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings
from prefect.states import AwaitingRetry, Crashed, Paused, Running

from console.show import BY_RECOVERY, what_next
from flows.checkout import store_checkout
from flows.recovery import Move
from flows.runs.continuation import CONTINUATION, CONTINUED
from orders.batches import begin_batch
from orders.intake import submit_orders
from store.errors import CheckoutFailed
from store.messages import ASSIGNED, NO_COURIER
from store.models import utc_now
from store.saga import fail_orders
from tests.flows.runs import Runs
from tests.shop import (
    an_order,
    end_run,
    failed,
    give_back,
    order_row,
    place,
    placed,
    set_order,
)

from .conftest import Call


def test_one_timeline_holds_what_the_store_and_prefect_know_of_all_attempts(
    runs: Runs, checkout: Call
) -> None:
    order_id = "told"
    order = an_order(order_id, 50, redeem=True)
    running = runs.check_out(order)
    run = runs.paused(order_id)
    shown = checkout("show", order_id, "--json").data
    assert (shown["status"], shown["attempt"], shown["run_id"]) == ("waiting", 1, str(run.id))
    assert f"Answer here, with the button “Resume”: {shown['run_url']}" in shown["next"]
    assert [u["at_stake"] for u in shown["cancelling_gives_back"]] == [
        "700.00 USD",
        "50 of “The 10X Rule”",
        "300 points",
    ]
    runs.answer(run, outcome=NO_COURIER, reason="snow", answered_by="Ada")
    assert running.result().is_failed()
    again = runs.retry(run, order)
    second = runs.paused(order_id, after=1)
    runs.answer(second, outcome=ASSIGNED, courier="city-vans", answered_by="Bob")
    assert again.result().is_completed()

    shown = checkout("show", order_id, "--json").data
    assert (shown["status"], shown["attempt"], shown["notes"]) == ("dispatched", 2, [])
    assert shown["next"] == "Nothing: courier city-vans has the parcel."
    assert [(each["flow"], each["state"]) for each in shown["runs"]] == [
        ("store-checkout", "Completed"),
        ("compensate", "Completed"),
    ]
    timeline = shown["timeline"]
    assert [event["at"] for event in timeline] == sorted(event["at"] for event in timeline)
    short = str(run.id)[:8]
    told = [event["what"] for event in timeline]
    in_order = [
        f"store-checkout run {short}: Running",
        "accepted",
        "charge captured",
        "bill_customer",
        f"store-checkout run {short}: Paused",
        NO_COURIER,
        "refunded",
        "bill_customer undone",
        "courier assigned",
        "dispatch_order",
        f"store-checkout run {short}: Completed",
    ]
    places = [told.index(what) for what in in_order]
    assert places == sorted(places)
    (failure,) = [event for event in timeline if event["what"].endswith(f"{short}: Failed")]
    assert "NoCourierAvailable: snow. To be given back: 700.00 USD" in failure["detail"]

    table = checkout("show", order_id).out
    for words in (
        f"Order {order_id}: dispatched",
        shown["run_url"],
        f"key {order_id}:2",
        "courier city-vans, by Bob",
    ):
        assert words in table
    assert "Eduardo" not in table


def test_while_prefect_is_away_the_rest_is_shown_and_that_is_said(
    database: str, checkout: Call
) -> None:
    placed("o-1", "prepare_order", 50, redeem=True)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        shown = checkout("show", "o-1", "--json").data
    with temporary_settings({PREFECT_API_URL: None}):
        table = checkout("show", "o-1")
    assert (shown["prefect_answers"], shown["runs"], shown["status"]) == (False, [], "waiting")
    (away,) = shown["notes"]
    assert away.startswith("The runs in Prefect are not shown: Prefect's server at http://127.0.0")
    assert "bill_customer" in [event["what"] for event in shown["timeline"]]
    assert (table.status, table.err) == (0, "")
    assert "The runs in Prefect are not shown" in table.out


def test_an_order_is_shown_before_its_run_has_recorded_it_and_if_it_never_did(
    runs: Runs, checkout: Call
) -> None:
    runs.client.create_flow_run(store_checkout, name="early", parameters={"order": an_order()})
    shown = checkout("show", "early", "--json").data
    assert shown["status"] is None
    assert shown["next"] == "It is recorded as soon as its run begins: its process is starting."
    place("o-1")
    assert set(shown) == set(checkout("show", "o-1", "--json").data)
    end_run("o-1")
    runs.end("early")
    table = checkout("show", "early").out
    assert "Order early: It is not recorded; its run has ended and says why." in table
    assert "Cancelled" in table


def test_continuations_and_a_run_in_place_of_a_lost_one_are_told(
    runs: Runs, checkout: Call
) -> None:
    run = runs.client.create_flow_run(
        store_checkout, name="o-1", parameters={"order": an_order("o-1")}, tags=[CONTINUATION]
    )
    states: list[State[Any]] = [Running(), Crashed(), AwaitingRetry(message=CONTINUED)]
    for state in states:
        runs.client.set_flow_run_state(run.id, state, force=True)
    place("o-1", run_id=str(run.id))
    set_order("o-1", continuations=2)
    shown = checkout("show", "o-1", "--json").data
    assert shown["continuations"] == 2
    short = str(run.id)[:8]
    assert [(e["what"], e["detail"]) for e in shown["timeline"] if e["kind"] == "continuation"] == [
        (f"store-checkout run {short}: Pending, in place of a run that was gone", ""),
        (f"store-checkout run {short}: AwaitingRetry", CONTINUED),
    ]
    assert "continued 2 times after crashes" in checkout("show", "o-1").out


def test_a_run_that_prefect_does_not_have_any_more_is_said_to_be_gone(
    runs: Runs, checkout: Call
) -> None:
    run_id = str(uuid4())
    place("o-1", run_id=run_id)
    set_order(
        "o-1", created_at=utc_now() - timedelta(hours=1), updated_at=utc_now().replace(year=2020)
    )
    shown = checkout("show", "o-1", "--json").data
    assert shown["notes"] == [f"Its run {run_id} is not in Prefect any more."]
    assert shown["next"].endswith(BY_RECOVERY[Move.CONTINUE])


def test_of_a_batch_the_form_is_said_to_be_for_all_its_orders(
    database: str, checkout: Call
) -> None:
    run_id = str(uuid4())
    begin_batch(run_id, None)
    placed("o-1", "prepare_order", run_id=run_id)
    away = {PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_UI_URL: "http://ui"}
    with temporary_settings(away):
        shown = checkout("show", "o-1", "--json").data
    assert shown["run_url"] == f"http://ui/runs/flow-run/{run_id}"
    assert "counts for all orders of its batch that still wait" in shown["next"]
    assert shown["next"].endswith(shown["run_url"])


def _ahead(order_id: str) -> None:
    submit_orders([an_order(order_id)])


def _decided(order_id: str) -> None:
    placed(order_id, "find_couriers")


def _dispatched(order_id: str) -> None:
    placed(order_id, "dispatch_order")


def _waiting(order_id: str) -> None:
    placed(order_id, "prepare_order")


def _stopped(order_id: str) -> None:
    placed(order_id, "bill_customer")
    fail_orders([order_id], CheckoutFailed("its process died"))


def _given_back(order_id: str) -> None:
    _stopped(order_id)
    give_back(order_id)


def _failing(order_id: str) -> None:
    failed(order_id, "bill_customer")


@pytest.mark.parametrize(
    ("make", "run", "said"),
    [
        (_ahead, None, "waits for the next batch to take it."),
        (place, Running(), "Its run carries it out (Running)."),
        (_waiting, Paused(), "for another 3 h 59 min; without an answer it is given back."),
        (_decided, Running(), "Courier city-vans has accepted; its run hands the parcel over."),
        (_dispatched, None, "Nothing: courier city-vans has the parcel."),
        (_stopped, Running(), "What it took is being given back."),
        (_given_back, None, "Nothing. checkout retry o-1: a new attempt."),
        (_failing, None, "checkout compensations: what is left."),
    ],
)
def test_it_is_said_what_happens_next(
    database: str, make: Callable[[str], object], run: State[Any] | None, said: str
) -> None:
    make("o-1")
    assert said in what_next(order_row("o-1"), run, utc_now(), is_known=True)
    give_back("o-1")


def test_a_run_that_no_worker_takes_is_said_to_be_replaced(database: str) -> None:
    placed("o-1", "bill_customer")
    said = what_next(order_row("o-1"), AwaitingRetry(), utc_now(), is_known=True, stranded=True)
    assert BY_RECOVERY[Move.CONTINUE] in said
    assert BY_RECOVERY[Move.CONTINUE] not in what_next(
        order_row("o-1"), AwaitingRetry(), utc_now(), is_known=True
    )
    give_back("o-1")


def test_the_front_end_that_submitted_an_order_is_named(checkout: Call, database: str) -> None:
    submit_orders([an_order("of-the-web")], "web")
    submit_orders([an_order("of-a-file")])
    assert re.search(r"front end +web\n", checkout("show", "of-the-web").out)
    assert "front end" not in checkout("show", "of-a-file").out
    assert checkout("show", "of-the-web", "--json").data["submitted_by"] == "web"
