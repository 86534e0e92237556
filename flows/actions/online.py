"""The switch of the batch that listens.

It is off until it is wanted: a shop without a front end has no use for it. Prefect keeps the
switch as the pause of the deployment.
"""

from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from pydantic import BaseModel

from flows.runs.searches import in_state
from store.errors import DeploymentNotFound
from store.settings import settings


class OnlineStatus(BaseModel):
    """Whether a batch always listens, and the runs that do now."""

    is_on: bool
    running: list[str]


def status(client: SyncPrefectClient) -> OnlineStatus:
    """Return whether the batch that listens is on.

    Raises:
        DeploymentNotFound: there is no deployment of it.
    """
    deployment = _deployment(client)
    return OnlineStatus(is_on=not deployment.paused, running=_running(client, deployment.id))


def switch_on(client: SyncPrefectClient) -> OnlineStatus:
    """Resume the deployment and start a run of it now.

    It is safe to repeat.

    Raises:
        DeploymentNotFound: there is no deployment of it; nothing was done.
    """
    deployment = _deployment(client)
    client.resume_deployment(deployment.id)
    if not _running(client, deployment.id):
        # Now, not at the schedule's next time.
        client.create_flow_run_from_deployment(deployment.id)
    return status(client)


def start_again(client: SyncPrefectClient, pool: str) -> None:
    """Start a run if this work pool has none that listens.

    Only if it is on and its deployment belongs to the pool.
    """
    try:
        deployment = _deployment(client)
    except DeploymentNotFound:
        return
    is_here = deployment.work_pool_name == pool
    if is_here and not deployment.paused and not _running(client, deployment.id):
        client.create_flow_run_from_deployment(deployment.id)


def switch_off(client: SyncPrefectClient) -> OnlineStatus:
    """Pause the deployment, letting a run that listens end by itself.

    Raises:
        DeploymentNotFound: there is no deployment of it; nothing was done.
    """
    client.pause_deployment(_deployment(client).id)
    return status(client)


def _deployment(client: SyncPrefectClient) -> DeploymentResponse:
    name = settings().online_deployment
    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        raise DeploymentNotFound(
            f"Prefect has no deployment {name}; apply prefect.yaml: `prefect deploy --all`"
        ) from None


def _running(client: SyncPrefectClient, deployment_id: UUID) -> list[str]:
    """Return the names of its runs that have a process."""
    found = client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id])),
        flow_run_filter=in_state(StateType.PENDING, StateType.RUNNING),
    )
    return [run.name for run in found]
