"""Figures of Prefect's server, of its workers and of late runs."""

from datetime import datetime
from typing import NamedTuple

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from console.prefect_checks import open_server
from flows.runs.searches import in_state_named, of_pool
from flows.runs.unbegun import has_worker
from flows.runs.work_pool import SERVER_AWAY
from store.models import utc_now
from store.settings import settings


class PoolFigures(NamedTuple):
    """A work pool's figures. ``late_seconds`` is of its latest run."""

    worker_up: bool
    late_runs: int = 0
    late_seconds: float = 0.0


def read_pool() -> PoolFigures | None:
    """Return the figures of the checkouts' pool, None without a server."""
    if not get_current_settings().api.url:
        return None
    try:
        with open_server() as client:
            try:
                deployment = client.read_deployment_by_name(settings().checkout_deployment)
            except ObjectNotFound:
                return PoolFigures(worker_up=False)
            pool = deployment.work_pool_name
            if pool is None:
                return PoolFigures(worker_up=False)
            return PoolFigures(has_worker(client, pool), *_late(client, pool, utc_now()))
    except SERVER_AWAY:
        return None


def _late(client: SyncPrefectClient, pool: str, now: datetime) -> tuple[int, float]:
    """Return the number of late runs, and the seconds of the latest."""
    late = in_state_named("Late")
    first = client.read_flow_runs(
        flow_run_filter=late,
        work_pool_filter=of_pool(pool),
        sort=FlowRunSort.NEXT_SCHEDULED_START_TIME_ASC,
        limit=1,
    )
    due = [run.next_scheduled_start_time for run in first if run.next_scheduled_start_time]
    count = client.count_flow_runs(flow_run_filter=late, work_pool_filter=of_pool(pool))
    return count, max((now - due[0]).total_seconds(), 0.0) if due else 0.0
