"""Batches that listen carry orders as they come, and leave none behind."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import psutil
import pytest
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
)
from prefect.client.schemas.objects import State, StateType
from prefect.settings import PREFECT_API_URL
from sqlalchemy import text

from flows.actions.by_hand import ask_for_form
from flows.batch import batch_checkout
from flows.batches import chunk, listening
from flows.checkout import store_checkout
from flows.dispatch import dispatch_orders
from flows.runs.continuation import CONTINUATION
from orders.batches import begin_batch, count_by_status, read_batch
from orders.intake import submit_orders
from orders.listening import listens as listens_now
from store.database import reading, transaction
from store.errors import InvalidDecision
from store.messages import ASSIGNED, BatchAnswer
from store.models import Batch, utc_now
from store.notifications import Notice
from store.table_topic import TableTopic
from store.wakeups import ORDERS_TO_CARRY
from tests.flows.batches import Batches, run_id_of, submit
from tests.flows.pool import Pool
from tests.flows.runs import Runs
from tests.polling import wait_until
from tests.shop import (
    an_order,
    carry_on,
    kept_cents,
    order_row,
    placed,
    queued,
    set_capacities,
    set_order,
    status,
    stock,
)


class Listening:
    """Batches that listen until they are told that their pool is closed."""

    def __init__(self, batches: Batches, closed: threading.Event) -> None:
        self.batches = batches
        self._closed = closed

    def start(self, seconds: int = 300) -> "Future[State[Any]]":
        return self.batches.start(listen_seconds=seconds, tolerated_failures=1.0)

    def close(self) -> None:
        self._closed.set()


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have what comes by itself come sooner."""
    monkeypatch.setattr(listening, "LOOK_AROUND_SECONDS", 0.2)
    monkeypatch.setattr(listening, "SLOW_POLL_SECONDS", 0.2)
    monkeypatch.setattr(listening, "GROUP_SECONDS", 0.05)


@pytest.fixture
def listens(batches: Batches, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listening]:
    closed = threading.Event()
    monkeypatch.setattr(listening, "pool_is_closed", closed.is_set)
    yield Listening(batches, closed)
    closed.set()


@contextmanager
def a_server_that_hangs() -> Iterator[None]:
    """Stop Prefect's server of this session for as long as the block lasts."""
    port = urlsplit(PREFECT_API_URL.value() or "").port
    (pid,) = {
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr
        and connection.laddr.port == port
        and connection.pid
    }
    server = psutil.Process(pid)
    server.suspend()
    try:
        yield
    finally:
        server.resume()


def let_couriers_be_found_for(*order_ids: str) -> None:
    """Have couriers accept these as they come to wait, until all are dispatched."""

    def look() -> bool:
        waiting = [id_ for id_ in order_ids if status(id_) == "waiting"]
        if waiting:
            carry_on(waiting, "find_couriers", after="prepare_order")
        return all(status(id_) == "dispatched" for id_ in order_ids)

    wait_until(look, f"the dispatch of {order_ids}")


def dispatch_all(*order_ids: str) -> None:
    """Let dispatchers follow each other until all of these are dispatched."""

    def look() -> bool:
        dispatch_orders(listen_seconds=1)
        return all(status(id_) == "dispatched" for id_ in order_ids)

    wait_until(look, f"the dispatch of {order_ids}")


def a_session_listens() -> bool:
    last = f"LISTEN {ORDERS_TO_CARRY}"
    asked = text("SELECT 1 FROM pg_stat_activity WHERE state = 'idle' AND query = :last")
    with reading() as session:
        return session.execute(asked, {"last": last}).first() is not None


def set_listened(run_id: str) -> None:
    with transaction() as session:
        session.get_one(Batch, run_id).listens_until = utc_now()


def owner(order_id: str) -> str:
    return order_row(order_id).run_id or ""


def test_orders_are_carried_as_they_come_and_their_run_is_not_resumed(
    listens: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(listening, "emit_statuses", told.extend)
    running = listens.start()
    submit(2, "early")
    wait_until(lambda: status("early-001") == "waiting", "the wait of the first ones")
    report = dispatch_orders(listen_seconds=1)
    assert (report.decided, report.resumed, queued()) == (2, 0, [])
    wait_until(lambda: status("early-001") == "dispatched", "the dispatch of the first ones")
    submit(3, "late")
    submit_orders([an_order("declined", payment_method="pm_card_chargeDeclined")])
    dispatch_all("late-000", "late-001", "late-002")
    wait_until(lambda: status("declined") == "compensated", "the compensation")
    listens.close()
    state = running.result()

    assert state.message == "6 orders: 5 dispatched, 1 compensated"
    assert told == ["declined"]
    run = listens.batches.runs.client.read_flow_run(UUID(run_id_of(state)))
    assert listens.batches.runs.tasks_of(run) == []
    assert StateType.PAUSED not in listens.batches.runs.state_types(run.id)
    (progress,) = listens.batches.runs.client.read_artifacts(
        artifact_filter=ArtifactFilter(
            flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]),
            key=ArtifactFilterKey(any_=["batch-progress"]),
        )
    )
    assert progress.data == 100
    assert "2 orders a minute dispatched in the last 2 minutes, half" in (
        progress.description or ""
    )
    assert (stock(), kept_cents(), queued()) == (495, 5 * 20_00, [])


def test_the_dispatcher_leaves_what_it_has_decided_to_the_batch_that_listens(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[str] = []

    def wake(_: object, run_id: str) -> bool:
        woken.append(run_id)
        return True

    monkeypatch.setattr("flows.dispatch.wake_batch", wake)
    run = batches.died()
    listens = str(uuid4())
    begin_batch(listens, None, listen_seconds=60)
    for order_id, run_id in (("of-one-that-listens", listens), ("of-another", str(run.id))):
        placed(order_id, "prepare_order", run_id=run_id)
    dispatch_orders(listen_seconds=1)
    assert (status("of-one-that-listens"), status("of-another")) == ("dispatching",) * 2
    assert (queued(), set(woken)) == (["of-another"], {str(run.id)})


def test_orders_and_the_listening_go_on_while_prefects_server_hangs(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "HAND_OVER", timedelta(seconds=1))
    monkeypatch.setattr(listening, "LATE_SECONDS", 0.3)
    with Pool(batches.runs) as pool:
        parameters = {"chunk_size": 10, "tolerated_failures": 1.0, "listen_seconds": 3}
        run = pool.start(batch_checkout, **parameters)
        pool.work()
        submit(1)
        wait_until(lambda: status("o-000") == "waiting", "the wait")
        end = read_batch(str(run.id)).listens_until
        assert end is not None
        with a_server_that_hangs():
            wait_until(lambda: utc_now() > end + listening.HAND_OVER, "the end of the listening")
            submit(1, "late")
            wait_until(lambda: status("late-000") == "waiting", "the wait of the late one")
            carry_on(["o-000", "late-000"], "find_couriers", after="prepare_order")
            wait_until(lambda: status("late-000") == "dispatched", "the dispatch")
        wait_until(lambda: pool.state_of(run) == "Completed", "the end of the batch")
        pool.finish()
    assert count_by_status(str(run.id)) == {"dispatched": 2}


def test_a_lost_notification_costs_one_slow_poll(
    listens: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orders.intake.notify", lambda *_: None)
    monkeypatch.setattr("tasks.couriers.notify", lambda *_: None)
    running = listens.start()
    wait_until(a_session_listens, "listening session")
    submit(1)
    let_couriers_be_found_for("o-000")
    listens.close()
    assert running.result().message == "1 orders: 1 dispatched"


def test_the_next_one_takes_over_what_waits_and_the_one_before_ends(listens: Listening) -> None:
    set_capacities(only=5)
    placed("holds-the-courier", "find_couriers", 5)
    submit(2)
    first = listens.start(seconds=2)
    wait_until(lambda: status("o-001") == "waiting", "the wait")
    second = listens.start()
    state = first.result()
    assert (state.is_completed(), state.message) == (True, "0 orders")
    assert owner("o-000") == owner("o-001") != run_id_of(state)
    carry_on(["holds-the-courier"], after="find_couriers")
    let_couriers_be_found_for("o-000", "o-001")
    listens.close()
    assert second.result().message == "2 orders: 2 dispatched"
    assert (kept_cents(), order_row("o-000").continuations) == (7 * 20_00, 0)


def test_one_that_no_other_follows_waits_as_a_batch_does_until_one_comes_after_all(
    listens: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "HAND_OVER", timedelta(0))
    set_capacities(only=5)
    placed("holds-the-courier", "find_couriers", 5)
    submit(1)
    first = listens.start(seconds=2)
    run = listens.batches.paused()
    assert (owner("o-000"), status("o-000")) == (str(run.id), "waiting")
    second = listens.start()
    assert first.result().message == "0 orders"
    carry_on(["holds-the-courier"], after="find_couriers")
    let_couriers_be_found_for("o-000")
    listens.close()
    assert second.result().message == "1 orders: 1 dispatched"


def test_one_that_died_goes_on_listening_and_charges_nobody_twice(
    listens: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deadly:
        name = "prepare_order"

        def fn(self, _: list[str]) -> list[str]:
            raise SystemExit("the process is told to stop")

    with monkeypatch.context() as patch:
        patch.setattr(chunk, "STEPS", (*chunk.STEPS[:-1], Deadly()))
        running = listens.start()
        submit(2)
        with pytest.raises(BaseException):  # noqa: B017, PT011
            running.result()
    (run,) = listens.batches.found()
    assert (count_by_status(str(run.id)), kept_cents()) == ({"started": 2}, 2 * 20_00)
    again = listens.batches.again(run, listen_seconds=300)
    submit(1, "later")
    let_couriers_be_found_for("o-000", "o-001", "later-000")
    listens.close()
    assert again.result().message == "3 orders: 3 dispatched"
    assert kept_cents() == 3 * 20_00


def test_a_listening_and_a_nightly_batch_share_the_orders(listens: Listening) -> None:
    submit(6)
    first, second = listens.start(), listens.start()
    nightly = listens.batches.start(chunk_size=2)
    # Dispatchers, since the nightly batch may pause, which one that listens never does.
    dispatch_all(*(f"o-{number:03d}" for number in range(6)))
    submit(4, "late")
    dispatch_all(*(f"late-{number:03d}" for number in range(4)))
    listens.close()
    done = [
        count_by_status(run_id_of(batch.result())).get("dispatched", 0)
        for batch in (first, second, nightly)
    ]
    assert sum(done) == 10
    assert (stock(), kept_cents()) == (490, 10 * 20_00)


def test_an_answer_that_a_stopped_batch_has_not_read_counts_before_its_orders_are_taken_over(
    listens: Listening,
) -> None:
    run = listens.batches.died()
    set_listened(str(run.id))
    placed("o-000", "prepare_order", run_id=str(run.id))
    answer = BatchAnswer(outcome=ASSIGNED, courier="city-vans", answered_by="Ada")
    listens.batches.runs.client.create_flow_run_input(
        run.id, "paused-batch-1-response", answer.model_dump_json()
    )
    running = listens.start()
    wait_until(lambda: status("o-000") == "dispatching" or owner("o-000") != str(run.id), "a look")
    assert (status("o-000"), order_row("o-000").courier_id) == ("dispatching", "city-vans")
    listens.close()
    running.result()
    carry_on(["o-000"], after="find_couriers")


def test_a_batch_that_has_stopped_takes_nothing_over(listens: Listening) -> None:
    set_capacities(only=5)
    placed("holds-the-courier", "find_couriers", 5)
    before = listens.batches.died()
    set_listened(str(before.id))
    stopped = listens.start(seconds=1)
    submit(1)
    wait_until(lambda: status("o-000") == "waiting", "the wait")
    wait_until(lambda: not listens_now(owner("o-000")), "the end of the listening")
    placed("of-another", "prepare_order", run_id=str(before.id))
    set_order("o-000", wait_until=utc_now())
    assert stopped.result().message == "1 orders: 1 compensated"
    assert owner("of-another") == str(before.id)
    carry_on(["holds-the-courier"], after="find_couriers")


def test_a_wait_that_ends_while_it_listens_is_given_back(listens: Listening) -> None:
    set_capacities(only=5)
    placed("holds-the-courier", "find_couriers", 5)
    running = listens.start()
    submit(1)
    wait_until(lambda: status("o-000") == "waiting", "the wait")
    set_order("o-000", wait_until=utc_now())
    wait_until(lambda: status("o-000") == "compensated", "the end of the wait")
    assert order_row("o-000").error == "CourierWaitExpired"
    listens.close()
    assert running.result().message == "1 orders: 1 compensated"


def test_an_order_that_cannot_be_handed_over_keeps_no_other_from_it(
    listens: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = TableTopic.publish

    def refuses(topic: TableTopic, notices: Sequence[Notice]) -> None:
        if any(notice.order_id == "bad-000" for notice in notices):
            raise PermissionError("not allowed")
        publish(topic, notices)

    with monkeypatch.context() as patch:
        patch.setattr(TableTopic, "publish", refuses)
        running = listens.start()
        submit(1, "bad")
        wait_until(lambda: status("bad-000") == "waiting", "the wait")
        dispatch_orders(listen_seconds=1)
        submit(1)
        dispatch_all("o-000")
        assert status("bad-000") == "dispatching"
    listens.close()
    assert running.result().message == "2 orders: 2 dispatched"


def test_one_in_a_closed_pool_suspends_and_its_orders_go_on(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.actions.drain.LOOK_SECONDS", 0.1)
    monkeypatch.setattr("flows.actions.drain.QUIET_SECONDS", 0.5)
    with Pool(batches.runs) as pool:
        run = pool.start(
            batch_checkout,
            source=None,
            failed_of=None,
            chunk_size=10,
            concurrency=1,
            tolerated_failures=1.0,
            wait="pause",
            listen_seconds=300,
        )
        pool.work()
        submit(2)
        wait_until(lambda: status("o-001") == "waiting", "the wait")
        assert pool.drain().suspended == 1
        assert read_batch(str(run.id)).listens_until is not None
        assert pool.state_of(run) == "Suspended"
        pool.finish()
        assert pool.state_of(run) == "Completed"
    assert count_by_status(str(run.id)) == {"dispatched": 2}


@pytest.fixture
def checkouts(batches: Batches, setting: Callable[[str, object], None]) -> Runs:
    """The deployment of the checkout, whose runs nobody executes by himself."""
    client = batches.runs.client
    flow_id = client.create_flow(store_checkout)
    client.create_deployment(flow_id, "for-forms", enforce_parameter_schema=False)
    setting("checkout_deployment", "store-checkout/for-forms")
    return batches.runs


def test_an_order_that_no_courier_takes_gets_a_form_of_its_own_and_is_charged_once(
    listens: Listening, checkouts: Runs, setting: Callable[[str, object], None]
) -> None:
    setting("escalate_seconds", 1)
    running = listens.start()
    submit(1)
    wait_until(lambda: order_row("o-000").wait == "suspend", "a run of the order's own")
    run = checkouts.client.read_flow_run(UUID(owner("o-000")))
    assert run.parameters["wait"] == "suspend"
    executed = checkouts.execute(run)
    checkouts.paused("o-000")
    answered = checkouts.answer(run, outcome=ASSIGNED, courier="city-vans", answered_by="Ada")
    assert answered == "ACCEPT"
    assert executed.result().is_completed()
    listens.close()
    assert running.result().message == "0 orders"
    assert (status("o-000"), kept_cents()) == ("dispatched", 20_00)


def test_a_batch_ends_once_its_last_waiting_order_has_a_form_of_its_own(
    batches: Batches, checkouts: Runs
) -> None:
    submit(1)
    running = batches.start(tolerated_failures=1.0)
    batch = batches.paused()
    run = ask_for_form("o-000")
    assert checkouts.client.read_flow_run(batch.id).state_type != StateType.PAUSED
    assert running.result().message == "0 orders"
    assert (owner("o-000"), status("o-000")) == (str(run.id), "waiting")


def test_a_person_asks_for_the_form_of_an_order_that_waits_in_a_batch(
    listens: Listening, checkouts: Runs
) -> None:
    placed("single", "prepare_order")
    with pytest.raises(InvalidDecision, match="no batch waits with it"):
        ask_for_form("single")
    running = listens.start()
    submit(1)
    wait_until(lambda: status("o-000") == "waiting", "the wait")
    run = ask_for_form("o-000")
    assert (owner("o-000"), run.tags) == (str(run.id), [CONTINUATION])
    with pytest.raises(InvalidDecision, match="o-000 is waiting, and no batch waits with it"):
        ask_for_form("o-000")
    listens.close()
    assert running.result().message == "0 orders"
