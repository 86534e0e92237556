"""The work on one chunk of a batch around its wait.

Each order keeps its own outcome. One that fails is compensated, and the others go on.
"""

import logging
import time
from collections import defaultdict

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.batches.bulk import Call, as_task_run
from flows.compensation import run_undos
from flows.order.events import report_orders
from flows.runs.defects import is_interruption, narrow_down
from orders.batches import being_undone
from store.errors import CheckoutFailed, OrderError
from store.models import OrderStatus
from store.saga import fail_orders
from tasks.dispatch import dispatch_order
from tasks.steps import BEFORE_THE_WAIT

logger = logging.getLogger("store.batch")

STEPS = tuple(step.task for step in BEFORE_THE_WAIT)
"""The tasks up to the wait, as in `store_checkout`."""
DECIDED = (OrderStatus.DISPATCHING, OrderStatus.COMPENSATING)
"""What an order is that only has to be finished, forwards or backwards."""


@task(name="check_out_chunk", cache_policy=NO_CACHE)
def check_out_chunk(order_ids: list[str]) -> dict[str, float]:
    """Execute the chunk's steps before the wait and compensate failed orders.

    Returns:
        The seconds that each step took.
    """
    return check_out(order_ids, as_task_run)


@task(name="finish_chunk", cache_policy=NO_CACHE)
def finish_chunk(order_ids: list[str]) -> dict[str, float]:
    """Dispatch the chunk's orders with a courier and compensate the failed ones.

    Returns:
        The seconds that each step took.
    """
    return finish(order_ids, as_task_run)


def check_out(order_ids: list[str], call: Call) -> dict[str, float]:
    """Execute the steps before the wait and compensate failed orders.

    Args:
        order_ids: The chunk.
        call: How a step is called.

    Returns:
        The seconds that each step took.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    done: set[str] = set()

    def go_on(group: list[str]) -> None:
        going_on = group
        for step in STEPS:
            started = time.perf_counter()
            going_on = call(step, going_on)
            seconds[step.name] += time.perf_counter() - started
            if not going_on:
                return
        done.update(going_on)

    narrow_down(go_on, order_ids, _fail_after_defect)
    _compensate([id_ for id_ in order_ids if id_ not in done], seconds, call)
    return dict(seconds)


def finish(order_ids: list[str], call: Call) -> dict[str, float]:
    """Dispatch decided orders and compensate failed ones.

    Arguments and result are as for :func:`check_out`.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    started = time.perf_counter()
    done: set[str] = set()
    narrow_down(
        lambda group: done.update(call(dispatch_order, group)), order_ids, _leave_to_recovery
    )
    seconds[dispatch_order.name] += time.perf_counter() - started
    _compensate([id_ for id_ in order_ids if id_ not in done], seconds, call)
    return dict(seconds)


def _fail_after_defect(order_ids: list[str], error: Exception) -> None:
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
    fail_orders(order_ids, CheckoutFailed(f"{type(error).__name__}: {error}"))


def _compensate(order_ids: list[str], seconds: defaultdict[str, float], call: Call) -> None:
    failing = being_undone(order_ids) if order_ids else []
    if not failing:
        return
    started = time.perf_counter()
    # Not as a run of its own: Prefect's runs end on whole seconds, and a chunk takes less than one.
    statuses = run_undos(failing, call=call)
    left = [id_ for id_, status in statuses.items() if status == OrderStatus.COMPENSATION_FAILED]
    if left:
        logger.error("left to recover_orders: the undos of %d orders", len(left))
        report_orders(left)
    seconds["compensate"] += time.perf_counter() - started


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
