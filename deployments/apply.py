"""Application of prefect.yaml, which keeps what people have set.

    python -m deployments.apply     apply it to the server of PREFECT_API_URL

`prefect deploy --all` alone sets every deployment as the file has it: it resumes a dispatcher that
is off, pauses a listening batch, sales report or archive that is on, and drops parameters that were
set in the UI.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.responses import DeploymentResponse

from deployments.automations import FLOWS
from flows.runs.searches import of_flows
from terminal.command_line import command
from terminal.output import complain, terminal

PROJECT_DIR = Path(__file__).resolve().parent.parent
NEEDED = ("STORE_WORK_POOL", "STORE_HOME")
"""Without them prefect.yaml is applied as well, and no run of it starts."""
DEPLOY = ("-m", "prefect", "deploy", "--all", "--no-prompt", "--prefect-file")
"""What Python is to execute, in the project's folder; the file follows."""


@contextmanager
def what_to_apply(client: SyncPrefectClient) -> Iterator[Path]:
    """Provide a copy of prefect.yaml that keeps what people have set.

    Each deployment that is there stays paused or resumed, and keeps its parameters that the file
    does not set. The copy is deleted afterwards.
    """
    document = yaml.safe_load((PROJECT_DIR / "prefect.yaml").read_text())
    there = {
        _identity(deployment.entrypoint, deployment.name): deployment
        for deployment in client.read_deployments(flow_filter=of_flows(*FLOWS))
    }
    for deployment in document["deployments"]:
        if before := there.get(_identity(deployment["entrypoint"], deployment["name"])):
            _keep(deployment, before)
        if not os.environ.get("STORE_IMAGE"):
            # Prefect would make it empty, with a warning for each deployment.
            deployment["work_pool"]["job_variables"].pop("image", None)
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "prefect.yaml"
        copy.write_text(yaml.safe_dump(document))
        yield copy


def _identity(entrypoint: str | None, name: str) -> tuple[str, str]:
    """Return what a deployment keeps when its flow moves to another module."""
    return (entrypoint or "").rpartition(".")[2], name


def _keep(deployment: dict[str, Any], before: DeploymentResponse) -> None:
    deployment["paused"] = before.paused
    own: Mapping[str, Any] = deployment.get("parameters", {})
    if set_by_people := before.parameters.keys() - own.keys():
        # Imported here, since few have set a parameter and it imports Prefect's command line.
        from deployments.prefect_yaml import flow_of

        # Not those that the flow has no more.
        known = set_by_people & set(flow_of(deployment).parameters.properties)
        deployment["parameters"] = {**{name: before.parameters[name] for name in known}, **own}


@command("python -m deployments.apply", __doc__)
def main() -> int:
    """Apply prefect.yaml."""
    # It imports all flows.
    from flows.runs.order_runs import prefect_client

    if missing := [name for name in NEEDED if not os.environ.get(name)]:
        return complain(f"Set {' and '.join(missing)} as docs/settings.md says.")
    with prefect_client() as client, what_to_apply(client) as file:
        deploy = [sys.executable, *DEPLOY, str(file)]
        status = subprocess.run(deploy, cwd=PROJECT_DIR, check=False).returncode
    if status:
        return complain(f"`prefect deploy --all` ended with status {status}, as it says above.")
    terminal().print("Applied. What was paused is paused, what was resumed is resumed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
