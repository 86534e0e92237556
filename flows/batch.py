"""The flow ``batch_checkout``, which carries many orders in one run.

Its orders go through the same steps as a single one.

The run claims submitted orders a chunk at a time and carries several chunks at once. Each order
keeps its own saga records, outcome and error, so one order's bad luck never stops the others. It
may start again from its top at any time: the orders that it owns are found in the database.
"""

import logging
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import chain
from typing import Annotated, Any

from prefect import State, flow, get_client, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic import Field

from flows.batches.bulk import as_one, few_collections, forget_results
from flows.batches.cluster import asking_cluster, dask_runner, result_on_cluster
from flows.batches.defects import is_interruption, narrow_down
from flows.batches.limits import (
    CHUNK_SIZE,
    CHUNK_SIZE_AT_MOST,
    CONCURRENCY,
    CONCURRENCY_AT_MOST,
    TOLERATED_FAILURES,
)
from flows.batches.report import Progress, publish, report_on
from flows.batches.wait import await_decisions, question
from flows.compensation import compensate_run, give_back
from flows.order.events import tell
from flows.runs.continuation import continue_crashed_run
from flows.runs.pause import Wait
from flows.runs.work_pool import give_run_back, pool_is_closed
from orders.acceptance import claim_failed_orders, failed_orders_without_customer
from orders.batches import (
    begin_batch,
    count_by_status,
    giving_back,
    pages_of_run,
    require_batch,
    touch_batch,
    waits_until,
)
from orders.intake import Intake, claim_orders, load_orders
from store.errors import BatchFailed, CheckoutFailed, OrderError, UnreadableSource
from store.models import OrderStatus
from store.saga import abandon
from store.settings import settings
from tasks.dispatch import dispatch_order
from tasks.steps import BEFORE_THE_WAIT

logger = logging.getLogger("store.batch")

STEPS = tuple(step.task for step in BEFORE_THE_WAIT)
"""The tasks up to the wait, as in `store_checkout`."""
DECIDED = (OrderStatus.DISPATCHING, OrderStatus.COMPENSATING)
"""What an order is that only has to be finished, forwards or backwards."""


@flow(
    name="batch-checkout",
    retries=0,
    persist_result=False,
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
        tolerated_failures: The share of orders, from 0 to 1, that may fail; above it the run ends
            as failed. Orders that are done stay done.
        wait: `pause` keeps the run's process while couriers are sought; `suspend` keeps none.
        line_items: The file has a line for each title: lines that follow each other with one
            orderId are one order's. Left out, each line is an order of its own.

    Returns:
        A completed state with the report; its message gives the counts.

    Raises:
        ValueError: both `source` and `failed_of` were given; nothing was done.
        BatchNotFound: `failed_of` is no batch's run; nothing was done.
        UnreadableSource: the file cannot be read, or each of its lines is wrong; nothing of it was
            recorded.
        BatchFailed: more orders failed than are tolerated; the message gives the counts.
    """
    if source and failed_of:
        raise ValueError("failed_of: give either it or source; it takes failed orders only")
    if failed_of:
        require_batch(failed_of)
    run_id = str(runtime.flow_run.id)
    batch = begin_batch(run_id, source, wait)
    progress = Progress(run_id, failed_of is None, batch.started_at)
    seconds: defaultdict[str, float] = defaultdict(float)

    def carry(work: Any, chunks: Iterator[list[str]]) -> None:
        for step, spent in _carry(run_id, work, _while_open(chunks), concurrency, progress):
            seconds[step] += spent
        if next(chunks, None) is not None:
            give_run_back()

    with few_collections():
        intake = _load(source, run_id, line_items) if source else None
        with get_client(sync_client=True) as client:
            said = question(run_id, chunk_size).take_left(client)
        remark = said.text if said else ""
        left_off = pages_of_run(run_id, [OrderStatus.STARTED], chunk_size)
        carry(check_out_chunk, chain(left_off, _claims(run_id, failed_of, chunk_size)))
        # A claim of which the answer was lost in an outage.
        carry(check_out_chunk, pages_of_run(run_id, [OrderStatus.STARTED], chunk_size))
        left_to_recovery = 0
        while True:
            carry(
                finish_chunk,
                pages_of_run(run_id, DECIDED, chunk_size),
            )
            if waits_until(run_id) is not None:
                remark = await_decisions(run_id, wait, chunk_size, remark)
                continue
            # Decided since the chunks were read; or they cannot be finished, and recovery does it.
            counts = count_by_status(run_id)
            still_open = sum(counts.get(status, 0) for status in DECIDED)
            if still_open in (0, left_to_recovery):
                break
            left_to_recovery = still_open
    progress.show(at_once=True)
    report = report_on(batch, seconds, intake, progress)
    report.without_customer = failed_orders_without_customer(failed_of) if failed_of else []
    publish(report, run_id)
    if report.failed_share > tolerated_failures:
        raise BatchFailed(f"{report.message}; more than {tolerated_failures:.0%} failed")
    return Completed(message=report.message, data=report)


def _while_open(chunks: Iterator[list[str]]) -> Iterator[list[str]]:
    """Yield the chunks until the pool is paused or none is left."""
    while not pool_is_closed() and (chunk := next(chunks, None)) is not None:
        yield chunk


def _claims(run_id: str, failed_of: str | None, chunk_size: int) -> Iterator[list[str]]:
    """Claim the chunks one at a time, each just before its execution."""
    while claimed := (
        claim_failed_orders(run_id, failed_of, chunk_size)
        if failed_of
        else claim_orders(run_id, chunk_size)
    ):
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


def _carry(
    run_id: str,
    work: Any,
    chunks: Iterable[list[str]],
    concurrency: int,
    progress: Progress,
) -> Iterator[tuple[str, float]]:
    """Execute chunks concurrently and yield the seconds of each step."""
    chunks = iter(chunks)
    chunk = next(chunks, None)
    if chunk is None:
        return
    on_cluster = settings().batch_task_runner == "dask"
    with task_runner(concurrency) as runner:
        under_way: deque[tuple[list[str], Any]] = deque()

        def finished() -> Iterable[tuple[str, float]]:
            order_ids, future = under_way.popleft()
            taken: dict[str, float] = (
                result_on_cluster(run_id, order_ids, future) if on_cluster else future.result()
            )
            forget_results()
            touch_batch(run_id)
            progress.show()
            return taken.items()

        while chunk is not None:
            with asking_cluster() if on_cluster else nullcontext():
                under_way.append((chunk, runner.submit(work, {"order_ids": chunk})))
            # Orders are claimed only when there is somebody to carry them.
            if len(under_way) >= concurrency:
                yield from finished()
            chunk = next(chunks, None)
        while under_way:
            yield from finished()


@task(name="check_out_chunk", cache_policy=NO_CACHE)
def check_out_chunk(order_ids: list[str]) -> dict[str, float]:
    """Execute the chunk's steps before the wait and compensate failed orders.

    Returns:
        The seconds that each step took.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    narrow_down(lambda group: _check_out(group, seconds), order_ids, _abandon)
    _compensate(order_ids, seconds)
    return dict(seconds)


def _check_out(order_ids: list[str], seconds: defaultdict[str, float]) -> None:
    """Do the steps up to the wait for a group.

    Raises:
        OrderError: no order of the group goes on; each has its own error in its record.
    """
    going_on = order_ids
    for step in STEPS:
        started = time.perf_counter()
        going_on = step(as_one(going_on))
        seconds[step.name] += time.perf_counter() - started
        if not going_on:
            return


def _abandon(order_ids: list[str], error: Exception) -> None:
    """End orders after a defect, or raise an outage again."""
    if isinstance(error, OrderError):
        return
    if is_interruption(error):
        raise error
    logger.error(
        "a step failed for %d orders",
        len(order_ids),
        exc_info=error,
        extra={"order_ids": order_ids},
    )
    abandon(order_ids, CheckoutFailed(f"{type(error).__name__}: {error}"))


def _compensate(order_ids: list[str], seconds: defaultdict[str, float]) -> None:
    failing = giving_back(order_ids)
    if not failing:
        return
    started = time.perf_counter()
    # Not as a run of its own: Prefect's runs end on whole seconds, and a chunk takes less than one.
    statuses = give_back(failing)
    left = [id_ for id_, status in statuses.items() if status == OrderStatus.COMPENSATION_FAILED]
    if left:
        logger.error("left to recover_orders: the undos of %d orders", len(left))
        tell(left)
    seconds["compensate"] += time.perf_counter() - started


@task(name="finish_chunk", cache_policy=NO_CACHE)
def finish_chunk(order_ids: list[str]) -> dict[str, float]:
    """Dispatch the chunk's orders with a courier and compensate the failed ones.

    Returns:
        The seconds that each step took.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    started = time.perf_counter()
    narrow_down(lambda group: dispatch_order(as_one(group)), order_ids, _leave_to_recovery)
    seconds[dispatch_order.name] += time.perf_counter() - started
    _compensate(order_ids, seconds)
    return dict(seconds)


def _leave_to_recovery(order_ids: list[str], error: Exception) -> None:
    """Log that orders are not handed over, and go on.

    Couriers have accepted these orders. Neither may one of them end the batch, on whose run others
    wait, nor may a topic that refuses: it says which notices it refuses, and the others' orders are
    dispatched.
    """
    if isinstance(error, OrderError):
        return  # none of the group is dispatched; each has its own error in its record
    logger.error(
        "left to recover_orders: %d orders could not be handed over",
        len(order_ids),
        exc_info=error,
        extra={"order_ids": order_ids},
    )
