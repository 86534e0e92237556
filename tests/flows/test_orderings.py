"""Decision, pause and resume in whatever order they come: one decision wins, none is lost.

That a decision comes before the pause, or at the moment of the time-out, is in `test_checkout`;
a decision whose resume was lost is in `test_dispatch`; a resume of a run whose process is dead is
with the crashes of real processes.
"""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Barrier

import pytest

from flows.dispatch import dispatch_orders
from flows.recovery import recover_orders
from store.messages import ASSIGNED, NO_COURIER
from store.table_queue import TableQueue
from tests.flows.runs import Runs
from tests.polling import PATIENCE_SECONDS, wait_until
from tests.shop import (
    an_order,
    assign,
    assigned_copies,
    decisions,
    ledger,
    order_row,
    queued,
    shop,
    status,
)

EXAMPLE = an_order("example", 50)


def the_courier_that_counts() -> str | None:
    """Return who carries the parcel; every other answer holds nothing and changed nothing."""
    order = order_row("example")
    (counting,) = [courier for _, courier, accepted in decisions("example") if accepted]
    assert (order.status, order.courier_id) == ("dispatched", counting)
    assert assigned_copies() == {}
    assert ledger() == [("example:1", "captured", 1000_00)]
    return counting


def test_of_two_persons_who_answer_the_first_one_counts(runs: Runs) -> None:
    running = runs.check_out(EXAMPLE)
    run = runs.paused("example")
    answers = [
        runs.answer(run, outcome=ASSIGNED, courier="night-rail"),
        runs.answer(run, outcome=NO_COURIER, reason="snow"),
    ]
    assert answers == ["ACCEPT", "ABORT"]
    assert running.result().result().courier == "night-rail"
    assert the_courier_that_counts() == "night-rail"


def test_of_a_person_and_the_dispatcher_at_the_same_moment_one_counts(runs: Runs) -> None:
    running = runs.check_out(EXAMPLE)
    run = runs.paused("example")
    start = Barrier(2, timeout=PATIENCE_SECONDS)

    def by_hand() -> str:
        start.wait()
        return runs.answer(run, outcome=ASSIGNED, courier="night-rail")

    def by_message() -> object:
        start.wait()
        return dispatch_orders(listen_seconds=3)

    by_dispatcher: Future[object] = runs.in_thread(by_message)
    runs.in_thread(by_hand).result()
    by_dispatcher.result()
    assert running.result().is_completed()
    assert the_courier_that_counts() in {"night-rail", "city-vans"}


def test_a_person_whose_answer_comes_after_the_dispatchers_decision_is_too_late_and_kept(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = runs.check_out(EXAMPLE)
    run = runs.paused("example")
    # The dispatcher has recorded its decision; the person is faster with the resume.
    with monkeypatch.context() as patch:
        patch.setattr("flows.dispatch.resume", lambda _client, _decided: False)
        dispatch_orders(listen_seconds=1)
    assert status("example") == "dispatching"
    assert runs.answer(run, outcome=ASSIGNED, courier="night-rail") == "ACCEPT"
    assert running.result().result().courier == "city-vans"
    assert the_courier_that_counts() == "city-vans"
    assert decisions("example") == [(ASSIGNED, "city-vans", True), (ASSIGNED, "night-rail", False)]


def test_an_answer_to_a_run_that_has_ended_changes_nothing(runs: Runs) -> None:
    running = runs.check_out(EXAMPLE)
    run = runs.assign("example", "night-rail")
    assert running.result().is_completed()
    before = shop()
    assert runs.answer(run, outcome=NO_COURIER, reason="snow") == "ABORT"
    assign("example", "city-vans")
    assert decisions("example")[1:] == [(ASSIGNED, "city-vans", False)]
    assert shop() == before
    assert the_courier_that_counts() == "night-rail"


def test_an_order_whose_message_is_lost_is_asked_about_again(
    runs: Runs, setting: Callable[[str, object], None]
) -> None:
    running = runs.check_out(EXAMPLE)
    runs.paused("example")
    TableQueue().delete(TableQueue().receive(10, wait_seconds=0))
    assert queued() == []
    setting("ask_again_seconds", 1)

    def asked_again() -> bool:
        recover_orders()
        return "example" in queued()

    wait_until(asked_again, "a message in place of the lost one")
    dispatch_orders(listen_seconds=2)
    assert running.result().is_completed()
    assert the_courier_that_counts() == "city-vans"
