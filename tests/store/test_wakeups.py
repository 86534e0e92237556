"""A receiver is woken by a message, and finds one of which nobody has told it."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from unittest.mock import patch

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, ProgrammingError

import store.wakeups
from store.bulk import insert_rows
from store.database import engine, reading, release_connections, transaction
from store.models import QueuedMessage, utc_now
from store.table_queue import TableQueue
from store.wakeups import Listener
from tests.polling import PATIENCE_SECONDS, wait_until

HOURS = 3 * 3600.0
LISTENING = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND query LIKE 'LISTEN%' AND state = 'idle'
"""


@pytest.fixture
def queue(database: str) -> Iterator[TableQueue]:
    queue = TableQueue()
    yield queue
    queue.close()


@pytest.fixture
def only_notifications(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow poll is not there to help."""
    monkeypatch.setattr(store.wakeups, "SLOW_POLL_SECONDS", HOURS)


def listeners() -> list[int]:
    with reading() as session:
        return list(session.scalars(text(LISTENING)))


def end_listeners() -> None:
    for pid in listeners():
        with transaction() as session:
            session.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})


def insert_without_notifying(body: str) -> None:
    with transaction() as session:
        insert_rows(
            session,
            QueuedMessage,
            [{"id": body, "body": body}],
            visible_at=utc_now(),
            sent_at=utc_now(),
            receive_count=0,
        )


@contextmanager
def receiving(queue: TableQueue) -> Iterator[Future[list[str]]]:
    """A receive that waits for its first message for hours."""
    with ThreadPoolExecutor(1) as thread:
        received = thread.submit(lambda: [m.body for m in queue.receive(10, HOURS)])
        try:
            yield received
        finally:
            if not received.done():
                insert_without_notifying("the end")
                end_listeners()


@contextmanager
def waiting(queue: TableQueue) -> Iterator[Future[list[str]]]:
    """A receive that has come to the wait for a notification."""
    waits = threading.Event()

    def wait(connection: Connection, seconds: float) -> None:
        waits.set()
        right(connection, seconds)

    right = store.wakeups._await
    with patch.object(store.wakeups, "_await", wait), receiving(queue) as received:
        assert waits.wait(PATIENCE_SECONDS)
        yield received


@pytest.mark.usefixtures("only_notifications")
def test_a_message_wakes_its_receiver(queue: TableQueue) -> None:
    for body in ("first", "second"):
        with waiting(queue) as received:
            TableQueue().send([body])
            assert received.result(PATIENCE_SECONDS) == [body]


@pytest.mark.usefixtures("only_notifications")
@pytest.mark.parametrize("way", ["hand_back", "hide", "redrive"])
def test_a_message_that_can_be_received_again_wakes_a_receiver(queue: TableQueue, way: str) -> None:
    queue.send(["one"])
    held = queue.receive(10, wait_seconds=0)
    if way == "redrive":
        queue.dead_letter(held[0], "by mistake")
    with waiting(queue) as received:
        match way:
            case "hand_back":
                TableQueue().hand_back(held)
            case "hide":
                TableQueue().hide(held, seconds=0)
            case "redrive":
                TableQueue().redrive()
        assert received.result(PATIENCE_SECONDS) == ["one"]


def test_a_message_of_which_nobody_is_notified_is_found_by_the_slow_poll(
    queue: TableQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.wakeups, "SLOW_POLL_SECONDS", 0.1)
    with waiting(queue) as received:
        insert_without_notifying("silent")
        assert received.result(PATIENCE_SECONDS) == ["silent"]


@pytest.mark.usefixtures("only_notifications")
def test_a_message_of_just_before_the_listening_is_received(
    queue: TableQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send_and_connect(listener: Listener) -> Connection:
        TableQueue().send(["early"])
        return connected(listener)

    connected = Listener._connected
    monkeypatch.setattr(Listener, "_connected", send_and_connect)
    with receiving(queue) as received:
        assert received.result(PATIENCE_SECONDS) == ["early"]


@pytest.mark.usefixtures("only_notifications")
def test_a_receiver_whose_connection_is_ended_listens_again(queue: TableQueue) -> None:
    with waiting(queue) as received:
        ended = set(listeners())
        end_listeners()
        wait_until(lambda: set(listeners()) - ended, "another connection that listens")
        TableQueue().send(["after"])
        assert received.result(PATIENCE_SECONDS) == ["after"]


def test_a_receiver_that_gets_no_connection_to_listen_on_polls(
    database: str, setting: Callable[[str, object], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine(database).begin() as owner:
        with suppress(DBAPIError), owner.begin_nested():
            owner.execute(text("CREATE ROLE lonely LOGIN CONNECTION LIMIT 1"))
        owner.execute(text("GRANT ALL ON ALL TABLES IN SCHEMA public TO lonely"))
    monkeypatch.setattr(store.wakeups, "SLOW_POLL_SECONDS", 0.1)
    setting("database_url", database.replace("postgres@", "lonely@"))
    # The role's one connection is the pool's from now on.
    with reading():
        pass
    with receiving(TableQueue()) as received:
        with engine(database).begin() as owner:
            owner.execute(
                text(
                    "INSERT INTO order_queue (id, body, visible_at, sent_at, receive_count) "
                    "VALUES ('m', 'polled', now(), now(), 0)"
                )
            )
        assert received.result(PATIENCE_SECONDS) == ["polled"]
    release_connections()
    setting("database_url", database)


def test_a_channel_that_cannot_be_listened_to_is_no_outage(database: str) -> None:
    with pytest.raises(ProgrammingError):
        Listener("no channel").wait(0)


@pytest.mark.usefixtures("only_notifications")
def test_a_closed_queue_keeps_no_connection(queue: TableQueue) -> None:
    with waiting(queue) as received:
        TableQueue().send(["one"])
        assert received.result(PATIENCE_SECONDS) == ["one"]
    assert len(listeners()) == 1
    queue.close()
    wait_until(lambda: not listeners(), "end of the listening")
