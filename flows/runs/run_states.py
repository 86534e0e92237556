"""The meaning of a flow run's state for its orders."""

import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled

from flows.runs.searches import runs_among
from store.settings import settings

REPLACED = "replaced by run"
"""Beginning of the message of a run that Prefect cannot start again and the store has replaced."""
CANCELLED_BY_PREFECT = re.compile(
    # prefect/workers/base.py, `_submit_run`, 3.8.8 and 3.9.1
    r"^Deployment \S+ no longer exists, cancelled run\.$"
    # prefect/server/orchestration/core_policy.py, the rules about deployment concurrency
    r"|^Deployment concurrency (limit reached|slot lost during provisioning)"
)
"""Messages of the Cancelled states that Prefect sets by itself, where nobody has cancelled."""

DeploymentOf = Callable[[UUID], DeploymentResponse | None]


def is_cancelled_by_person(state: State[Any]) -> bool:
    """Return whether a person cancelled the run, by UI or API.

    Cancelling is a cancellation: a run without a process stays in it for five minutes.
    """
    if state.is_cancelling():
        return True
    by_the_store = (state.message or "").startswith(REPLACED)
    return state.is_cancelled() and not by_the_store and not is_cancelled_by_prefect(state)


def is_cancelled_by_prefect(state: State[Any]) -> bool:
    """Return whether Prefect itself cancelled the run, lacking its deployment."""
    return state.is_cancelled() and bool(CANCELLED_BY_PREFECT.search(state.message or ""))


def cancelled_among(client: SyncPrefectClient, run_ids: Sequence[str]) -> set[str]:
    """Return the ids of those runs that a person has cancelled."""
    return {
        str(run.id)
        for run in runs_among(client, run_ids, StateType.CANCELLING, StateType.CANCELLED)
        if run.state is not None and is_cancelled_by_person(run.state)
    }


def deployments(client: SyncPrefectClient) -> DeploymentOf:
    """Return a cached lookup of deployments, None for a deleted one."""

    @cache
    def read(deployment_id: UUID) -> DeploymentResponse | None:
        try:
            return client.read_deployment(deployment_id)
        except ObjectNotFound:
            return None

    return read


def worker_can_take(run: FlowRun, deployment_of: DeploymentOf) -> bool:
    """Return whether a worker can take the run once it is scheduled.

    Prefect cancels a scheduled run whose deployment is gone. It takes the queue from the runs of a
    work pool that is deleted, and does not give them the queue of a new pool with the same name.
    """
    deployment = deployment_of(run.deployment_id) if run.deployment_id else None
    if deployment is None:
        return False
    return deployment.work_pool_name is None or run.work_queue_id is not None


def is_stranded(run: FlowRun, now: datetime, deployment_of: DeploymentOf) -> bool:
    """Return whether no worker can take an overdue scheduled run.

    That is a deployment or a queue that is gone, or the queue of a pool that the deployment has
    left. A run that is only late, since workers are busy, away or paused, is not stranded.
    """
    due = run.next_scheduled_start_time or run.expected_start_time
    overdue = timedelta(seconds=settings().stalled_seconds)
    if run.state is None or not run.state.is_scheduled() or due is None or now - due < overdue:
        return False
    deployment = deployment_of(run.deployment_id) if run.deployment_id else None
    if deployment is None:
        return run.deployment_id is not None
    return deployment.work_queue_id not in (None, run.work_queue_id)


def mark_replaced(client: SyncPrefectClient, run_id: str, by_run_id: str) -> None:
    """End a replaced run so that no worker takes it later."""
    try:
        client.set_flow_run_state(
            UUID(run_id), Cancelled(message=f"{REPLACED} {by_run_id}"), force=True
        )
    except ObjectNotFound:
        return
