"""The dispatcher: every message in the queue ends right, and no order waits for nothing."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED,
    temporary_settings,
)

from flows import dispatch
from flows.dispatch import DispatchReport, dispatch_orders
from orders.batches import begin_batch
from store.database import transaction
from store.errors import CheckoutFailed
from store.messages import ASSIGNED, OrderMessage
from store.models import Courier
from store.table_queue import TableQueue
from tasks.couriers import find_couriers
from tests.flows.runs import Runs
from tests.polling import wait_until
from tests.shop import (
    Bare,
    an_order,
    assign,
    assigned_copies,
    carry_on,
    dead_letters,
    decisions,
    end_run,
    kept_cents,
    order_row,
    placed,
    points,
    queued,
    set_capacities,
    status,
    stock,
)
from tests.store.test_wakeups import listeners

PERSONAL = ("Jane Doe", "jane@example.com", "4242424242424242")


def messages_sent(*bodies: str) -> None:
    TableQueue().send(bodies)


def body(order_id: str, attempt: int = 1) -> str:
    return OrderMessage(order_id=order_id, attempt=attempt, copies=1).model_dump_json()


def listen(seconds: int) -> DispatchReport:
    report = dispatch_orders(listen_seconds=seconds)
    assert isinstance(report, DispatchReport)
    return report


def listen_until_the_queue_is_empty() -> DispatchReport:
    """Let dispatchers follow each other, as their schedule does; return all that they did."""
    total = DispatchReport()

    def look() -> bool:
        report = listen(2)
        for name, count in report:
            setattr(total, name, getattr(total, name) + count)
        return not queued()

    wait_until(look, "an empty queue")
    return total


def test_a_dispatcher_finds_a_courier_and_resumes_the_run(runs: Runs) -> None:
    running = runs.check_out(an_order("o-1", 50, redeem=True))
    wait_until(queued, "the order's message")
    report = listen_until_the_queue_is_empty()
    state = running.result()
    assert state.is_completed()
    assert state.result().courier == "city-vans"
    assert (report.decided, report.deleted) == (1, 1)
    assert (queued(), dead_letters(), assigned_copies()) == ([], [], {})
    assert (stock(), points(), kept_cents()) == (450, 0, 700_00)


def test_a_courier_who_came_after_the_form_was_put_up_is_no_reason_to_refuse_the_resume(
    runs: Runs,
) -> None:
    set_capacities(swift_bikes=100)
    placed("o-0", "prepare_order", 90)
    assign("o-0", "swift-bikes")
    running = runs.check_out(an_order("o-1", 50))
    run = runs.paused("o-1")
    assert runs.answer(run, outcome=ASSIGNED, courier="cargo-trams") == "REJECT"
    with transaction() as session:
        session.add(Courier(id="cargo-trams", name="Cargo Trams", capacity_copies=60))
    wait_until(lambda: listen(1).resumed, "a resumed run")
    assert running.result().result().courier == "cargo-trams"
    assert [accepted for _, _, accepted in decisions("o-1")] == [True]
    carry_on(["o-0"], after="find_couriers")


def test_a_dispatcher_ends_the_connection_on_which_it_has_listened(runs: Runs) -> None:
    listen(1)
    wait_until(lambda: not listeners(), "end of the listening")


def test_each_message_of_a_mixed_queue_ends_right(runs: Runs) -> None:
    too_large = runs.check_out(an_order("too-large", 121))
    twice = runs.check_out(an_order("twice", 3))
    answered = runs.check_out(an_order("answered", 3))
    for order_id in ("too-large", "twice", "answered"):
        runs.paused(order_id)
    set_capacities(swift_bikes=60, night_rail=120)
    # A person's answer that reached the database, while its resume was lost.
    assign("answered", "swift-bikes")
    placed("ended", "prepare_order")
    end_run("ended", CheckoutFailed("ended before its message was read"))
    placed("again", "prepare_order")
    end_run("again")
    placed("again", "bill_customer")
    messages_sent(body("twice"), body("unknown"), "not JSON", '{"order_id": "x"}')

    report = listen_until_the_queue_is_empty()

    assert too_large.result().is_failed()
    assert twice.result().is_completed()
    assert answered.result().result().courier == "swift-bikes"
    assert status("too-large") == "compensated"
    assert order_row("too-large").error == "NoCourierAvailable"
    assert len(decisions("twice")) == 1
    assert status("ended") == "compensated"
    assert (status("again"), order_row("again").attempt) == ("started", 2)
    assert dict(dead_letters()) == {
        "not JSON": "cannot be read: 1 errors",
        '{"order_id": "x"}': "cannot be read: 2 errors",
        body("unknown"): "the order does not exist",
    }
    assert (report.decided, report.deleted, report.dead_letters) == (2, 6, 3)
    assert report.resumed >= 3
    assert stock() == 493


def test_a_message_of_an_order_without_a_free_courier_is_handed_back_fresh(runs: Runs) -> None:
    set_capacities(only=5)
    placed("busy", "find_couriers", 4)
    placed("waits", "prepare_order", 3)
    for _ in range(2):
        report = listen(1)
        assert (report.decided, report.released) == (0, 2)
    assert status("waits") == "waiting"
    held = TableQueue().receive(10, wait_seconds=0)
    assert [message.receive_count for message in held] == [1, 1]
    assert dead_letters() == []


def test_a_run_that_is_not_there_does_not_keep_the_others_waiting(runs: Runs) -> None:
    placed("orphan", "prepare_order", 3)
    running = runs.check_out(an_order("o-1", 3))
    runs.paused("o-1")

    def look() -> bool:
        listen(1)
        return running.done()

    wait_until(look, "the end of o-1")
    assert running.result().is_completed()
    assert status("orphan") == "dispatching"
    assert "orphan" in queued()


def test_an_error_of_the_dispatcher_loses_no_message(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed("o-1", "prepare_order", 3)
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "runs_of_open_orders", lambda _messages: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            listen(2)
    assert queued() == ["o-1"]
    assert status("o-1") == "waiting"


@pytest.mark.parametrize(
    "unreadable",
    [
        '{"version": 1, "order_id": "Jane Doe", "attempt": "jane@example.com", "copies": 1}',
        '{"order_id": "a", "attempt": 1, "copies": 1, "jane@example.com": "4242424242424242"}',
        '{"order_id": "a", "attempt": 1, "copies": 1, "Jane Doe": 1}',
        '"Jane Doe, jane@example.com, 4242424242424242"',
        "Jane Doe, jane@example.com, 4242424242424242",
        '{"Jane Doe": jane@example.com}',
    ],
)
def test_a_message_that_cannot_be_read_is_logged_without_its_content(
    runs: Runs, caplog: pytest.LogCaptureFixture, unreadable: str
) -> None:
    messages_sent(unreadable)
    assert listen_until_the_queue_is_empty().dead_letters == 1
    ((_, reason),) = dead_letters()
    assert " cannot be read: " in caplog.text
    kept_about_it = caplog.text + str(reason)
    assert [each for each in PERSONAL if each in kept_about_it] == []


class Unavailable(BaseHTTPRequestHandler):
    """Answers as a proxy whose server is away."""

    def do_GET(self) -> None:
        self.send_error(503)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


def test_orders_of_a_batch_that_listens_are_decided_while_prefects_server_is_away(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = "00000000-0000-0000-0000-000000000001"
    begin_batch(run_id, None, listen_seconds=60)
    placed("o-1", "prepare_order", run_id=run_id)
    monkeypatch.setattr("flows.dispatch.find_couriers", Bare(find_couriers))
    with HTTPServer(("127.0.0.1", 0), Unavailable) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        away = {
            PREFECT_API_URL: f"http://127.0.0.1:{server.server_port}/api",
            PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: False,
            # As a worker has it: minutes.
            PREFECT_CLIENT_MAX_RETRIES: 10,
        }
        with temporary_settings(away):
            report = dispatch_orders.fn(listen_seconds=1)
        server.shutdown()
    assert (report.decided, report.deleted) == (1, 1)
    assert (status("o-1"), queued()) == ("dispatching", [])


def test_one_message_of_a_decided_batch_stays_until_its_run_goes_on(runs: Runs) -> None:
    run_id = "00000000-0000-0000-0000-000000000002"
    begin_batch(run_id, None)
    ids = ["o-1", "o-2", "o-3"]
    for id_ in ids:
        placed(id_, "prepare_order", run_id=run_id)
    report = listen(1)
    assert (report.decided, report.deleted, report.released) == (3, 2, 1)
    assert [status(id_) for id_ in ids] == ["dispatching"] * 3
    assert len(queued()) == 1
    # It is the batch that hands them over; the message left goes with them.
    carry_on(ids, after="find_couriers")
    assert listen_until_the_queue_is_empty().deleted == 1
