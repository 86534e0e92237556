"""Prefect's client for a server whose address is given."""

from typing import Any, Self
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    WorkerFilter,
    WorkerFilterStatus,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from flows.runs.searches import all_runs, in_state

_REQUEST_SECONDS = 30.0
"""A loaded two-core machine was seen to take more than 10 s right after the server's start."""


class PrefectServer(SyncPrefectClient):
    """A Prefect server, called by its address.

    No setting of this process counts. Runs are named by their ids, deployments by `flow/name`. Each
    call raises `httpx.TransportError` if the server does not answer, `httpx.HTTPStatusError` if it
    refuses, and `prefect.exceptions.ObjectNotFound` for a run or deployment that does not exist.

    Args:
        url: Its address, which ends in /api.
        auth: The `user:password` that it asks for, if it does.
    """

    def __init__(self, url: str, auth: str | None = None) -> None:
        super().__init__(
            url, auth_string=auth, httpx_settings={"timeout": httpx.Timeout(_REQUEST_SECONDS)}
        )
        self.url = url

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def is_healthy(self) -> bool:
        """Return whether the server answers."""
        return self.api_healthcheck() is None

    def is_paused(self, deployment: str) -> bool | None:
        """Return whether the deployment is paused, None if it does not exist."""
        try:
            return self.read_deployment_by_name(deployment).paused
        except ObjectNotFound:
            return None

    def pause(self, deployment: str) -> None:
        """Pause the deployment, whose runs can still be started."""
        self.pause_deployment(self.read_deployment_by_name(deployment).id)

    def unpause(self, deployment: str) -> None:
        """Let the deployment's schedules start runs again."""
        self.resume_deployment(self.read_deployment_by_name(deployment).id)

    def start_run(self, deployment: str, parameters: dict[str, Any]) -> FlowRun:
        """Start a run of the deployment."""
        found = self.read_deployment_by_name(deployment)
        return self.create_flow_run_from_deployment(found.id, parameters=parameters)

    def read_run(self, run_id: UUID | str) -> FlowRun:
        """Read the run."""
        return self.read_flow_run(UUID(str(run_id)))

    def set_state(self, run_id: UUID | str, kind: str, name: str, message: str) -> None:
        """Set the run's state, unless it has ended."""
        self.set_flow_run_state(
            UUID(str(run_id)), State(type=StateType(kind), name=name, message=message)
        )

    def resume(self, run_id: UUID | str, answer: dict[str, Any]) -> str:
        """Resume a paused run and return ACCEPT, REJECT or ABORT."""
        return self.resume_flow_run(UUID(str(run_id)), answer).status.value

    def runs_under_way(self) -> list[FlowRun]:
        """Return the runs that are pending, running or paused.

        A suspended run is none of them: it has no process, and goes on when it is resumed.
        """
        under_way = in_state(
            StateType.PENDING, StateType.RUNNING, StateType.PAUSED, not_named=["Suspended"]
        )
        return list(all_runs(self, flow_run_filter=under_way))

    def ensure_work_pool(self, name: str, kind: str) -> None:
        """Create the work pool unless it exists."""
        try:
            self.create_work_pool(WorkPoolCreate(name=name, type=kind))
        except ObjectAlreadyExists:
            return

    def limit_queue(self, work_pool: str, queue: str, limit: int) -> None:
        """Limit the runs of the queue that start or run at once."""
        self.request(
            "PATCH",
            "/work_pools/{work_pool_name}/queues/{name}",
            path_params={"work_pool_name": work_pool, "name": queue},
            json={"concurrency_limit": limit},
        )

    def worker_is_online(self, work_pool: str, worker: str) -> bool:
        """Return whether the worker has sent its heartbeat to the pool."""
        online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
        found = self.read_workers_for_work_pool(work_pool, worker_filter=online)
        return any(each.name == worker for each in found)
