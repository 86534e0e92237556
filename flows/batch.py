"""The flow ``batch_checkout``, which carries many orders in one run.

Its orders go through the same steps as a single one.

The run claims submitted orders a chunk at a time and carries several chunks at once. Each order
keeps its own saga records, outcome and error, so one order's bad luck never stops the others. It
may start again from its top at any time: the orders that it owns are found in the database.
"""

import logging
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Annotated, Any

from prefect import State, Task, flow, get_client, runtime
from prefect.states import Completed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic import Field

from flows.batches.bulk import as_one, few_collections, forget_results
from flows.batches.chunk import DECIDED, check_out_chunk, finish_chunk
from flows.batches.cluster import asking_cluster, dask_runner, result_on_cluster
from flows.batches.limits import (
    CHUNK_SIZE,
    CHUNK_SIZE_AT_MOST,
    CONCURRENCY,
    CONCURRENCY_AT_MOST,
    LISTEN_SECONDS_AT_MOST,
    TOLERATED_FAILURES,
)
from flows.batches.listening import listen
from flows.batches.report import Progress, publish, report_on
from flows.batches.wait import await_decisions, decided_soon, question
from flows.compensation import compensate_run
from flows.runs.continuation import continue_crashed_run
from flows.runs.names import name_of_batch
from flows.runs.pause import Wait
from flows.runs.results import ON_THIS_MACHINE
from flows.runs.work_pool import pool_is_closed, reschedule_run
from orders.acceptance import claim_failed_orders, failed_orders_without_customer
from orders.batches import (
    begin_batch,
    count_by_status,
    pages_of_run,
    require_batch,
    touch_batch,
    waits_until,
)
from orders.intake import Intake, claim_orders, load_orders
from store.errors import BatchFailed, UnreadableSource
from store.models import OrderStatus, utc_now
from store.settings import settings

logger = logging.getLogger("store.batch")

Seconds = dict[str, float]
"""The seconds that each step of a chunk took."""
ChunkTask = Task[[list[str]], Seconds]


@flow(
    name="batch-checkout",
    flow_run_name=name_of_batch,
    retries=0,
    persist_result=False,
    result_storage=ON_THIS_MACHINE,
    on_failure=[compensate_run],
    on_cancellation=[compensate_run],
    on_crashed=[continue_crashed_run],
)
def batch_checkout(
    source: str | None = None,
    failed_of: str | None = None,
    chunk_size: Annotated[int, Field(ge=1, le=CHUNK_SIZE_AT_MOST)] = CHUNK_SIZE,
    concurrency: Annotated[int, Field(ge=1, le=CONCURRENCY_AT_MOST)] = CONCURRENCY,
    tolerated_failures: Annotated[float, Field(ge=0, le=1)] = TOLERATED_FAILURES,
    wait: Wait = "pause",
    line_items: bool = False,
    listen_seconds: Annotated[int, Field(ge=0, le=LISTEN_SECONDS_AT_MOST)] = 0,
) -> State[Any]:
    """Check out submitted orders, those of a file, or failed ones.

    Args:
        source: A JSONL or CSV file of orders, a local path or `s3://bucket/key`. Its orders are
            submitted first; loading a file twice changes nothing.
        failed_of: The id of an earlier batch's run: only its rejected and compensated orders are
            taken, each as a new attempt. One whose customer is gone stays as it is; the
            report names it.
        chunk_size: How many orders go through a step together.
        concurrency: How many chunks are under way at the same time.
        tolerated_failures: The share of orders, from 0 to 1, that may fail, or be rejected in the
            file; above it the run ends as failed. Orders that are done stay done.
        wait: `pause` keeps the run's process while couriers are sought; `suspend` keeps none.
        line_items: The file has a line for each title: lines that follow each other with one
            orderId are one order's. Left out, each line is an order of its own.
        listen_seconds: How long to go on with the orders that are submitted meanwhile, as they
            come. 0 takes those that are there.

    Returns:
        A completed state with the report; its message gives the counts.

    Raises:
        ValueError: `failed_of` was given with `source` or `listen_seconds`; nothing was done.
        BatchNotFound: `failed_of` is no batch's run; nothing was done.
        UnreadableSource: the file cannot be read, or each of its lines is wrong; nothing of it was
            recorded.
        BatchFailed: more orders failed than are tolerated; the message gives the counts.
    """
    if failed_of:
        if source or listen_seconds:
            other = "source" if source else "listen_seconds"
            raise ValueError(f"failed_of: give either it or {other}; it takes failed orders only")
        require_batch(failed_of)
    run_id = str(runtime.flow_run.id)
    batch, is_new = begin_batch(run_id, source, wait, listen_seconds)
    progress = Progress(batch, takes_submitted=failed_of is None)
    work = _Work(run_id, chunk_size, concurrency, progress)
    with few_collections():
        intake = _load(source, run_id, line_items) if source else None
        # A run that has never begun has asked nothing.
        remark = "" if is_new else _remark_left(run_id, chunk_size)
        work.check_out(work.left_off())
        if batch.listens_until is not None and utc_now() < batch.listens_until:
            listen(run_id, batch.listens_until, chunk_size, progress, work.seconds)
        else:
            work.check_out(_claims(run_id, failed_of, chunk_size))
        # A claim of which the answer was lost in an outage.
        work.check_out(work.left_off())
        _await_and_finish(work, wait, remark)
    progress.show(at_once=True)
    report = report_on(batch, work.seconds, intake, progress)
    report.without_customer = failed_orders_without_customer(failed_of) if failed_of else []
    publish(report, run_id)
    if report.failed_share > tolerated_failures:
        raise BatchFailed(f"{report.message}; more than {tolerated_failures:.0%} failed")
    return Completed(message=report.message, data=report)


def _remark_left(run_id: str, chunk_size: int) -> str:
    """Record unread answers and return the next form's remark."""
    with get_client(sync_client=True) as client:
        said = question(run_id, chunk_size).take_left(client)
    return said.text if said else ""


@dataclass
class _Work:
    """The work of a batch, with the seconds of each step."""

    run_id: str
    chunk_size: int
    concurrency: int
    progress: Progress
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def left_off(self) -> Iterator[list[str]]:
        """Yield the run's orders that have begun and do not wait yet."""
        return pages_of_run(self.run_id, [OrderStatus.STARTED], self.chunk_size)

    def check_out(self, chunks: Iterator[list[str]]) -> None:
        """Execute the steps before the wait for chunks of orders."""
        self._carry(check_out_chunk, chunks)

    def finish(self) -> None:
        """Finish the decided orders."""
        self._carry(finish_chunk, pages_of_run(self.run_id, DECIDED, self.chunk_size))

    def _carry(self, work: ChunkTask, chunks: Iterator[list[str]]) -> None:
        """Execute a task for each chunk while the pool is open."""
        while_open = iter(lambda: None if pool_is_closed() else next(chunks, None), None)
        first = next(while_open, None)
        if first is not None:
            with task_runner(self.concurrency) as runner:
                under_way: deque[Callable[[], Seconds]] = deque()
                for chunk in chain([first], while_open):
                    under_way.append(self._submit(runner, work, chunk))
                    # The next chunk is claimed only when it can be executed at once.
                    if len(under_way) >= self.concurrency:
                        self._add_up(under_way.popleft()())
                while under_way:
                    self._add_up(under_way.popleft()())
        if next(chunks, None) is not None:
            # The pool is paused; the run goes on when it is resumed.
            reschedule_run()

    def _submit(
        self, runner: TaskRunner[Any], work: ChunkTask, chunk: list[str]
    ) -> Callable[[], Seconds]:
        """Submit a chunk and return the call that awaits its end."""
        if settings().batch_task_runner == "dask":
            with asking_cluster():
                # As a list: Dask takes the annotation of `as_one` for a tuple.
                future = runner.submit(work, {"order_ids": chunk})
            return partial(result_on_cluster, self.run_id, chunk, future)
        result: Callable[[], Seconds] = runner.submit(work, {"order_ids": as_one(chunk)}).result
        return result

    def _add_up(self, seconds: Seconds) -> None:
        forget_results()
        touch_batch(self.run_id)
        self.progress.show()
        for step, spent in seconds.items():
            self.seconds[step] += spent


def _await_and_finish(work: _Work, wait: Wait, remark: str) -> None:
    """Finish the decided orders until none waits."""
    run_id = work.run_id
    left_to_recovery = 0
    while True:
        work.finish()
        if waits_until(run_id) is not None:
            if not decided_soon(run_id):
                remark = await_decisions(run_id, wait, work.chunk_size, remark)
            continue
        # Decided since the chunks were read; or they cannot be finished, and recovery does it.
        counts = count_by_status(run_id)
        still_open = sum(counts.get(status, 0) for status in DECIDED)
        if still_open in (0, left_to_recovery):
            return
        left_to_recovery = still_open


def _claims(run_id: str, failed_of: str | None, chunk_size: int) -> Iterator[list[str]]:
    """Claim the chunks one at a time, each just before its execution.

    A chunk that is not full is the last one: orders that come in all the time are for the next
    batch, or this one would never come to finish its own.
    """
    claimed: list[str] | None = None
    while claimed is None or len(claimed) >= chunk_size:
        claimed = (
            claim_failed_orders(run_id, failed_of, chunk_size)
            if failed_of
            else claim_orders(run_id, chunk_size)
        )
        if claimed:
            yield claimed


def _load(source: str, run_id: str, line_items: bool) -> Intake | None:
    """Submit the orders of the file, passing over those already recorded.

    Returns:
        What was found in it; none if it is gone, and an earlier execution had read all of it.

    Raises:
        UnreadableSource: the file cannot be read, and no earlier execution has read it.
    """
    try:
        return load_orders(source, run_id, line_items=line_items)
    except UnreadableSource as error:
        # Orders are claimed when the file is read to its end. Those are on their way.
        if not count_by_status(run_id):
            raise
        logger.warning("the batch goes on with the orders it has: %s", error)
        return None


def task_runner(concurrency: int) -> TaskRunner[Any]:
    """Return the task runner for the chunks, as the settings choose."""
    if settings().batch_task_runner == "dask":
        return dask_runner(concurrency)
    return ThreadPoolTaskRunner(max_workers=concurrency)
