"""The doctor's check of warm starts."""

from collections.abc import Iterator
from typing import Any

from prefect.client.schemas.objects import WorkPool

from console.deployment_checks import work_pools
from console.diagnosis import Check, Diagnosis, ok, warning
from console.prefect_checks import open_server
from deployments.warm_start import CLIENT, is_wanted
from fork_server.client import ANSWER_SECONDS
from fork_server.status import PATIENCE_SECONDS, Silent, Status, servers


def look() -> Iterator[Diagnosis]:
    """Report how each process pool starts runs, and each fork server."""
    is_warm = False
    with open_server() as client:
        for name, pool in work_pools(client).items():
            if pool is not None and pool.type == "process":
                is_warm |= CLIENT in (_command(pool) or "")
                yield _of_pool(name, _command(pool))
    if not is_warm:
        return
    found = servers()
    yield from (_of_server(each) for each in found)
    if not found:
        yield ok("no fork server runs here; the next run of a worker starts one")


def _command(pool: WorkPool) -> str | None:
    template: dict[str, Any] = pool.base_job_template
    variables = template.get("variables", {}).get("properties", {})
    command: str | None = variables.get("command", {}).get("default")
    return command


def _of_pool(name: str, command: str | None) -> Diagnosis:
    if command and CLIENT in command:
        return ok(f"runs of the work pool {name} start warm")
    if command:
        return ok(f"runs of the work pool {name} start by a command of its own")
    if not is_wanted():
        return ok(f"runs of the work pool {name} start cold, as it is set here")
    return warning(
        f"runs of the work pool {name} start cold: each takes seconds of a core to begin",
        "call `python -m deployments.warm_start`, or set STORE_WARM_START=false",
    )


def _of_server(server: Status | Silent) -> Diagnosis:
    if isinstance(server, Silent):
        return warning(
            f"the fork server {server.pid} of worker {server.worker} has not answered for "
            f"{PATIENCE_SECONDS:.0f} s: each new run waits {ANSWER_SECONDS:.0f} s for it, then "
            "starts cold",
            f"if it says so again, `kill -9 {server.pid}`: its runs end with it, and their orders "
            "go on by themselves; the next run starts another fork server",
        )
    return ok(_told(server))


def _told(status: Status) -> str:
    code = "the present code" if status.is_current else "older code, kept for its runs"
    return (
        f"the fork server {status.pid} of worker {status.worker} has {code} ({status.code}) "
        f"since {status.since:%Y-%m-%d %H:%M} UTC, and {status.children} runs"
    )


WARM_START_CHECKS = (Check("warm start", look, needs=("prefect server", "prefect.yaml")),)
