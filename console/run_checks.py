"""What the doctor looks at among the runs in Prefect."""

from collections.abc import Iterator

from prefect import get_client

from console.diagnosis import Check, Diagnosis, mend, warning
from flows.runs.lost_runs import lost_runs
from flows.runs.stand_by import without_listeners
from store.errors import first_of
from store.models import utc_now

START = {
    "dispatch-orders": "`checkout dispatcher on`",
    "recover-orders": "`python -m deployments.automations`",
}
"""What starts a run of each flow that listens."""


def _lost_runs() -> Iterator[Diagnosis]:
    with get_client(sync_client=True) as client:
        lost = lost_runs(client, utc_now())
    if lost:
        reasons = first_of(f"{run.name}: {why}" for run, why in lost)
        yield warning(
            f"no process has {len(lost)} runs, which own no order yet ({reasons})",
            "recover_orders starts them again within a minute; if they stay here, see that its "
            "deployment is scheduled and that a worker takes its runs",
        )


def _listeners() -> Iterator[Diagnosis]:
    with get_client(sync_client=True) as client:
        silent = without_listeners(client)
        flows = sorted({client.read_flow(deployment.flow_id).name for deployment in silent})
    for flow in flows:
        yield mend(
            f"no run of {flow} listens, and none starts within minutes",
            f"{START[flow]} starts one",
        )


RUN_CHECKS = (
    Check(
        "lost runs",
        _lost_runs,
        "every run that was accepted has a process, or a worker to take it",
        ("database", "prefect server"),
    ),
    Check(
        "listeners",
        _listeners,
        "dispatcher and recovery listen, start soon, or are off",
        ("prefect server",),
    ),
)
