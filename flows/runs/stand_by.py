"""Stand-bys of the flows that listen, started when a run has died.

A run that listens keeps its deployment's only slot for hours, so no schedule follows it up soon.
Beside it two stand-bys wait: scheduled runs, whose starts are put off by each look. A dead run puts
nothing off. The second one is for a first that dies before it listens. They need neither a hook nor
an automation, and are started by a worker like any other run.
"""

import logging
import time
from collections import defaultdict
from datetime import timedelta
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilterNextScheduledStartTime,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.states import Scheduled

from flows.runs.searches import in_state, of_flows, of_pool
from flows.runs.work_pool import SERVER_AWAY
from store.models import utc_now

logger = logging.getLogger("store.stand_by")

FLOWS = ("dispatch-orders", "recover-orders")
"""The flows that listen. Their runs look after the stand-bys of each other's deployments too."""
TAG = "stand-by"
LOOK_SECONDS = 40.0
FIRST, SECOND = "first", "second"
"""The tags of a deployment's two stand-bys; an earlier version's has neither, and is a first."""
STARTS_AFTER = {FIRST: timedelta(seconds=90), SECOND: timedelta(minutes=10)}
"""First: two looks and some, since a dispatcher looks late while it receives, and a worker takes a
run ten seconds before it is due. Second: longer than a restart of Prefect's server or a change of
the code, in which a process ends at its start, and than the lease of a dead run's slot."""


class StandBy:
    """The looks of a listening run, the executing one.

    Args:
        client: Prefect's client.
    """

    def __init__(self, client: SyncPrefectClient) -> None:
        self._client = client
        context = FlowRunContext.get()
        run = context.flow_run if context is not None else None
        self._run = run if run is not None and run.work_pool_name else None
        self._looks = 0
        self._next_look = time.monotonic()

    def goes_on(self) -> bool:
        """Look after the stand-bys and return whether the run listens on.

        It ends when another run of its deployment is due. It ends when the deployment's schedules
        are off, unless a person started it. A run without a work pool, and one whose server is
        away, goes on.
        """
        if self._run is None or time.monotonic() < self._next_look:
            return True
        self._next_look = time.monotonic() + LOOK_SECONDS
        self._looks += 1
        try:
            return self._look(self._run)
        except (ObjectNotFound, *SERVER_AWAY) as error:
            logger.warning("the stand-bys could not be looked after: %r", error)
            return True

    def _look(self, run: FlowRun) -> bool:
        soon = scheduled_soon(self._client, run.work_pool_name, STARTS_AFTER[SECOND])
        mine = [other for other in soon if other.deployment_id == run.deployment_id]
        for other in mine:
            if TAG in other.tags:
                put_off(self._client, other)
        off = keep(self._client, run.work_pool_name, soon)
        # A person may start a run though the schedules are off.
        by_a_person = not run.auto_scheduled and TAG not in run.tags
        if run.deployment_id in off and not by_a_person:
            return False
        is_followed = any(TAG not in other.tags and is_due(other) for other in mine)
        # The first look ends nothing, so that each run does its work once.
        return not is_followed or self._looks == 1


def keep(client: SyncPrefectClient, pool: str | None, soon: list[FlowRun]) -> set[UUID]:
    """Create missing stand-bys, and delete surplus ones and those that are off.

    Two runs that look at the same moment both create them. Of several first or second ones the one
    with the lowest id stays, so that two that look never delete all of them.

    Args:
        client: Prefect's client.
        pool: The work pool of the deployments.
        soon: The runs that are scheduled soon.

    Returns:
        The ids of the deployments that are off: paused, or without an active schedule.

    Raises:
        ObjectNotFound: another run has deleted a stand-by first; the next look finds all right.
    """
    stand_bys: defaultdict[UUID | None, dict[str, UUID]] = defaultdict(dict)
    for run in sorted((run for run in soon if TAG in run.tags), key=lambda run: run.id):
        if stand_bys[run.deployment_id].setdefault(_which(run), run.id) != run.id:
            client.delete_flow_run(run.id)
    off = set()
    for deployment in client.read_deployments(
        flow_filter=of_flows(*FLOWS), work_pool_filter=of_pool(pool or "")
    ):
        is_off = _is_off(deployment)
        its = stand_bys[deployment.id]
        if not is_off and its.keys() != STARTS_AFTER.keys():
            for which in STARTS_AFTER.keys() - its.keys():
                its[which] = create(client, deployment.id, STARTS_AFTER[which], which)
            # It may have been paused since, by a person who could not see the new stand-by.
            is_off = _is_off(client.read_deployment(deployment.id))
        if is_off:
            off.add(deployment.id)
            for id_ in its.values():
                client.delete_flow_run(id_)
    return off


def start_unless_off(client: SyncPrefectClient, deployment: DeploymentResponse) -> None:
    """Start a listening flow unless it is off or scheduled soon.

    One that listens already takes the new run for its stand-by.
    """
    soon = scheduled_soon(client, deployment.work_pool_name, STARTS_AFTER[FIRST])
    if not _is_off(deployment) and all(run.deployment_id != deployment.id for run in soon):
        create(client, deployment.id, timedelta(0))


def without_listeners(client: SyncPrefectClient) -> list[DeploymentResponse]:
    """Return the deployments without a run that listens.

    Those with one that starts within minutes, and those that are off, are left out.
    """
    soon = utc_now() + 2 * STARTS_AFTER[SECOND]
    listens = in_state(StateType.PENDING, StateType.RUNNING)
    starts = in_state(
        StateType.SCHEDULED,
        next_scheduled_start_time=FlowRunFilterNextScheduledStartTime(before_=soon),
    )
    return [
        deployment
        for deployment in client.read_deployments(flow_filter=of_flows(*FLOWS))
        if not _is_off(deployment)
        and not any(
            client.read_flow_runs(
                deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
                flow_run_filter=wanted,
                limit=1,
            )
            for wanted in (listens, starts)
        )
    ]


def _is_off(deployment: DeploymentResponse) -> bool:
    return deployment.paused or not any(schedule.active for schedule in deployment.schedules)


def _which(stand_by: FlowRun) -> str:
    return SECOND if SECOND in stand_by.tags else FIRST


def create(
    client: SyncPrefectClient, deployment_id: UUID, after: timedelta, which: str = FIRST
) -> UUID:
    """Schedule a stand-by of a deployment and return its id."""
    return client.create_flow_run_from_deployment(
        deployment_id,
        name=TAG,
        tags=[TAG, which],
        state=Scheduled(scheduled_time=utc_now() + after),
    ).id


def put_off(client: SyncPrefectClient, stand_by: FlowRun) -> None:
    """Reschedule a stand-by, whose listening run lives."""
    starts_at = utc_now() + STARTS_AFTER[_which(stand_by)]
    client.set_flow_run_state(stand_by.id, Scheduled(scheduled_time=starts_at))


def scheduled_soon(client: SyncPrefectClient, pool: str | None, within: timedelta) -> list[FlowRun]:
    """Return the listening flows' runs that are due within twice this time."""
    return client.read_flow_runs(
        flow_filter=of_flows(*FLOWS),
        work_pool_filter=of_pool(pool or ""),
        flow_run_filter=in_state(
            StateType.SCHEDULED,
            next_scheduled_start_time=FlowRunFilterNextScheduledStartTime(
                before_=utc_now() + 2 * within
            ),
        ),
    )


def is_due(run: FlowRun) -> bool:
    """Return whether the run was to start by now."""
    return run.expected_start_time is not None and run.expected_start_time <= utc_now()
