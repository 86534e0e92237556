"""The embedded queue: delivered at least once, in one hand at a time, never lost."""

from collections.abc import Callable
from contextlib import closing
from datetime import timedelta

import pytest
from sqlalchemy import update
from sqlmodel import col, select

from store.database import reading, transaction
from store.models import QueuedMessage, utc_now
from store.partners import order_queue
from store.queue import MAX_RECEIVES, ReceivedMessage
from store.table_queue import TableQueue
from tests.shop import at_once, dead_letters


def received(limit: int = 10) -> list[ReceivedMessage]:
    return TableQueue().receive(limit, wait_seconds=0)


def sent(*bodies: str) -> None:
    TableQueue().send(bodies)


def let_the_visibility_time_out() -> None:
    with transaction() as session:
        session.execute(update(QueuedMessage).values(visible_at=utc_now() - timedelta(seconds=1)))


def rows() -> list[QueuedMessage]:
    with reading() as session:
        found = list(session.exec(select(QueuedMessage).order_by(col(QueuedMessage.body))))
        session.expunge_all()
        return found


def test_the_settings_choose_the_table(database: str) -> None:
    assert isinstance(order_queue(), TableQueue)


def test_a_message_is_received_as_it_was_sent_by_one_receiver(database: str) -> None:
    sent("one", "two")
    first = received()
    assert sorted(message.body for message in first) == ["one", "two"]
    assert [message.receive_count for message in first] == [1, 1]
    assert received() == []


def test_sending_nothing_sends_nothing(database: str) -> None:
    sent()
    assert rows() == []


def test_no_more_than_the_limit_is_received_and_the_oldest_first(database: str) -> None:
    for body in ("a", "b", "c"):
        sent(body)
    assert [message.body for message in received(2)] == ["a", "b"]
    assert [message.body for message in received(2)] == ["c"]


def test_a_message_comes_again_when_its_visibility_has_timed_out(
    database: str, setting: Callable[[str, object], None]
) -> None:
    setting("visibility_timeout_seconds", 77)
    sent("one")
    before = utc_now()
    first = received()[0]
    hidden_for = rows()[0].visible_at - before
    assert timedelta(seconds=77) <= hidden_for <= timedelta(seconds=137)
    let_the_visibility_time_out()
    again = received()[0]
    assert (again.id, again.receive_count) == (first.id, 2)
    assert again.receipt != first.receipt


def test_a_deleted_message_never_comes_again(database: str) -> None:
    sent("one", "two")
    queue = TableQueue()
    one = next(message for message in received() if message.body == "one")
    queue.delete([one])
    queue.delete([one])
    queue.delete([])
    let_the_visibility_time_out()
    assert [message.body for message in received()] == ["two"]


def test_a_message_never_settled_is_a_dead_letter_after_five_receives(database: str) -> None:
    sent("poison")
    for count in range(1, MAX_RECEIVES + 1):
        assert [message.receive_count for message in received()] == [count]
        let_the_visibility_time_out()
    assert MAX_RECEIVES == 5
    assert received() == []
    assert dead_letters() == [("poison", "received 5 times, never done")]
    let_the_visibility_time_out()
    assert received() == []


def test_a_dead_letter_among_good_messages_does_not_keep_them_back(database: str) -> None:
    sent("poison")
    for _ in range(MAX_RECEIVES):
        received()
        let_the_visibility_time_out()
    sent("good")
    assert [message.body for message in received()] == ["good"]


def test_a_message_put_aside_comes_no_more_and_keeps_its_reason(database: str) -> None:
    sent("not JSON")
    TableQueue().dead_letter(received()[0], "cannot be read")
    let_the_visibility_time_out()
    assert received() == []
    assert dead_letters() == [("not JSON", "cannot be read")]


def test_a_message_hidden_for_no_time_comes_at_once(database: str) -> None:
    sent("one")
    TableQueue().hide(received(), seconds=0)
    assert [message.receive_count for message in received()] == [2]


def test_a_message_kept_hidden_stays_in_hand(database: str) -> None:
    sent("one")
    held = received()
    let_the_visibility_time_out()
    TableQueue().hide(held, seconds=60)
    assert received() == []


@pytest.mark.parametrize("call", ["hide", "hand_back"])
def test_a_message_that_is_in_other_hands_by_now_is_left_to_them(database: str, call: str) -> None:
    sent("one")
    late = received()
    let_the_visibility_time_out()
    now = received()
    assert len(now) == 1
    if call == "hide":
        TableQueue().hide(late, seconds=0)
    else:
        TableQueue().hand_back(late)
    assert received() == []


def test_a_message_handed_back_is_fresh_for_the_next_receiver(database: str) -> None:
    sent("one")
    for _ in range(3 * MAX_RECEIVES):
        held = received()
        assert [message.receive_count for message in held] == [1]
        TableQueue().hand_back(held)
    assert dead_letters() == []


def test_dead_letters_can_be_put_into_the_queue_again(database: str) -> None:
    sent("one", "two", "three")
    for message in received(2):
        TableQueue().dead_letter(message, "by mistake")
    assert TableQueue().redrive() == 2
    assert TableQueue().redrive() == 0
    assert dead_letters() == []
    assert [message.receive_count for message in received()] == [1, 1, 1]


def test_no_message_is_in_two_hands(database: str) -> None:
    sent(*(f"m-{n:03}" for n in range(200)))
    hands = at_once([lambda: received(30)] * 8)
    bodies = [m.body for hand in hands if not isinstance(hand, Exception) for m in hand]
    assert len(bodies) == len(set(bodies))
    while more := received(50):
        bodies += [message.body for message in more]
    assert sorted(bodies) == [f"m-{n:03}" for n in range(200)]


def test_a_receiver_that_waits_has_a_message_that_comes_meanwhile(database: str) -> None:
    with closing(TableQueue()) as queue:
        answers = at_once(
            [
                lambda: [m.body for m in queue.receive(10, wait_seconds=20)],
                lambda: TableQueue().send(["late"]),
            ]
        )
    assert answers == [["late"], None]
