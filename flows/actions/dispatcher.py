"""The switch of the dispatcher, in whose place a person can answer.

While it is off, every deployment of `dispatch_orders` is paused, its runs are cancelled, and a
person answers each waiting order. Prefect keeps the pause, so it holds over restarts, and its UI
shows it.
"""

from collections.abc import Sequence

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.states import Cancelled, Cancelling
from pydantic import BaseModel

from flows.dispatch import dispatch_orders
from flows.runs.searches import all_runs, in_state, of_flows
from store.errors import DeploymentNotFound

UNDER_WAY = [StateType.PENDING, StateType.RUNNING]


class DispatcherStatus(BaseModel):
    """Whether the dispatcher is on, and its runs."""

    is_on: bool
    running: list[str]
    """The names of its runs that have a process."""


def status(client: SyncPrefectClient) -> DispatcherStatus:
    """Return whether the dispatcher is on.

    Raises:
        DeploymentNotFound: there is no deployment of it.
    """
    is_on = any(not deployment.paused for deployment in _deployments(client))
    running = [run.name for run in _runs(client, UNDER_WAY)]
    return DispatcherStatus(is_on=is_on, running=running)


def switch_off(client: SyncPrefectClient) -> DispatcherStatus:
    """Pause the dispatcher's deployments and cancel its runs.

    It is safe to repeat.

    A message that a cancelled run has received is visible again after its visibility timeout.

    Raises:
        DeploymentNotFound: there is no deployment of it; nothing was done.
    """
    for deployment in _deployments(client):
        client.pause_deployment(deployment.id)
    for run in _runs(client, [*UNDER_WAY, StateType.SCHEDULED]):
        has_process = run.state_type in UNDER_WAY
        client.set_flow_run_state(run.id, Cancelling() if has_process else Cancelled())
    return status(client)


def switch_on(client: SyncPrefectClient) -> DispatcherStatus:
    """Resume the dispatcher's deployments and start a run of one now.

    It is safe to repeat.

    Raises:
        DeploymentNotFound: there is no deployment of it; nothing was done.
    """
    deployments = _deployments(client)
    for deployment in deployments:
        client.resume_deployment(deployment.id)
    if not _runs(client, UNDER_WAY):
        # Now, not at the schedule's next time: orders may have waited for hours.
        client.create_flow_run_from_deployment(deployments[0].id)
    return status(client)


def _deployments(client: SyncPrefectClient) -> Sequence[DeploymentResponse]:
    found = client.read_deployments(flow_filter=of_flows(dispatch_orders.name))
    if not found:
        raise DeploymentNotFound(
            f"{dispatch_orders.name} has no deployment; apply prefect.yaml: `prefect deploy --all`"
        )
    return found


def _runs(client: SyncPrefectClient, states: list[StateType]) -> list[FlowRun]:
    of_dispatcher = of_flows(dispatch_orders.name)
    return list(all_runs(client, flow_filter=of_dispatcher, flow_run_filter=in_state(*states)))
