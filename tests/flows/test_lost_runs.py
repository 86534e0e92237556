"""Runs that were accepted and that no process has are started again, and people are told."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Crashed, Failed, Pending, Running
from prefect.utilities.callables import parameter_schema

from flows.batch import batch_checkout
from flows.checkout import store_checkout
from flows.recovery import close_runs, recover_orders
from flows.runs import lost_runs, searches
from flows.runs.continuation import CONTINUED, who_asked
from flows.runs.lost_runs import why_lost
from flows.runs.run_states import deployments
from orders.batches import begin_batch
from store.models import utc_now
from tests.flows.pool import Pool
from tests.flows.runs import Runs
from tests.polling import wait_until
from tests.shop import an_order, end_run, order_row, placed, status

pytestmark = pytest.mark.timeout(300)

ORDER = "lost"


@pytest.fixture
def pool(
    runs: Runs, setting: Callable[[str, object], None], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Pool]:
    """A pool with the checkout's deployment; a run counts as lost at once."""
    monkeypatch.setattr(lost_runs, "HOOK_TIME", timedelta(0))
    setting("unbegun_seconds", 1)
    with Pool(runs) as pool:
        setting("checkout_deployment", f"store-checkout/of-{pool.name}")
        yield pool


def put(pool: Pool, run: FlowRun, *states: State[Any]) -> FlowRun:
    for state in states:
        pool.client.set_flow_run_state(run.id, state, force=True)
    return pool.client.read_flow_run(run.id)


def is_started_again(pool: Pool, run: FlowRun) -> bool:
    """Have recovery look, and return whether it has started the run again."""
    recover_orders()
    return pool.state_of(run) == "AwaitingRetry"


@pytest.mark.parametrize(
    "states", [[Pending()], [Pending(name="Submitting")], [Pending(), Crashed()]]
)
def test_a_run_that_died_before_its_order_was_recorded_is_begun(
    pool: Pool, states: list[State[Any]]
) -> None:
    run = put(pool, pool.check_out(ORDER), *(state.fresh_copy() for state in states))
    wait_until(lambda: is_started_again(pool, run), "a new start of the run")
    pool.work()
    pool.finish()
    assert (status(ORDER), order_row(ORDER).run_id) == ("dispatched", str(run.id))


def test_a_run_that_died_in_the_acceptance_of_its_order_is_begun(pool: Pool) -> None:
    run = put(pool, pool.check_out(ORDER), Pending(), Running(), Crashed())
    wait_until(lambda: is_started_again(pool, run), "a new start of the run")
    pool.finish()
    assert status(ORDER) == "dispatched"


def test_a_batch_that_died_before_it_had_an_order_is_begun(pool: Pool) -> None:
    run = pool.start(batch_checkout, source=None)
    put(pool, run, Running(), Crashed())
    begin_batch(str(run.id), None)
    wait_until(lambda: is_started_again(pool, run), "a new start of the batch")
    put(pool, run, Cancelling())


def test_a_run_is_started_again_a_bounded_number_of_times(
    pool: Pool, setting: Callable[[str, object], None]
) -> None:
    setting("max_continuations", 2)
    run = pool.check_out(ORDER)
    for _ in range(2):
        put(pool, run, Running(), Crashed())
        assert is_started_again(pool, run)
    put(pool, run, Running(), Crashed())
    assert not is_started_again(pool, run)
    state = pool.client.read_flow_run(run.id).state
    assert state is not None
    assert state.is_failed()
    assert state.message == (
        "given up after 3 starts: its process ended before it had recorded an order"
    )


@pytest.mark.parametrize(
    "states",
    [[], [Pending(), Running()], [Running(), Failed(message="UserNotFound")], [Cancelling()]],
    ids=["scheduled", "running", "refused", "cancelled"],
)
def test_a_run_that_somebody_has_or_that_has_ended_is_left_alone(
    pool: Pool, states: list[State[Any]]
) -> None:
    run = put(pool, pool.check_out(ORDER), *(state.fresh_copy() for state in states))
    later = utc_now() + timedelta(minutes=10)
    assert why_lost(run, later, deployments(pool.client)) is None
    put(pool, run, Failed())


def test_a_run_whose_order_has_ended_is_left_alone(pool: Pool) -> None:
    run = pool.check_out(ORDER)
    placed(ORDER, "check_inventory", run_id=str(run.id))
    end_run(ORDER)
    put(pool, run, Running(), Crashed())
    assert not is_started_again(pool, run)


def test_the_retry_that_a_person_asked_for_begins_though_its_first_process_died(
    pool: Pool,
) -> None:
    run = put(pool, pool.check_out(ORDER), Pending())
    asked_by = who_asked(str(run.id))
    wait_until(lambda: is_started_again(pool, run), "a new start of the run")
    put(pool, run, Pending(), Running())
    assert who_asked(str(run.id)) == asked_by is not None
    # It has begun now, and what the store starts again after that begins nothing.
    put(pool, run, Crashed(), State(type="SCHEDULED", message=CONTINUED), Running())
    assert who_asked(str(run.id)) is None
    put(pool, run, Failed())


def test_an_order_of_a_lost_run_keeps_the_id_that_it_was_to_have(pool: Pool) -> None:
    order = {"userId": str(uuid4()), "bookId": "b", "quantity": 1}
    run = pool.start(store_checkout, order=order, wait="suspend")
    pool.client.delete_work_pool(pool.name)
    pool.create()
    pool.deploy(store_checkout)
    (lost,) = [run.id]
    assert lost_runs._parameters(pool.client.read_flow_run(lost)) == {
        "order": {**order, "orderId": str(run.id)},
        "wait": "suspend",
    }
    put(pool, run, Failed())


def test_a_run_that_its_deployment_refuses_keeps_no_other_from_its_start(pool: Pool) -> None:
    mine = an_order(ORDER).model_dump(exclude_none=True)
    wrong = {**mine, "quantity": 1.5}
    started = [
        pool.start(store_checkout, order=order, wait="pause")
        # The last one that is found has ended first.
        for order in (mine, wrong, {**wrong, "order_id": "wrong"})
    ]
    for run in started:
        put(pool, run, Running(), Crashed())
    # As in an upgrade: the new deployment takes no snake_case names.
    pool.client.delete_work_pool(pool.name)
    pool.create()
    pool.client.create_deployment(
        started[0].flow_id,
        f"of-{pool.name}",
        work_pool_name=pool.name,
        parameter_openapi_schema=parameter_schema(store_checkout).model_dump(),
        enforce_parameter_schema=True,
    )
    report = recover_orders()
    assert set(report.runs_started_again) == {str(started[0].id)}
    assert set(report.failed) == {str(run.id) for run in started[1:]}
    assert "its deployment refuses its parameters" in report.failed[str(started[1].id)]
    pool.work()
    pool.finish()
    assert status(ORDER) == "dispatched"
    for run in started[1:]:
        put(pool, run, Failed())


def test_a_retry_begins_though_its_process_died_and_its_order_had_ended(pool: Pool) -> None:
    run = pool.check_out(ORDER)
    placed(ORDER, "check_inventory", run_id=str(run.id))
    end_run(ORDER)
    put(pool, run, Running(), Failed())
    # A person presses Retry; a worker takes the run and dies.
    put(pool, run, AwaitingRetry(), Pending())
    wait_until(lambda: is_started_again(pool, run), "a new start of the run")
    pool.finish()
    assert (status(ORDER), order_row(ORDER).attempt) == ("dispatched", 2)


def test_a_run_in_the_place_of_one_that_had_begun_begins_no_attempt(pool: Pool) -> None:
    run = put(pool, pool.check_out(ORDER), Running(), Crashed())
    placed(ORDER, "check_inventory", run_id="another")
    end_run(ORDER)
    pool.client.delete_work_pool(pool.name)
    pool.create()
    pool.deploy(store_checkout)
    recover_orders()
    pool.work()
    pool.ended()
    assert (status(ORDER), order_row(ORDER).attempt) == ("compensated", 1)
    assert pool.state_of(run) == "Cancelled"


def test_a_lost_run_is_found_behind_a_page_of_cancelled_ones(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searches, "PAGE", 2)
    run = put(pool, pool.check_out(ORDER), Running(), Crashed())
    for other in ("first", "second", "third"):
        put(pool, pool.check_out(other), Cancelled())
    assert is_started_again(pool, run)
    put(pool, run, Failed())


def test_a_retry_pressed_while_recovery_ends_the_run_is_kept(pool: Pool) -> None:
    run = pool.check_out(ORDER)
    placed(ORDER, "check_inventory", run_id=str(run.id))
    end_run(ORDER)
    put(pool, run, Running(), Failed(), AwaitingRetry())
    close_runs(pool.client, {str(run.id)})
    assert pool.state_of(run) == "AwaitingRetry"
    pool.finish()
    assert (status(ORDER), order_row(ORDER).attempt) == ("dispatched", 2)
