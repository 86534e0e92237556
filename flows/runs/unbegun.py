"""Orders that Prefect has accepted and no run has recorded yet."""

from datetime import datetime
from shlex import quote
from typing import NamedTuple

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilterStartTime
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound

from flows.runs.lost_runs import order_id_of, why_lost
from flows.runs.run_states import deployments
from flows.runs.searches import PAGE, in_state, of_flows
from orders.lookup import recorded_among

CHECKOUT = "store-checkout"


class UnbegunOrder(NamedTuple):
    """An order without a record, with its run that has not begun."""

    id: str
    run_id: str
    sent_at: datetime
    why: str


def unbegun_runs(client: SyncPrefectClient, limit: int = PAGE) -> list[FlowRun]:
    """Return the newest checkout runs that have not begun."""
    not_started = FlowRunFilterStartTime(is_null_=True)
    return client.read_flow_runs(
        flow_filter=of_flows(CHECKOUT),
        flow_run_filter=in_state(StateType.SCHEDULED, StateType.PENDING, start_time=not_started),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=min(limit, PAGE),
    )


def unbegun_orders(client: SyncPrefectClient, now: datetime, limit: int) -> list[UnbegunOrder]:
    """Return the orders of runs to come, the newest first.

    Args:
        client: Prefect's client.
        now: The present moment.
        limit: How many at most.
    """
    runs = unbegun_runs(client, limit)
    recorded = recorded_among([order_id_of(run) for run in runs])
    return [
        UnbegunOrder(
            order_id_of(run), str(run.id), run.created or now, why_unbegun(client, run, now)
        )
        for run in runs
        if order_id_of(run) not in recorded
    ]


def is_unbegun(run: FlowRun) -> bool:
    """Return whether a run is still to begin."""
    is_to_come = run.state is not None and (run.state.is_scheduled() or run.state.is_pending())
    return run.start_time is None and is_to_come


def why_unbegun(client: SyncPrefectClient, run: FlowRun, now: datetime) -> str:
    """Return why a run has not begun, with the remedy if needed."""
    lost = why_lost(run, now, deployments(client))
    if lost:
        return f"{lost}; recover_orders starts it again in its next round"
    name = run.work_pool_name
    if run.state is not None and run.state.is_pending():
        return "its process is starting"
    if name is None:
        return "it has no work pool, so that no worker takes it"
    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        return f"its work pool {name} is gone"
    if pool.is_paused:
        return f"its work pool {name} is paused; `checkout reopen --pool {quote(name)}` resumes it"
    if not has_worker(client, name):
        start = f"prefect worker start --pool {quote(name)}"
        return f"no worker of {name} is online; `{start}` starts one"
    return f"its run is {run.state_name}: a worker of {name} takes it as soon as it has room"


def has_worker(client: SyncPrefectClient, pool_name: str) -> bool:
    """Return whether the pool has a worker or needs none."""
    try:
        pool = client.read_work_pool(pool_name)
    except ObjectNotFound:
        return False
    return (
        pool.is_push_pool
        or pool.is_managed_pool
        or any(
            worker.status == WorkerStatus.ONLINE
            for worker in client.read_workers_for_work_pool(pool_name)
        )
    )
