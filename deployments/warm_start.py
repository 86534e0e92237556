"""Warm starts of a process work pool's runs, by a fork server.

    python -m deployments.warm_start     set it for the pool STORE_WORK_POOL

The pool's template holds the command, so workers follow it from their next run on. Only the command
changes, and only where it is the fork server's or there is none: a command of your own stays, and
so do pools of containers. docs/deploying.md says when to call it.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.exceptions import ObjectNotFound
from pydantic import TypeAdapter, ValidationError

from deployments.machine import SetupError
from deployments.prefect_server import PrefectServer
from terminal.command_line import command
from terminal.output import complain, terminal

PROJECT_DIR = Path(__file__).resolve().parent.parent
TEMPLATE = PROJECT_DIR / "deployments/pools/process.json"
CLIENT = "fork_server/client.py"
SOCKETS = "$PREFECT_HOME/fork-server"
"""A folder for each worker that has a Prefect home of its own, and private as that one is."""
FLOW_MODULES = (
    *("flows.checkout", "flows.batch", "flows.dispatch", "flows.recovery", "flows.audit"),
    "psycopg",
)
"""What a fork server imports beforehand; SQLAlchemy imports its driver when it is first needed."""


def is_wanted() -> bool:
    """Return whether runs start warm here (STORE_WARM_START, Linux only).

    Raises:
        SetupError: the setting is neither true nor false.
    """
    asked_for = os.environ.get("STORE_WARM_START", "true")
    try:
        wanted = TypeAdapter(bool).validate_python(asked_for)
    except ValidationError:
        raise SetupError("STORE_WARM_START must be true or false.") from None
    return wanted and sys.platform.startswith("linux")


def run_command(python: str, project_dir: Path) -> str:
    """Return the command with which a local worker starts runs warm."""
    client = [python, "-I", "-S", str(project_dir / CLIENT)]
    return shlex.join([*client, SOCKETS, str(project_dir), "prefect.engine", *FLOW_MODULES])


def set_run_command(api: PrefectServer, pool_name: str, command: str | None) -> str:
    """Set the pool's start command, None for Prefect's own.

    Returns:
        What holds from now on, as a sentence.

    Raises:
        SetupError: there is no such pool.
    """
    try:
        pool = api.read_work_pool(pool_name)
    except ObjectNotFound:
        raise SetupError(
            f"There is no work pool {pool_name}: `prefect work-pool create {pool_name}`."
        ) from None
    if pool.type != "process":
        return f"The work pool {pool_name} is of type {pool.type}: its runs start as before."
    # A pool has no template until its first worker has come.
    template: dict[str, Any] = pool.base_job_template or json.loads(TEMPLATE.read_text())
    variable = template["variables"]["properties"].get("command", {})
    set_before = variable.get("default")
    if set_before and CLIENT not in set_before:
        return f"The work pool {pool_name} has a command of its own: its runs start as before."
    if set_before != command:
        variable["default"] = command
        template["variables"]["properties"]["command"] = variable
        api.update_work_pool(pool_name, WorkPoolUpdate(base_job_template=template))
    how = "warm" if command else "cold, each in a new Python"
    return f"Runs of the work pool {pool_name} start {how}."


@command("python -m deployments.warm_start", __doc__)
def main() -> int:
    """Set how the runs of `STORE_WORK_POOL` start."""
    url = os.environ.get("PREFECT_API_URL")
    pool = os.environ.get("STORE_WORK_POOL")
    if not url or not pool:
        return complain("Set PREFECT_API_URL and STORE_WORK_POOL.")
    command = run_command(sys.executable, PROJECT_DIR) if is_wanted() else None
    with PrefectServer(url, os.environ.get("PREFECT_API_AUTH_STRING")) as api:
        terminal().print(set_run_command(api, pool, command))
    return 0


if __name__ == "__main__":
    sys.exit(main())
