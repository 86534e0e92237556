"""The measured process of a batch: `batch_checkout`, from submitted orders to its report."""

import sys
import time
from typing import Any

# Prefect imports it to start a flow in this process, which takes a fifth of a second; a run of a
# deployment, which the server has already, does not.
import fastapi.encoders  # noqa: F401
from prefect import State

from benchmarks.ground import answer, peak_mb
from flows.batch import batch_checkout
from flows.batches.limits import CHUNK_SIZE, CONCURRENCY
from flows.batches.report import BatchReport
from fork_server.imports import import_all
from store.models import utc_now


def main(chunk_size: int, concurrency: int) -> None:
    """Measure; the shop is prepared, a dispatcher listens."""
    # As the fork server has done for each run.
    import_all(["flows.batch"])
    before_mb, before_cpu = peak_mb(), time.process_time()
    started = utc_now()
    state: State[Any] = batch_checkout(
        chunk_size=chunk_size, concurrency=concurrency, return_state=True
    )
    # Until Prefect has it as completed. The process stays for the rest of a second: Prefect's
    # thread of heartbeats sleeps whole ones, and is waited for.
    seconds = (state.timestamp - started).total_seconds()
    report: BatchReport = state.result()
    answer(
        orders=report.orders,
        by_status=report.by_status,
        seconds=seconds,
        cpu_seconds=time.process_time() - before_cpu,
        step_seconds=report.step_seconds,
        peak_mb=peak_mb(),
        before_mb=before_mb,
    )


if __name__ == "__main__":
    given = list(map(int, sys.argv[1:]))
    main(*(given or (CHUNK_SIZE, CONCURRENCY)))
