"""A worker that executes checkouts in threads, not in a process each: for hundreds of them at once.

The server, the runs, the engine, the flow and the database are the real ones. What is saved is the
start of a Python with Prefect in it, some four seconds of a core for each run and each resume.

    python -m tests.load.thread_worker POOL THREADS
"""

import logging
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import OrchestrationResult
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow
from prefect.states import Pending

from flows.checkout import store_checkout

POLL_SECONDS = 0.5
logger = logging.getLogger("store.thread_worker")


def work(client: SyncPrefectClient, pool: str, threads: int) -> None:
    """Execute the pool's runs until this process is ended."""
    under_way: set[Future[None]] = set()
    with ThreadPoolExecutor(threads) as executor:
        while True:
            for done in [future for future in under_way if future.done()]:
                under_way.remove(done)
                done.result()
            due = client.get_scheduled_flow_runs_for_work_pool(
                pool, scheduled_before=datetime.now(UTC)
            )
            for given in due[: threads - len(under_way)]:
                if _take(client, given.flow_run):
                    under_way.add(executor.submit(_execute, given.flow_run))
            time.sleep(POLL_SECONDS)


def _take(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Say whether no other worker was faster."""
    answer: OrchestrationResult[Any] = client.set_flow_run_state(run.id, Pending())
    return answer.status.value == "ACCEPT"


def _execute(run: FlowRun) -> None:
    try:
        run_flow(store_checkout, flow_run=run, parameters=run.parameters, return_type="state")
    except Pause:
        logger.info("run %s is suspended", run.name)


if __name__ == "__main__":
    with get_client(sync_client=True) as prefect:
        work(prefect, sys.argv[1], int(sys.argv[2]))
