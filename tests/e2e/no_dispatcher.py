"""Keeps the queue's worker away, so that a person is the only one who answers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from deployments.local import DISPATCH_DEPLOYMENT
from tests.polling import wait_until

# A cancelled run has 30 s to end. Where no worker carries that out, Prefect ends it after 300 s.
_ENDING_SECONDS = 360.0
_REQUEST_SECONDS = 30.0
_POLL_SECONDS = 0.5
_NOT_ENDED = ["SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING"]


@contextmanager
def no_dispatcher(api_url: str, auth: tuple[str, str] | None = None) -> Iterator[None]:
    """Inside, no run of `dispatch_orders` listens, and its schedule starts none."""
    with httpx.Client(base_url=api_url, timeout=_REQUEST_SECONDS, auth=auth) as api:
        deployment = _sent(api.get(f"/deployments/name/{DISPATCH_DEPLOYMENT}"))["id"]
        _sent(api.post(f"/deployments/{deployment}/pause_deployment"))
        try:
            wait_until(
                lambda: _have_ended(api, deployment),
                "end of the dispatchers",
                patience_seconds=_ENDING_SECONDS,
                poll_seconds=_POLL_SECONDS,
            )
            yield
        finally:
            _sent(api.post(f"/deployments/{deployment}/resume_deployment"))


def _have_ended(api: httpx.Client, deployment: str) -> bool:
    """Cancel the deployment's runs; say whether none is left."""
    runs = _not_ended(api, deployment)
    for run in runs:
        # One that is about to start is let start: nobody would cancel its process.
        if run["state"]["type"] in ("SCHEDULED", "RUNNING"):
            state = {"type": "CANCELLING", "name": "Cancelling"}
            _sent(api.post(f"/flow_runs/{run['id']}/set_state", json={"state": state}))
    return not runs


def _not_ended(api: httpx.Client, deployment: str) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = _sent(
        api.post(
            "/flow_runs/filter",
            json={
                "flow_runs": {
                    "deployment_id": {"any_": [deployment]},
                    "state": {"type": {"any_": _NOT_ENDED}},
                }
            },
        )
    )
    return runs


def _sent(answer: httpx.Response) -> Any:
    answer.raise_for_status()
    return answer.json() if answer.content else None
