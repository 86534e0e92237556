"""What the doctor looks at among the runs in Prefect."""

from collections.abc import Iterator

from prefect import get_client

from console.diagnosis import Check, Diagnosis, ok, warning
from flows.runs.lost_runs import lost_runs
from store.errors import first_of
from store.models import utc_now


def _lost_runs() -> Iterator[Diagnosis]:
    with get_client(sync_client=True) as client:
        lost = lost_runs(client, utc_now())
    if not lost:
        yield ok("every run that was accepted has a process, or a worker to take it")
        return
    reasons = first_of(f"{run.name}: {why}" for run, why in lost)
    yield warning(
        f"no process has {len(lost)} runs, which own no order yet ({reasons})",
        "recover_orders starts them again within a minute; if they stay here, see that its "
        "deployment is scheduled and that a worker takes its runs",
    )


RUN_CHECKS = (Check("lost runs", _lost_runs, needs=("database", "prefect server")),)
