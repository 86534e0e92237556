"""The flow ``compensate``, and the hook that runs it after a failure.

The hook is the fast path. It may never run (the machine died) or run twice, so all it knows comes
from the saga log, and an undo that was done is not done again.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prefect import Task, flow, get_client, tags
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import Flow

from flows.batches.bulk import Call, as_task_run
from flows.order.events import report_orders
from flows.runs.answers_left import record_answers_left
from flows.runs.continuation import continue_run
from flows.runs.defects import is_interruption, narrow_down
from flows.runs.names import name_of_undo
from flows.runs.run_states import is_cancelled_by_person
from orders.ownership import orders_of_run
from store.errors import (
    CheckoutFailed,
    CompensationFailed,
    OrderCancelled,
    OrderError,
    PaymentRefused,
    RefusedOrder,
    RunTakenAway,
    first_of,
)
from store.models import OrderStatus
from store.saga import conclude_compensation, fail_orders, held_steps, record_undo_failure
from tasks.steps import UNDOS

logger = logging.getLogger("store.compensation")

GROUP = 1_000
"""Orders that are given back together: a run's parameters are kept by Prefect, within bounds."""

TAGS_AT_MOST = 20
"""Orders by which a run of `compensate` is found: each is a tag that Prefect's UI shows."""

UNDO = {step: undo.task for step, undo in UNDOS.items()}
"""The task that undoes each compensable step, in the order of undoing."""


@flow(name="compensate", flow_run_name=name_of_undo, retries=0, persist_result=False)
def compensate(order_ids: list[str], step: str | None = None) -> dict[str, str]:
    """Refund money, then restore copies and points of failed orders.

    Only what was done is undone, each once, so it may run again at any time. An undo that fails
    does not keep the others from being done; it is recorded and left for the next round.

    Args:
        order_ids: Orders that are to be compensated; others are left alone.
        step: The only step that is undone, where a person wants one tried alone.

    Returns:
        The status of each order: `compensated`.

    Raises:
        CompensationFailed: an undo failed for good; the orders are `compensation_failed`.
    """
    statuses = run_undos(order_ids, step)
    report_orders(statuses)
    failed = sorted(
        id_ for id_, status in statuses.items() if status == OrderStatus.COMPENSATION_FAILED
    )
    if failed:
        raise CompensationFailed(
            f"not everything could be given back for {first_of(failed)}; it is tried again"
        )
    return {id_: str(status) for id_, status in statuses.items()}


def run_undos(
    order_ids: list[str], step: str | None = None, call: Call = as_task_run
) -> dict[str, OrderStatus]:
    """Undo the held steps of failed orders and return their statuses.

    Arguments are as for :func:`compensate`; ``call`` is how an undo is called.
    """
    held = held_steps(order_ids)
    for of_step, undo in UNDO.items():
        if of_step in held and step in (None, of_step):
            _undo(undo, of_step, order_ids, call)
    return conclude_compensation(order_ids)


def _undo(
    undo: Task[[list[str]], list[str]], of_step: str, order_ids: list[str], call: Call
) -> None:
    """Undo a step for a group, recording each failure with its orders."""

    def keep(failed: list[str], error: Exception) -> None:
        if isinstance(error, PaymentRefused) and error.reasons:
            # The others are done; asked for again, a refund would be refused under its next key.
            logger.error("undo %s failed: %s", undo.name, error, extra={"order_ids": failed})
            for order_id, why in error.reasons.items():
                text = f"PaymentRefused: refund of {order_id}: {why}"
                record_undo_failure(of_step, [order_id], text)
            return
        logger.error("undo %s failed", undo.name, exc_info=error, extra={"order_ids": failed})
        record_undo_failure(of_step, failed, f"{type(error).__name__}: {error}")

    narrow_down(lambda group: call(undo, group), order_ids, keep)


def compensate_run(
    flow: Flow[..., Any],  # noqa: ARG001  (the name by which Prefect gives it)
    flow_run: FlowRun,
    state: State[Any],
) -> None:
    """Compensate the ended run's orders before the pivot, as Prefect's hook.

    Orders of other runs are never touched. An interruption (Prefect's server or the database was
    away) is no failure of an order: the run is started again.
    """
    orders = orders_of_run(str(flow_run.id))
    if not orders:
        return
    error = _reason(state)
    with get_client(sync_client=True) as client:
        if error is None:
            continue_run(client, str(flow_run.id), list(orders))
            return
        # An answer that Prefect accepted before the run ended counts.
        record_answers_left(client, str(flow_run.id), orders)
    fail_and_compensate(orders, error)


def fail_and_compensate(orders: Mapping[str, int], error: OrderError) -> None:
    """Mark orders as failed and compensate them, in groups.

    Args:
        orders: The orders, each with the attempt that has failed; another one is left alone.
        error: Why they cannot go on.

    Raises:
        CompensationFailed: not everything could be given back; all groups were tried.
    """
    failed = None
    for group in batched(list(orders), GROUP):
        to_undo = fail_orders(group, error, attempts=orders)
        if to_undo:
            try:
                compensate_tagged(to_undo)
            except CompensationFailed as problem:
                failed = problem
    if failed is not None:
        raise failed


def compensate_tagged(order_ids: list[str], step: str | None = None) -> dict[str, str]:
    """Run :func:`compensate` with its orders as tags, unless too many."""
    tagged = order_ids if len(order_ids) <= TAGS_AT_MOST else []
    with tags(*(f"order:{id_}" for id_ in tagged)):
        return compensate(order_ids, step)


def batched(ids: Sequence[str], size: int) -> Iterator[list[str]]:
    """Yield the ids in groups of at most ``size``."""
    for start in range(0, len(ids), size):
        yield list(ids[start : start + size])


def _reason(state: State[Any]) -> OrderError | None:
    """Return why a run's orders failed, or None after an interruption."""
    if is_cancelled_by_person(state):
        return OrderCancelled("the run was cancelled in Prefect")
    # The engine hands over what the flow raised in a record of its result.
    error: object = getattr(state.data, "result", state.data)
    if isinstance(error, OrderError):
        return error
    if not isinstance(error, BaseException):
        # The flow has raised nothing: it was the server that ended the run, with its pause.
        return None
    # A refusal says nothing about an order that the run owns: another process has begun it.
    if is_interruption(error) or isinstance(error, (RefusedOrder, RunTakenAway)):
        return None
    return CheckoutFailed(state.message or "the run failed without a message")
