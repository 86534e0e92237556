"""Calls of a Prefect server over plain HTTP.

Prefect's own client takes seconds to import and reads its settings from this process; here the
address is given, and nothing else is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

# A loaded two-core machine was seen to take more than 10 s for an answer right after the start.
_REQUEST_SECONDS = 30.0
# Whoever does not answer this fast is asked again soon.
_HEALTH_SECONDS = 3.0

TERMINAL_STATES = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})


@dataclass(frozen=True)
class FlowRun:
    """A flow run as the server sees it now."""

    id: str
    name: str
    deployment_id: str | None
    state_type: str
    state_name: str
    message: str
    state_id: str

    @property
    def is_finished(self) -> bool:
        """Whether the run is in a terminal state."""
        return self.state_type in TERMINAL_STATES


class PrefectApi:
    """A Prefect server.

    Every call raises `httpx.TransportError` if the server does not answer, and
    `httpx.HTTPStatusError` if it refuses; :meth:`is_healthy` says so instead.

    Args:
        url: its address, which ends in /api.
        auth: the `user:password` that it asks for, if it does.
    """

    def __init__(self, url: str, auth: str | None = None) -> None:
        self.url = url
        user, _, password = (auth or "").partition(":")
        self._http = httpx.Client(
            base_url=url, timeout=_REQUEST_SECONDS, auth=(user, password) if auth else None
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()

    def is_healthy(self) -> bool:
        """Whether the server answers, within some seconds, and reaches its database."""
        try:
            answer = self._http.get("/health", timeout=_HEALTH_SECONDS)
            return answer.status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def create_work_pool(self, name: str, kind: str) -> None:
        """Create the work pool unless it exists."""
        answer = self._http.post("/work_pools/", json={"name": name, "type": kind})
        if answer.status_code != httpx.codes.CONFLICT:
            answer.raise_for_status()

    def work_pool(self, name: str) -> dict[str, Any] | None:
        """Return the work pool, if it exists."""
        answer = self._http.get(f"/work_pools/{name}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def set_base_job_template(self, work_pool: str, template: dict[str, Any]) -> None:
        """Replace the pool's base job template."""
        self._http.patch(
            f"/work_pools/{work_pool}", json={"base_job_template": template}
        ).raise_for_status()

    def limit_queue(self, work_pool: str, queue: str, limit: int) -> None:
        """Limit the runs of the queue that start or run at once."""
        self._http.patch(
            f"/work_pools/{work_pool}/queues/{queue}", json={"concurrency_limit": limit}
        ).raise_for_status()

    def worker_is_online(self, work_pool: str, worker: str) -> bool:
        """Return whether the worker has sent its heartbeat to the pool."""
        answer = self._http.post(
            f"/work_pools/{work_pool}/workers/filter",
            json={"workers": {"status": {"any_": ["ONLINE"]}}},
        )
        answer.raise_for_status()
        return any(found["name"] == worker for found in answer.json())

    def start_run(self, deployment: str, parameters: dict[str, Any]) -> FlowRun:
        """Start a run of the deployment `flow/name`.

        Raises:
            LookupError: there is no such deployment.
            httpx.HTTPStatusError: its parameter check refused.
        """
        answer = self._http.post(
            f"/deployments/{self._known_deployment(deployment)}/create_flow_run",
            json={"parameters": parameters, "state": {"type": "SCHEDULED"}},
        )
        answer.raise_for_status()
        return _flow_run(answer.json())

    def deployment_id(self, deployment: str) -> str | None:
        """Return the id of the deployment `flow/name`, if it exists."""
        answer = self._http.get(f"/deployments/name/{deployment}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        answer.raise_for_status()
        return str(answer.json()["id"])

    def _known_deployment(self, deployment: str) -> str:
        deployment_id = self.deployment_id(deployment)
        if deployment_id is None:
            raise LookupError(f"there is no deployment {deployment}")
        return deployment_id

    def runs_under_way(self) -> list[FlowRun]:
        """Return the runs that are pending, running or paused."""
        states = {
            "type": {"any_": ["PENDING", "RUNNING", "PAUSED"]},
            # Of type PAUSED too, but without a process: it goes on when it is resumed.
            "name": {"not_any_": ["Suspended"]},
        }
        found: list[FlowRun] = []
        while True:
            answer = self._http.post(
                "/flow_runs/filter",
                json={"flow_runs": {"state": states}, "sort": "ID_DESC", "offset": len(found)},
            )
            answer.raise_for_status()
            page = [_flow_run(run) for run in answer.json()]
            if not page:
                return found
            found.extend(page)

    def set_state(self, run_id: str, state_type: str, name: str, message: str) -> None:
        """Set the run's state, unless it has ended."""
        answer = self._http.post(
            f"/flow_runs/{run_id}/set_state",
            json={"state": {"type": state_type, "name": name, "message": message}},
        )
        answer.raise_for_status()

    def resume(self, run_id: str, answer: dict[str, Any]) -> str:
        """Resume a paused run and return ACCEPT, REJECT or ABORT."""
        response = self._http.post(f"/flow_runs/{run_id}/resume", json={"run_input": answer})
        response.raise_for_status()
        return str(response.json()["status"])

    def is_paused(self, deployment: str) -> bool:
        """Return whether the deployment `flow/name` exists and is paused."""
        return self._paused(deployment) is True

    def is_on(self, deployment: str) -> bool:
        """Return whether the deployment `flow/name` is there and not paused."""
        return self._paused(deployment) is False

    def _paused(self, deployment: str) -> bool | None:
        answer = self._http.get(f"/deployments/name/{deployment}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        answer.raise_for_status()
        return bool(answer.json()["paused"])

    def pause_deployment(self, deployment: str) -> None:
        """Pause the deployment, whose runs can still be started.

        Raises:
            LookupError: there is no such deployment.
        """
        self._http.post(
            f"/deployments/{self._known_deployment(deployment)}/pause_deployment"
        ).raise_for_status()

    def resume_deployment(self, deployment: str) -> None:
        """Lets the deployment's schedules make runs again.

        Raises:
            LookupError: there is no such deployment.
        """
        self._http.post(
            f"/deployments/{self._known_deployment(deployment)}/resume_deployment"
        ).raise_for_status()

    def read_run(self, run_id: str) -> FlowRun:
        """Read the run."""
        answer = self._http.get(f"/flow_runs/{run_id}")
        answer.raise_for_status()
        return _flow_run(answer.json())


def _flow_run(answer: dict[str, Any]) -> FlowRun:
    state = answer.get("state") or {}
    return FlowRun(
        id=answer["id"],
        name=answer["name"],
        deployment_id=answer["deployment_id"],
        state_type=state.get("type") or "",
        state_name=state.get("name") or "",
        message=state.get("message") or "",
        state_id=state.get("id") or "",
    )
