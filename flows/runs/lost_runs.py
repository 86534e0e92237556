"""Detection and restart of accepted runs that no process executes.

A worker that dies between taking a run and starting it leaves it Pending. A run whose process dies
before it has recorded an order is Crashed, and no order leads to it. A run whose deployment or
queue is deleted is cancelled by Prefect, or taken by no worker. Retry of an ended order's run may
meet the same. Runs that own an unfinished order are recovered with that order and are not looked at
here.
"""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilterDeploymentId,
    FlowRunFilterEndTime,
    FlowRunFilterNextScheduledStartTime,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Failed
from pydantic import ValidationError

from flows.runs.continuation import CONTINUATION, CONTINUED, new_run, restart, since_asked
from flows.runs.run_states import (
    DeploymentOf,
    deployments,
    is_cancelled_by_prefect,
    is_stranded,
    mark_replaced,
)
from flows.runs.searches import all_runs, in_state, of_flows
from flows.runs.work_pool import SERVER_AWAY
from orders.batches import batches_among
from orders.ownership import owners_among
from store.messages import CheckoutOrder
from store.settings import settings

logger = logging.getLogger("store.lost_runs")

FLOWS = ("store-checkout", "batch-checkout")
ENDED_BADLY = [StateType.FAILED, StateType.CRASHED, StateType.CANCELLED]
ENDED_WITHIN = timedelta(days=4)
"""Ended runs are looked for so far back: recovery looks each minute, and may rest for a long
weekend with everything else."""
HOOK_TIME = timedelta(seconds=5)
"""A worker reports a crash a second time after its hooks, which would end a run started again."""


def lost_runs(client: SyncPrefectClient, now: datetime) -> list[tuple[FlowRun, str]]:
    """Return the checkout and batch runs without a process, with reasons."""
    any_ = FlowRunFilterDeploymentId(is_null_=False)
    scheduled_before = FlowRunFilterNextScheduledStartTime(before_=now)
    ended_after = FlowRunFilterEndTime(after_=now - ENDED_WITHIN)
    ended = (StateType.CRASHED, StateType.CANCELLED)
    searches = (
        (in_state(StateType.PENDING, deployment_id=any_), FlowRunSort.EXPECTED_START_TIME_ASC),
        (
            in_state(
                StateType.SCHEDULED, deployment_id=any_, next_scheduled_start_time=scheduled_before
            ),
            FlowRunSort.NEXT_SCHEDULED_START_TIME_ASC,
        ),
        (in_state(*ended, deployment_id=any_, end_time=ended_after), FlowRunSort.END_TIME_DESC),
    )
    deployment_of = deployments(client)
    found = {
        run.id: (run, why)
        for wanted, sort in searches
        # All pages: hundreds of cancelled runs may have ended after a lost one.
        for run in all_runs(client, sort=sort, flow_filter=of_flows(*FLOWS), flow_run_filter=wanted)
        if (why := why_lost(run, now, deployment_of))
    }
    return _without_owners(client, list(found.values()))


def have_ended_badly(client: SyncPrefectClient, after: datetime, before: datetime) -> bool:
    """Return whether checkouts' runs have ended badly in this time.

    A server that is away has seen none; they are found in the next round.
    """
    try:
        ended = client.read_flow_runs(
            flow_filter=of_flows(*FLOWS),
            flow_run_filter=in_state(
                *ENDED_BADLY, end_time=FlowRunFilterEndTime(after_=after, before_=before)
            ),
            limit=1,
        )
    except SERVER_AWAY as error:
        logger.warning("it is not known which runs have ended: %r", error)
        return False
    return bool(ended)


def why_lost(run: FlowRun, now: datetime, deployment_of: DeploymentOf) -> str | None:
    """Return why no process will execute the run, or None.

    None is returned if a process has it, or a worker will take it.

    Whether the run owns an order is not asked here.
    """
    state = run.state
    if state is None:
        return None
    idle = now - state.timestamp
    if state.is_pending() and idle > timedelta(seconds=settings().unbegun_seconds):
        return f"no process has begun it for {idle.total_seconds():.0f} s"
    if state.is_crashed() and idle > HOOK_TIME:
        return "its process ended before it had recorded an order"
    if is_cancelled_by_prefect(state):
        return "Prefect cancelled it because its deployment was gone"
    if is_stranded(run, now, deployment_of):
        return "no worker takes it: its deployment, work pool or queue is gone or has changed"
    return None


def _without_owners(
    client: SyncPrefectClient, found: list[tuple[FlowRun, str]]
) -> list[tuple[FlowRun, str]]:
    """Leave out runs that own an unfinished order, which recovery handles.

    Runs whose orders have ended are left out too, unless their last Retry has not begun.
    """
    ids = [str(run.id) for run, _ in found]
    owners = owners_among(ids)
    batches = batches_among(ids)

    def is_lost(run: FlowRun) -> bool:
        id_ = str(run.id)
        if owners.get(id_):
            return False
        # A batch that crashed when its last order had ended still has its report to make.
        return id_ not in owners or id_ in batches or _is_to_begin(client, run)

    return [(run, why) for run, why in found if is_lost(run)]


def _is_to_begin(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Return whether an ended order's last Retry has not begun."""
    if run.state is not None and not run.state.is_final():
        return True
    return not _has_begun(since_asked(client.read_flow_run_states(run.id)))


def _has_begun(states: Sequence[State[Any]]) -> bool:
    return any(state.is_running() for state in states)


def start_again(client: SyncPrefectClient, run: FlowRun, why: str) -> FlowRun:
    """Restart a lost run, or create a new one in its place.

    It is done a bounded number of times; after that the run is failed and says so.

    Args:
        client: Prefect's client.
        run: The run, as it was found.
        why: Why no process has it.

    Returns:
        The run that is carried out now, or ``run`` if it was given up or has moved on since.

    Raises:
        ObjectNotFound: the run is gone.
        DeploymentNotFound: a new run is needed, and the deployment to start it from is gone.
    """
    now = client.read_flow_run(run.id)
    if now.state is None or run.state is None or now.state.id != run.state.id:
        return now
    states = since_asked(client.read_flow_run_states(run.id))
    tries = sum(state.message == CONTINUED for state in states)
    if tries >= settings().max_continuations:
        gave_up = f"given up after {tries + 1} starts: {why}"
        logger.error("run %s is %s", run.name, gave_up)
        client.set_flow_run_state(run.id, Failed(message=gave_up), force=True)
        return client.read_flow_run(run.id)
    logger.warning("run %s is started again: %s", run.name, why)
    if restart(client, run):
        return client.read_flow_run(run.id)
    flow = client.read_flow(run.flow_id).name
    chosen = settings()
    replacement = new_run(
        chosen.batch_deployment if flow == "batch-checkout" else chosen.checkout_deployment,
        _parameters(run),
        f"again:{run.id}",
        name=run.name,
        # An attempt is begun once for each start or Retry, also where another run takes over.
        tags=[*run.tags, CONTINUATION] if _has_begun(states) else run.tags,
    )
    mark_replaced(client, str(run.id), str(replacement.id))
    return replacement


def order_id_of(run: FlowRun) -> str:
    """Return the order id of a checkout's run.

    It is the caller's, or else the run's own id.
    """
    order = run.parameters.get("order")
    given = order.get("orderId") or order.get("order_id") if isinstance(order, dict) else None
    return str(given or run.id)


def _parameters(run: FlowRun) -> dict[str, Any]:
    """Return the run's parameters in camelCase, with the order's id.

    An order without an id keeps the one that it would have had. A deployment of an earlier version
    took snake_case names too.
    """
    try:
        order = CheckoutOrder.model_validate(run.parameters.get("order"))
    except ValidationError:
        return run.parameters
    given = order.model_dump(by_alias=True, exclude_unset=True)
    return {**run.parameters, "order": {**given, "orderId": order_id_of(run)}}
