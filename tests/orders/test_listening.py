"""Waiting orders change their owner once, and only away from a batch that has stopped."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial

import pytest

from orders.batches import begin_batch
from orders.intake import submit_orders
from orders.listening import (
    ESCALATED_AT_MOST,
    backlog,
    expired_waits,
    hand_over_waiting,
    is_listened,
    listen_until,
    listens,
    pace_of_run,
    stopped_batches,
    take_over_waiting,
    unanswered,
)
from store.database import transaction
from store.models import Batch, utc_now
from tests.shop import an_order, assign, at_once, order_row, placed, set_order

pytestmark = pytest.mark.usefixtures("database")


def batch_with(*order_ids: str, run_id: str = "first", listen_seconds: int = 300) -> None:
    begin_batch(run_id, None, listen_seconds=listen_seconds)
    for id_ in order_ids:
        placed(id_, "prepare_order", run_id=run_id)


def owner(order_id: str) -> str | None:
    return order_row(order_id).run_id


def test_only_what_waits_in_a_batch_that_has_stopped_is_taken_over() -> None:
    batch_with("waits", "decided")
    batch_with("nightly", run_id="nightly", listen_seconds=0)
    placed("started", "bill_customer", run_id="first")
    assign("decided")
    assert stopped_batches("second") == []
    listen_until("first", utc_now())
    assert not listens("first")
    assert (stopped_batches("second"), stopped_batches("first")) == (["first"], [])
    assert take_over_waiting("first", "second")
    owners = [owner(id_) for id_ in ("waits", "decided", "started", "nightly")]
    assert owners == ["second", "first", "first", "nightly"]
    assert stopped_batches("second") == []
    assert not take_over_waiting("first", "third")


def test_two_that_take_over_at_once_share_nothing() -> None:
    batch_with("o-1", "o-2")
    listen_until("first", utc_now())
    taken = at_once([partial(take_over_waiting, "first", to) for to in ("second", "third")])
    assert sorted(map(str, taken)) == ["False", "True"]
    assert owner("o-1") == owner("o-2")


def test_an_order_is_handed_over_only_while_it_waits_with_the_owner_that_was_seen() -> None:
    batch_with("o-1", "decided")
    assign("decided")
    assert not hand_over_waiting("decided", "first", "own", "suspend")
    assert not hand_over_waiting("o-1", "another", "own", "suspend")
    assert hand_over_waiting("o-1", "first", "own", "suspend")
    assert not hand_over_waiting("o-1", "first", "late", "suspend")
    assert (owner("o-1"), order_row("o-1").wait, owner("decided")) == ("own", "suspend", "first")


def test_the_longest_waiting_are_asked_about_and_no_more_than_people_can_answer(
    setting: Callable[[str, object], None],
) -> None:
    setting("escalate_seconds", 600)
    batch_with("new", "old", "older")
    until = utc_now() + timedelta(seconds=4 * 3600 - 600)
    set_order("old", wait_until=until)
    set_order("older", wait_until=until - timedelta(seconds=60))
    assert unanswered("first") == ["older", "old"]
    for number in range(ESCALATED_AT_MOST - 1):
        placed(f"single-{number}", "prepare_order")
    assert unanswered("first") == ["older"]
    placed("one-more", "prepare_order")
    assert unanswered("first") == []


def test_what_has_waited_to_its_end_is_found() -> None:
    batch_with("o-1", "o-2")
    set_order("o-2", wait_until=utc_now())
    assert expired_waits("first", 10) == ["o-2"]


def test_the_pace_is_of_what_this_batch_has_dispatched_lately() -> None:
    batch_with(run_id="first")
    assert pace_of_run("first").dispatched == 0
    now = utc_now()
    for number, seconds in enumerate((1, 2, 3, 9)):
        placed(f"o-{number}", "dispatch_order", run_id="first")
        set_order(f"o-{number}", created_at=now - timedelta(seconds=seconds), updated_at=now)
    placed("old", "dispatch_order", run_id="first")
    set_order("old", updated_at=now - timedelta(hours=1))
    placed("of-another", "dispatch_order", run_id="second")
    placed("waits", "prepare_order", run_id="first")
    pace = pace_of_run("first")
    assert (pace.dispatched, pace.median_seconds) == (4, 2.5)
    assert pace.p95_seconds == pytest.approx(8.1)


def test_what_no_batch_has_claimed_for_a_minute_is_counted() -> None:
    submit_orders([an_order("new"), an_order("of-a-file")])
    submit_orders([an_order("of-the-web")], "web")
    assert (backlog().orders, backlog().oldest_seconds) == (0, 0.0)
    for id_, minutes in (("of-a-file", 3), ("of-the-web", 2)):
        set_order(id_, updated_at=utc_now() - timedelta(minutes=minutes))
    found = backlog()
    assert (found.orders, found.of_front_ends, found.oldest_seconds // 60) == (2, 1, 3)


def test_a_batch_listens_while_its_heart_beats() -> None:
    batch_with(run_id="nightly", listen_seconds=0)
    assert not is_listened()
    batch_with(run_id="first")
    assert is_listened()
    with transaction() as session:
        session.get_one(Batch, "first").moved_at = utc_now() - timedelta(minutes=2)
    assert not is_listened()
