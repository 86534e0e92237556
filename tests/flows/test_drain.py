"""A work pool is drained and opened again: nothing is lost, nobody is refunded, no process left.

The server and its work pool are real; threads of the test stand for the workers' processes.
"""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.exceptions import ObjectNotFound, Pause
from prefect.states import Crashed, Failed, Paused, Pending, Running

from console.main import main
from flows.actions import drain as pools
from flows.batch import batch_checkout
from flows.dispatch import DispatchReport, dispatch_orders
from flows.recovery import RecoveryReport, recover_orders
from orders.batches import count_by_status
from orders.intake import submit_orders
from store.messages import ASSIGNED
from store.models import utc_now
from tests.flows.pool import Pool
from tests.flows.runs import Runs
from tests.polling import wait_until
from tests.shop import (
    an_order,
    decisions,
    kept_cents,
    order_row,
    placed,
    queued,
    set_order,
    status,
    stock,
)

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def pool(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    """A pool whose worker takes nothing ahead of its time, so that a drain is over soon."""
    monkeypatch.setattr(pools, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(pools, "QUIET_SECONDS", 0.5)
    with Pool(runs) as pool:
        yield pool


def test_waiting_orders_are_handed_over_answered_meanwhile_and_dispatched_once(pool: Pool) -> None:
    waits, answered = pool.check_out("waits", 3), pool.check_out("answered", 4)
    assert pool.work() == 2
    for order_id in ("waits", "answered"):
        pool.runs.paused(order_id)
    in_hand = pool.check_out("in-hand")

    report = pool.work_in_hand_at_closing()

    assert report.drained
    assert (report.suspended, report.under_way, report.giving_back) == (2, [], 0)
    assert report.first_wait_ends in [order_row(id_).wait_until for id_ in ("waits", "answered")]
    # The third comes to its wait in the paused pool.
    assert all(isinstance(left, Pause) for left in pool.ended())
    assert {pool.state_of(run) for run in (waits, answered, in_hand)} == {"Suspended"}
    assert status("waits") == "waiting"
    said = pool.runs.answer(answered, outcome=ASSIGNED, courier="swift-bikes", answered_by="Ada")
    assert said == "ACCEPT"
    assert pool.work() == 0
    assert pool.drain().scheduled == 1

    pool.finish()

    assert {pool.state_of(run) for run in (waits, answered, in_hand)} == {"Completed"}
    assert order_row("answered").courier_id == "swift-bikes"
    assert (order_row("waits").continuations, order_row("waits").attempt) == (0, 1)
    assert (stock(), kept_cents()) == (492, 8 * 20_00)


def test_an_answer_counts_whose_run_was_marked_as_crashed_while_the_pool_was_closed(
    pool: Pool,
) -> None:
    run = pool.check_out("answered", how="suspend")
    pool.work()
    pool.ended()
    pool.drain()
    said = pool.runs.answer(run, outcome=ASSIGNED, courier="swift-bikes", answered_by="Ada")
    assert said == "ACCEPT"
    # As the automation does that watches the runs' heartbeats.
    pool.client.set_flow_run_state(run.id, Crashed(message="no heartbeat for 120 s"))

    pool.reopen()

    # Before any dispatcher or recovery can decide otherwise.
    assert decisions("answered") == [(ASSIGNED, "swift-bikes", True)]


def test_a_run_of_an_order_sent_before_leaves_no_process_to_a_drain(pool: Pool) -> None:
    first = pool.check_out("o-1")
    pool.work()
    pool.runs.paused("o-1")
    second = pool.check_out("o-1")
    pool.work()
    wait_until(lambda: pool.state_of(second) == "Completed", "the second run")

    report = pool.drain()

    assert (report.suspended, report.scheduled) == (1, 0)
    pool.finish()
    assert pool.state_of(first) == "Completed"
    assert order_row("o-1").attempt == 1
    assert kept_cents() == 20_00


def test_a_batch_is_handed_over_between_two_chunks_and_in_its_wait(pool: Pool) -> None:
    submit_orders([an_order(f"o-{number}") for number in range(4)])
    options = {"chunk_size": 1, "concurrency": 1, "tolerated_failures": 1.0, "wait": "pause"}
    run = pool.start(batch_checkout, source=None, failed_of=None, **options)
    pool.work_in_hand_at_closing()
    wait_until(lambda: pool.state_of(run) == "Resuming", "the batch's return to its pool")
    assert isinstance(pool.ended()[0], Pause)

    pool.reopen()
    pool.work()
    wait_until(lambda: pool.state_of(run) == "Paused", "the batch's wait")
    assert count_by_status(str(run.id)) == {"waiting": 4}
    assert pool.drain().suspended == 1
    assert pool.state_of(run) == "Suspended"
    pool.finish()
    assert pool.state_of(run) == "Completed"
    assert count_by_status(str(run.id)) == {"dispatched": 4}
    assert stock() == 496


def test_a_dispatcher_ends_early_when_its_pool_is_closed_and_hands_back(pool: Pool) -> None:
    # Its run is none that could be resumed, so its message stays in hand.
    placed("o-1", "prepare_order")
    pool.start(dispatch_orders, listen_seconds=60)
    pool.work()
    wait_until(lambda: status("o-1") == "dispatching", "the dispatcher at work")

    assert pool.drain(timeout_seconds=30).drained

    (dispatcher,) = pool.ended()
    assert dispatcher.result() == DispatchReport(received=1, decided=1, released=1)
    assert queued() == ["o-1"]


def test_recovery_leaves_its_work_to_the_next_round_when_its_pool_is_closed(pool: Pool) -> None:
    placed("o-1", "prepare_order")
    set_order("o-1", wait_until=utc_now() - timedelta(minutes=5))
    pool.start(recover_orders)
    pool.work_in_hand_at_closing()
    (recovery,) = pool.ended()
    assert recovery.result() == RecoveryReport(unfinished=1)
    assert status("o-1") == "waiting"
    # By hand it is in no pool, and does all of it.
    assert recover_orders().moves == {"expire": ["o-1"]}
    assert status("o-1") == "compensated"


def test_a_drain_names_what_does_not_end_until_recovery_hands_that_over_too(
    pool: Pool, setting: Callable[[str, object], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pool.check_out("o-1")
    placed("o-1", "prepare_order", run_id=str(run.id))
    # Its worker and its process are gone: Prefect shows the pause with nobody behind it.
    pool.client.set_flow_run_state(run.id, Pending())
    pool.client.set_flow_run_state(run.id, Running())
    pool.client.set_flow_run_state(run.id, Paused(timeout_seconds=600))

    report = pool.drain(timeout_seconds=2)

    assert not report.drained
    assert [(r.name, r.flow, r.state) for r in report.under_way] == [
        (run.name, "store-checkout", "Running")
    ]
    assert status("o-1") == "waiting"
    setting("stalled_seconds", 1)
    monkeypatch.setattr(pools, "RECOVERY_SECONDS", 1.0)
    assert pool.drain().drained
    assert pool.state_of(run) == "AwaitingRetry"
    pool.finish()
    assert status("o-1") == "dispatched"
    assert (order_row("o-1").continuations, kept_cents()) == (1, 20_00)


def test_an_order_whose_wait_ended_while_the_pool_was_closed_is_not_refunded(pool: Pool) -> None:
    run = pool.check_out("o-1")
    pool.work()
    pool.runs.paused("o-1")
    pool.drain()
    set_order("o-1", wait_until=utc_now() - timedelta(minutes=5))
    # As Prefect does when the time of a suspended run is over.
    pool.client.set_flow_run_state(run.id, Failed(message="never resumed"), force=True)

    report = pool.reopen()

    assert (report.was_closed, report.prolonged) == (True, 1)
    left = order_row("o-1").wait_until
    assert left is not None
    assert left > utc_now() + pools.LAST_CHANCE / 2
    wait_until(lambda: recover_orders().moves, "recovery of the run that Prefect has failed")
    pool.finish()
    assert (status("o-1"), kept_cents()) == ("dispatched", 20_00)


def test_what_is_missing_beside_the_pool_is_not_said_to_be_the_pool(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_is_gone(*_: object) -> None:
        raise ObjectNotFound(Exception("no such run"))

    pool.drain()
    monkeypatch.setattr(pools, "_record_answers", run_is_gone)
    with pytest.raises(ObjectNotFound):
        pool.reopen()


def test_the_batch_that_listens_starts_again_when_its_pool_is_open(
    pool: Pool, setting: Callable[[str, object], None]
) -> None:
    deployment_id = pool.deploy(batch_checkout)
    setting("online_deployment", f"batch-checkout/of-{pool.name}")

    def started() -> int:
        return pool.client.count_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id]))
        )

    pool.client.pause_deployment(deployment_id)
    pool.drain()
    pool.reopen()
    assert started() == 0
    pool.client.resume_deployment(deployment_id)
    pool.reopen()
    assert started() == 0
    pool.drain()
    pool.reopen()
    assert started() == 1


def test_opening_a_pool_that_is_open_prolongs_no_wait(pool: Pool) -> None:
    placed("o-1", "prepare_order")
    set_order("o-1", wait_until=utc_now() + timedelta(seconds=5))
    report = pool.reopen()
    assert (report.was_closed, report.prolonged) == (False, 0)


def test_the_commands_close_and_open_the_pool_of_the_checkouts(
    pool: Pool, setting: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    run = pool.check_out("o-1")
    setting("checkout_deployment", f"store-checkout/of-{pool.name}")
    pool.client.set_flow_run_state(run.id, Running())

    assert main(["drain", "--timeout", "0"]) == 1
    said = capsys.readouterr()
    assert run.name in said.out
    assert "NOT drained" in said.out
    assert "1 store-checkout Running" in said.err
    assert pool.client.read_work_pool(pool.name).is_paused

    pool.client.set_flow_run_state(run.id, Failed())
    assert main(["drain", "--pool", pool.name, "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["under_way"] == []
    assert f"`checkout reopen --pool {pool.name}` resumes it" in said.err
    assert main(["reopen"]) == 0
    assert not pool.client.read_work_pool(pool.name).is_paused
    assert main(["reopen"]) == 0
    assert "was not paused" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "deployment"),
    [(["drain", "--pool", "nowhere"], ""), (["reopen"], "store-checkout/nowhere")],
)
def test_a_pool_that_there_is_not_is_told_and_nothing_closed(
    pool: Pool,
    arguments: list[str],
    deployment: str,
    setting: Callable[[str, object], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    if deployment:
        setting("checkout_deployment", deployment)
    assert main(arguments) == 1
    assert "nowhere" in capsys.readouterr().err
    assert not pool.client.read_work_pool(pool.name).is_paused
