"""What Prefect keeps is deleted and made again: no order is lost, nobody is refunded for it."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.states import AwaitingRetry, Crashed, Running
from sqlalchemy.exc import NoResultFound

from flows import recovery
from flows.checkout import store_checkout
from flows.dispatch import dispatch_orders
from flows.recovery import recover_orders
from flows.runs import lost_runs
from flows.runs.continuation import CONTINUED
from flows.runs.pause import Wait
from store.messages import ASSIGNED
from store.models import ENDED
from tests.flows.pool import Pool
from tests.flows.runs import Runs
from tests.polling import wait_until
from tests.shop import decisions, ledger, order_row, placed, set_order, status

pytestmark = pytest.mark.timeout(300)

NO_TIME = timedelta(0)
Stage = Callable[[Pool, Wait], FlowRun]
Delete = Callable[[Pool, FlowRun], None]


@pytest.fixture
def pool(
    runs: Runs, setting: Callable[[str, object], None], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Pool]:
    """A pool with the checkout's deployment, in a shop whose recovery waits for nothing."""
    monkeypatch.setattr(recovery, "HOOK_TIME", NO_TIME)
    monkeypatch.setattr(lost_runs, "HOOK_TIME", NO_TIME)
    setting("stalled_seconds", 1)
    setting("unbegun_seconds", 1)
    with Pool(runs) as pool:
        pool.queue = "orders"
        setting("checkout_deployment", f"store-checkout/of-{pool.name}")
        yield pool


def delete_run(pool: Pool, run: FlowRun) -> None:
    pool.client.delete_flow_run(run.id)


def delete_deployment(pool: Pool, run: FlowRun) -> None:
    assert run.deployment_id is not None
    pool.client.delete_deployment(run.deployment_id)
    pool.worker_looks()


def delete_pool(pool: Pool, _: FlowRun) -> None:
    pool.client.delete_work_pool(pool.name)
    pool.create()
    pool.queue = None


def delete_queue(pool: Pool, run: FlowRun) -> None:
    assert run.work_queue_id is not None
    pool.client.delete_work_queue_by_id(run.work_queue_id)


def delete_flow(pool: Pool, run: FlowRun) -> None:
    pool.client.delete_flow(run.flow_id)


def unbegun(pool: Pool, how: Wait) -> FlowRun:
    return pool.check_out(pool.name, how=how)


def to_be_retried(pool: Pool, how: Wait) -> FlowRun:
    run = crashed(pool, how, up_to="bill_customer")
    pool.client.set_flow_run_state(run.id, AwaitingRetry(message=CONTINUED))
    return run


def crashed(pool: Pool, how: Wait, up_to: str = "prepare_order") -> FlowRun:
    run = pool.check_out(pool.name, how=how)
    placed(pool.name, up_to, run_id=str(run.id))
    set_order(pool.name, wait=how)
    states: tuple[State[Any], ...] = (Running(), Crashed())
    for state in states:
        pool.client.set_flow_run_state(run.id, state, force=True)
    return run


def suspended(pool: Pool, _: Wait) -> FlowRun:
    run = pool.check_out(pool.name, how="suspend")
    pool.work()
    pool.ended()
    assert pool.state_of(run) == "Suspended"
    return run


def answered(pool: Pool, how: Wait) -> FlowRun:
    run = suspended(pool, how)
    answer = {"outcome": ASSIGNED, "courier": "night-rail", "answered_by": "Ada"}
    assert pool.runs.answer(run, **answer) == "ACCEPT"
    return run


WITH_ITS_RUN = (delete_run, delete_flow)
"""What takes the run with it, and with the run the answers among its inputs."""
WITH_RUNS_TO_COME = (*WITH_ITS_RUN, delete_deployment)
"""What takes a run with it that was never begun; no trace of its order is left anywhere."""
CASES = [
    pytest.param(stage, how, delete, id=f"{stage.__name__}-{how}-{delete.__name__}")
    for stage, how in (
        (unbegun, "suspend"),
        (to_be_retried, "pause"),
        (crashed, "suspend"),
        (suspended, "suspend"),
        (answered, "suspend"),
    )
    for delete in (delete_run, delete_deployment, delete_pool, delete_queue, delete_flow)
    if not (stage is unbegun and delete in WITH_RUNS_TO_COME)
]


@pytest.mark.parametrize(("stage", "how", "delete"), CASES)
def test_an_order_survives_it(pool: Pool, stage: Stage, how: Wait, delete: Delete) -> None:
    run = pool.client.read_flow_run(stage(pool, how).id)
    delete(pool, run)
    pool.deploy(store_checkout)
    is_answered = stage is answered and delete not in WITH_ITS_RUN

    def goes_on() -> bool:
        recover_orders()
        pool.work()
        return found(pool.name) and (
            status(pool.name) == "dispatched" if is_answered else waits(pool, how)
        )

    wait_until(goes_on, "the order's way on", poll_seconds=0.5)
    if is_answered:
        assert decisions(pool.name) == [(ASSIGNED, "night-rail", True)]
    ends(pool)
    assert (status(pool.name), order_row(pool.name).attempt) == ("dispatched", 1)
    assert ledger() == [(f"{pool.name}:1", "captured", 20_00)]


def ends(pool: Pool) -> None:
    """Find a courier, and work and recover until the order has ended."""

    def look() -> bool:
        dispatch_orders(listen_seconds=1)
        recover_orders()
        pool.work()
        return status(pool.name) in ENDED and all(e.done() for e in pool.executions)

    wait_until(look, "the order's end")


def found(order_id: str) -> bool:
    try:
        return bool(order_row(order_id).id)
    except NoResultFound:
        return False


def waits(pool: Pool, how: Wait) -> bool:
    order = order_row(pool.name)
    if order.status != "waiting" or order.run_id is None:
        return False
    try:
        state = pool.client.read_flow_run(UUID(order.run_id)).state_name
    except ObjectNotFound:
        return False
    return state == {"pause": "Paused", "suspend": "Suspended"}[how]
