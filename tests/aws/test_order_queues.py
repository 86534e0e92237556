"""What every order queue keeps to: the same tests for the table and for SQS."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import pytest
from sqlmodel import col, select

from store.database import reading
from store.models import QueuedMessage
from store.queue import MAX_RECEIVES, OrderQueue, QueueDepth, ReceivedMessage
from store.settings import settings
from store.table_queue import TableQueue
from tests.aws.cloud import Cloud

LONG_ENOUGH_SECONDS = 20.0
"""A wait that ends as soon as a message is there; reached only by a test that fails."""


@dataclass
class UnderTest:
    """A queue, and a look past it: its dead letters' body and reason, and how many others it has.

    The others are those in somebody's hands as well.
    """

    queue: OrderQueue
    dead_letters: Callable[[], list[tuple[str, str | None]]]
    others: Callable[[], int]


Make = Callable[..., UnderTest]


@pytest.fixture(params=["table", "sqs"])
def make(
    request: pytest.FixtureRequest,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Make]:
    """Make the queue of either kind, with this visibility timeout."""
    if request.param == "table":
        with ExitStack() as made:

            def table(visibility_timeout_seconds: int = 30) -> UnderTest:
                seconds = str(visibility_timeout_seconds)
                monkeypatch.setenv("STORE_VISIBILITY_TIMEOUT_SECONDS", seconds)
                settings.cache_clear()
                queue = made.enter_context(closing(TableQueue()))
                return UnderTest(queue, _dead_in_table, _alive_in_table)

            yield table
        return

    cloud: Cloud = request.getfixturevalue("cloud")

    def sqs(visibility_timeout_seconds: int = 30) -> UnderTest:
        queue = cloud.sqs_queue(visibility_timeout_seconds)
        return UnderTest(
            queue,
            lambda: _dead_in_sqs(cloud.look_into(queue.dead_letter_url)),
            lambda: cloud.count(queue.queue_url),
        )

    yield sqs


def _dead_in_table() -> list[tuple[str, str | None]]:
    with reading() as session:
        dead = session.exec(select(QueuedMessage).where(col(QueuedMessage.dead_at).is_not(None)))
        return sorted((message.body, message.dead_reason) for message in dead)


def _alive_in_table() -> int:
    with reading() as session:
        alive = session.exec(select(QueuedMessage).where(col(QueuedMessage.dead_at).is_(None)))
        return len(alive.all())


def _dead_in_sqs(messages: list[dict[str, Any]]) -> list[tuple[str, str | None]]:
    return sorted(
        (m["Body"], m.get("MessageAttributes", {}).get("reason", {}).get("StringValue"))
        for m in messages
    )


def bodies(messages: list[ReceivedMessage]) -> list[str]:
    return sorted(message.body for message in messages)


def test_every_message_is_delivered_once_while_it_is_in_hand(make: Make) -> None:
    queue = make().queue
    sent = [f"order {number:02}" for number in range(25)]
    queue.send(sent)
    received = queue.receive(limit=100, wait_seconds=LONG_ENOUGH_SECONDS)
    assert bodies(received) == sent
    assert {message.receive_count for message in received} == {1}
    assert len({message.id for message in received}) == 25
    assert queue.receive(limit=100, wait_seconds=0) == []


def test_a_body_sent_twice_is_two_messages(make: Make) -> None:
    queue = make().queue
    queue.send(["same", "same"])
    queue.send(["same"])
    assert bodies(queue.receive(limit=10, wait_seconds=0)) == ["same"] * 3


def test_no_more_than_the_limit_is_received_and_the_rest_stays(make: Make) -> None:
    queue = make().queue
    queue.send([str(number) for number in range(15)])
    first = queue.receive(limit=12, wait_seconds=0)
    second = queue.receive(limit=12, wait_seconds=0)
    assert (len(first), len(second)) == (12, 3)
    assert queue.receive(limit=0, wait_seconds=0) == []


@pytest.mark.parametrize("wait_seconds", [0, 0.5])
def test_an_empty_queue_gives_nothing(make: Make, wait_seconds: float) -> None:
    assert make().queue.receive(limit=10, wait_seconds=wait_seconds) == []


def test_a_receiver_waits_for_a_message(make: Make) -> None:
    queue = make().queue
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = pool.submit(queue.receive, 10, LONG_ENOUGH_SECONDS)
        queue.send(["late"])
        assert bodies(waiting.result()) == ["late"]


def test_no_messages_are_no_call_and_no_error(make: Make) -> None:
    queue = make().queue
    queue.send([])
    queue.delete([])
    queue.hide([], seconds=1)
    queue.hand_back([])
    assert queue.receive(limit=10, wait_seconds=0) == []


def test_a_deleted_message_is_gone_and_may_be_deleted_again(make: Make) -> None:
    queue = make().queue
    queue.send([str(number) for number in range(12)])
    received = queue.receive(limit=12, wait_seconds=LONG_ENOUGH_SECONDS)
    settled, kept = received[:11], received[11:]
    queue.delete(settled)
    queue.hide(kept, seconds=0)
    queue.delete(settled)
    queue.hide(settled, seconds=0)
    assert bodies(queue.receive(limit=12, wait_seconds=LONG_ENOUGH_SECONDS)) == bodies(kept)


def test_a_message_that_nobody_settles_comes_again_after_the_visibility_timeout(
    make: Make,
) -> None:
    queue = make(visibility_timeout_seconds=1).queue
    queue.send(["again"])
    (first,) = queue.receive(limit=10, wait_seconds=LONG_ENOUGH_SECONDS)
    (second,) = queue.receive(limit=10, wait_seconds=LONG_ENOUGH_SECONDS)
    assert (first.body, first.receive_count) == ("again", 1)
    assert (second.body, second.receive_count) == ("again", 2)
    assert second.id == first.id
    queue.delete([second])
    assert queue.receive(limit=10, wait_seconds=0) == []


def test_hidden_messages_come_when_they_are_to_come(make: Make) -> None:
    queue = make(visibility_timeout_seconds=1).queue
    queue.send([str(number) for number in range(12)])
    received = queue.receive(limit=12, wait_seconds=LONG_ENOUGH_SECONDS)
    queue.hide(received[1:], seconds=600)
    soon = received[:1]
    queue.hide(soon, seconds=0)
    again = queue.receive(limit=12, wait_seconds=LONG_ENOUGH_SECONDS)
    assert bodies(again) == bodies(soon)
    queue.delete(again)
    # The visibility timeout of those that are hidden for longer is over by now.
    assert queue.receive(limit=12, wait_seconds=2) == []


def test_a_message_that_is_never_settled_ends_with_the_dead_letters(make: Make) -> None:
    under_test = make()
    under_test.queue.send(["poison", "sound"])
    for count in range(1, MAX_RECEIVES + 1):
        received = under_test.queue.receive(limit=10, wait_seconds=LONG_ENOUGH_SECONDS)
        poison = [message for message in received if message.body == "poison"]
        assert [message.receive_count for message in poison] == [count]
        under_test.queue.delete([message for message in received if message.body == "sound"])
        under_test.queue.hide(poison, seconds=0)
    assert under_test.queue.receive(limit=10, wait_seconds=0) == []
    assert [body for body, _ in under_test.dead_letters()] == ["poison"]


def test_a_message_that_is_handed_back_is_never_a_dead_letter(make: Make) -> None:
    under_test = make()
    under_test.queue.send(["patient"])
    for _ in range(MAX_RECEIVES + 2):
        (received,) = under_test.queue.receive(limit=10, wait_seconds=LONG_ENOUGH_SECONDS)
        assert (received.body, received.receive_count) == ("patient", 1)
        under_test.queue.hand_back([received])
    assert (under_test.dead_letters(), under_test.others()) == ([], 1)


def test_a_dead_letter_is_out_of_the_queue_with_its_reason(make: Make) -> None:
    under_test = make()
    under_test.queue.send(["unreadable", "sound"])
    received = under_test.queue.receive(limit=10, wait_seconds=LONG_ENOUGH_SECONDS)
    (unreadable,) = [message for message in received if message.body == "unreadable"]
    under_test.queue.dead_letter(unreadable, "cannot be read: 3 errors")
    assert under_test.dead_letters() == [("unreadable", "cannot be read: 3 errors")]
    assert under_test.others() == 1
    under_test.queue.hide([message for message in received if message.body == "sound"], seconds=0)
    assert bodies(under_test.queue.receive(limit=10, wait_seconds=0)) == ["sound"]


def test_redriven_dead_letters_are_in_the_queue_again_as_new(make: Make) -> None:
    under_test = make()
    dead = [f"order {number:02}" for number in range(23)]
    under_test.queue.send(dead)
    for message in under_test.queue.receive(limit=100, wait_seconds=LONG_ENOUGH_SECONDS):
        under_test.queue.dead_letter(message, "the order does not exist")
    assert under_test.others() == 0
    assert under_test.queue.redrive() == 23
    assert (under_test.dead_letters(), under_test.others()) == ([], 23)
    received = under_test.queue.receive(limit=100, wait_seconds=LONG_ENOUGH_SECONDS)
    assert bodies(received) == dead
    assert {message.receive_count for message in received} == {1}
    assert under_test.queue.redrive() == 0


def test_dead_letters_are_looked_at_put_back_and_dropped_one_by_one(make: Make) -> None:
    queue = make().queue
    queue.send(["one", "two", "three"])
    for message in queue.receive(limit=10, wait_seconds=LONG_ENOUGH_SECONDS):
        queue.dead_letter(message, f"{message.body} cannot be read")
    for _ in range(2):
        letters = {letter.body: letter for letter in queue.dead_letters()}
        assert {body: letter.reason for body, letter in letters.items()} == {
            body: f"{body} cannot be read" for body in ("one", "two", "three")
        }
    assert queue.drop([letters["one"].id]) == 1
    assert queue.redrive([letters["two"].id]) == 1
    assert [letter.body for letter in queue.dead_letters()] == ["three"]
    assert (queue.drop([letters["one"].id]), queue.redrive(["unknown"])) == (0, 0)
    assert bodies(queue.receive(limit=10, wait_seconds=LONG_ENOUGH_SECONDS)) == ["two"]


def test_a_redriven_message_that_fails_again_is_a_dead_letter_again(make: Make) -> None:
    under_test = make()
    under_test.queue.send(["poison"])
    for _ in range(2):
        for _ in range(MAX_RECEIVES):
            received = under_test.queue.receive(limit=10, wait_seconds=LONG_ENOUGH_SECONDS)
            assert bodies(received) == ["poison"]
            under_test.queue.hide(received, seconds=0)
        assert under_test.queue.receive(limit=10, wait_seconds=0) == []
        assert under_test.queue.redrive() == 1


def test_receivers_at_once_miss_no_message(make: Make) -> None:
    queue = make().queue
    sent = [f"order {number:02}" for number in range(40)]
    queue.send(sent)
    with ThreadPoolExecutor(max_workers=4) as pool:
        shares = list(pool.map(lambda _: queue.receive(10, wait_seconds=0), range(4)))
    shares.append(queue.receive(limit=40, wait_seconds=0))
    received = bodies([message for share in shares for message in share])
    assert sorted(set(received)) == sent
    # SQS may give a message to two receivers at once, and its stand-in does.
    assert len(received) == len(sent) or not isinstance(queue, TableQueue)


def test_messages_are_counted_by_where_they_are(make: Make) -> None:
    queue = make().queue
    queue.send(["one", "two", "three", "four"])
    dead, _ = queue.receive(limit=2, wait_seconds=LONG_ENOUGH_SECONDS)
    queue.dead_letter(dead, "unreadable")
    assert queue.depth() == QueueDepth(ready=2, in_hand=1, dead=1)
