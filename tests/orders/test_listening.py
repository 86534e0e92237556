"""Waiting orders change their owner once, and only away from a batch that has stopped."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial

import pytest

from orders.batches import begin_batch
from orders.listening import (
    ESCALATED_AT_MOST,
    expired_waits,
    hand_over_waiting,
    listens,
    stop_listening,
    stopped_batches,
    take_over_waiting,
    unanswered,
)
from store.models import utc_now
from tests.shop import assign, at_once, order_row, placed, set_order

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
    stop_listening("first")
    assert not listens("first")
    assert (stopped_batches("second"), stopped_batches("first")) == (["first"], [])
    assert take_over_waiting("first", "second")
    owners = [owner(id_) for id_ in ("waits", "decided", "started", "nightly")]
    assert owners == ["second", "first", "first", "nightly"]
    assert stopped_batches("second") == []
    assert not take_over_waiting("first", "third")


def test_two_that_take_over_at_once_share_nothing() -> None:
    batch_with("o-1", "o-2")
    stop_listening("first")
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
