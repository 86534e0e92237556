"""The switches of the dispatcher and of the batch that listens.

While the dispatcher is off, a person answers each waiting order. The batch that listens is off
until a front end needs it. Prefect keeps a switch as the pause of its deployments, so it holds over
restarts, and the UI shows it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Cancelling
from pydantic import BaseModel

from flows.dispatch import dispatch_orders
from flows.runs.searches import all_runs, in_state, of_flows
from store.errors import DeploymentNotFound
from store.settings import settings

UNDER_WAY = (StateType.PENDING, StateType.RUNNING)


class SwitchStatus(BaseModel):
    """Whether a switch is on, with its executing runs' names."""

    is_on: bool
    running: list[str]


@dataclass(frozen=True, slots=True)
class Switch:
    """The switch of one or more deployments.

    Its methods are safe to repeat. They raise DeploymentNotFound, and do nothing, if Prefect has no
    such deployment.

    Attributes:
        deployments: Returns the deployments.
        ends_runs: Whether their runs are cancelled when it is switched off.
    """

    deployments: Callable[[SyncPrefectClient], Sequence[DeploymentResponse]]
    ends_runs: bool

    def status(self, client: SyncPrefectClient) -> SwitchStatus:
        """Return whether it is on, and its runs."""
        deployments = self.deployments(client)
        return SwitchStatus(
            is_on=any(not deployment.paused for deployment in deployments),
            running=[run.name for run in _runs(client, deployments, *UNDER_WAY)],
        )

    def on(self, client: SyncPrefectClient) -> SwitchStatus:
        """Resume the deployments and start a run of one now."""
        deployments = self.deployments(client)
        for deployment in deployments:
            client.resume_deployment(deployment.id)
        start_now(client, deployments)
        return self.status(client)

    def off(self, client: SyncPrefectClient) -> SwitchStatus:
        """Pause the deployments, and cancel runs if ``ends_runs``."""
        deployments = self.deployments(client)
        for deployment in deployments:
            client.pause_deployment(deployment.id)
        if self.ends_runs:
            for run in _runs(client, deployments, *UNDER_WAY, StateType.SCHEDULED):
                has_process = run.state_type in UNDER_WAY
                client.set_flow_run_state(run.id, Cancelling() if has_process else Cancelled())
        return self.status(client)


def _dispatchers(client: SyncPrefectClient) -> Sequence[DeploymentResponse]:
    if found := client.read_deployments(flow_filter=of_flows(dispatch_orders.name)):
        return found
    raise _not_deployed(dispatch_orders.name)


def _listening_batch(client: SyncPrefectClient) -> Sequence[DeploymentResponse]:
    name = settings().online_deployment
    try:
        return [client.read_deployment_by_name(name)]
    except ObjectNotFound:
        raise _not_deployed(name) from None


def _not_deployed(name: str) -> DeploymentNotFound:
    return DeploymentNotFound(
        f"Prefect has no deployment {name}; apply prefect.yaml: `python -m deployments.apply`"
    )


DISPATCHER = Switch(_dispatchers, ends_runs=True)
"""A message that a cancelled run has received is visible again after its visibility timeout."""
ONLINE = Switch(_listening_batch, ends_runs=False)


def start_now(client: SyncPrefectClient, deployments: Sequence[DeploymentResponse]) -> None:
    """Start a run of the first deployment unless one is under way.

    The schedule's next time may be minutes away, and orders wait.
    """
    if not _runs(client, deployments, *UNDER_WAY):
        client.create_flow_run_from_deployment(deployments[0].id)


def listen_again(client: SyncPrefectClient, pool: str) -> None:
    """Start the batch that listens, if it is on in this pool."""
    try:
        deployments = _listening_batch(client)
    except DeploymentNotFound:
        return
    if deployments[0].work_pool_name == pool and not deployments[0].paused:
        start_now(client, deployments)


def _runs(
    client: SyncPrefectClient, deployments: Sequence[DeploymentResponse], *states: StateType
) -> list[FlowRun]:
    ids = [deployment.id for deployment in deployments]
    of_deployments = DeploymentFilter(id=DeploymentFilterId(any_=ids))
    return list(
        all_runs(client, deployment_filter=of_deployments, flow_run_filter=in_state(*states))
    )
