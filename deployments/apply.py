"""Application of prefect.yaml, which keeps what people have set.

    python -m deployments.apply     apply it to the server of PREFECT_API_URL

`prefect deploy --all` alone sets every deployment as the file has it: it resumes a dispatcher that
is off, pauses a listening batch, sales report or archive that is on, and drops parameters that were
set in the UI.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.responses import DeploymentResponse

from deployments.automations import FLOWS
from flows.runs.searches import of_flows
from terminal.command_line import command
from terminal.output import complain, terminal

PROJECT_DIR = Path(__file__).resolve().parent.parent
NEEDED = ("STORE_WORK_POOL", "STORE_HOME")
"""Without them prefect.yaml is applied as well, and no run of it starts."""
DEPLOY = (sys.executable, "-m", "prefect", "deploy", "--all", "--no-prompt")


@contextmanager
def keeping(client: SyncPrefectClient) -> Iterator[None]:
    """Keep what is paused and set, whatever is deployed inside.

    Kept are whether each deployment of the store is paused, and its parameters that prefect.yaml
    does not set. For the seconds of the block they are as in the file, and they stay so if this
    process is killed meanwhile.
    """
    before = {deployment.id: deployment for deployment in _deployments(client)}
    try:
        yield
    finally:
        for deployment in _deployments(client):
            if deployment.id in before:
                _restore(client, before[deployment.id], deployment)


def _deployments(client: SyncPrefectClient) -> list[DeploymentResponse]:
    return client.read_deployments(flow_filter=of_flows(*FLOWS))


def _restore(
    client: SyncPrefectClient, before: DeploymentResponse, now: DeploymentResponse
) -> None:
    # Not those that the flow has no more.
    known = (now.parameter_openapi_schema or {}).get("properties", {})
    kept = {name: value for name, value in before.parameters.items() if name in known}
    if parameters := kept.keys() - now.parameters.keys():
        kept = {name: kept[name] for name in parameters} | now.parameters
        client.update_deployment(now.id, DeploymentUpdate(parameters=kept))
    if before.paused and not now.paused:
        client.pause_deployment(now.id)
    if now.paused and not before.paused:
        client.resume_deployment(now.id)


@command("python -m deployments.apply", __doc__)
def main() -> int:
    """Apply prefect.yaml."""
    # It imports all flows.
    from flows.runs.order_runs import prefect_client

    if missing := [name for name in NEEDED if not os.environ.get(name)]:
        return complain(f"Set {' and '.join(missing)} as docs/settings.md says.")
    with prefect_client() as client, keeping(client):
        status = subprocess.run(DEPLOY, cwd=PROJECT_DIR, check=False).returncode
    if status:
        return complain(f"`prefect deploy --all` ended with status {status}, as it says above.")
    terminal().print("Applied. What was paused is paused, what was resumed is resumed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
