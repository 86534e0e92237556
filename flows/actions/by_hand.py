"""Manual actions on one order, from cancellation to settlement.

The same functions as everywhere do the work, and the database decides: an act that comes too late
finds the order moved on, and says so.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence

from prefect.client.schemas.objects import FlowRun

from flows.compensation import compensate_tagged, fail_and_compensate
from flows.dispatch import resume
from flows.order.events import report_orders
from flows.recovery import close_runs
from flows.runs.answers_left import record_answers_left
from flows.runs.escalation import escalate
from flows.runs.order_runs import end_run, prefect_client
from orders.batches import batches_among
from orders.decisions import decisions_of
from orders.lookup import read_order
from orders.settlement import settle, why_not_open
from reports.compensations import OpenUndo, open_undos
from store.errors import (
    CompensationFailed,
    CourierHasOrder,
    InvalidDecision,
    NothingToCancel,
    NothingToUndo,
    OrderCancelled,
)
from store.messages import CourierAnswer
from store.models import BEFORE_PIVOT, GOING_FORWARD, UNDOING, Order, OrderStatus
from store.saga import conclude_compensation, held_steps
from tasks.couriers import answer_all

logger = logging.getLogger("store.by_hand")


def require_cancellable(order: Order, attempt: int | None = None) -> None:
    """Raise unless a cancellation would change this attempt of the order.

    Raises:
        CourierHasOrder: a courier has accepted it.
        NothingToCancel: it has ended, is being given back, or is not in ``attempt`` any more.
    """
    if attempt not in (None, order.attempt):
        raise NothingToCancel(
            f"attempt {attempt} of order {order.id} has ended, and somebody has begun another one, "
            f"which is {order.status}. Nothing was changed."
        )
    if order.status in (OrderStatus.DISPATCHING, OrderStatus.DISPATCHED):
        raise CourierHasOrder(
            f"order {order.id} is {order.status}: courier {order.courier_id} has accepted it, and "
            "from then on it only goes forward. Nothing was changed."
        )
    if order.status not in BEFORE_PIVOT:
        raise NothingToCancel(
            f"order {order.id} is {order.status} already ({order.error}: {order.message}). "
            "Nothing was changed."
        )


def cancel_order(order_id: str, attempt: int, reason: str) -> Order:
    """Cancel an order before its pivot, compensate it and end its run.

    Args:
        order_id: The order.
        attempt: The attempt of it that is meant; another one is left alone.
        reason: Why; it becomes a part of the order's message.

    Returns:
        The order as it ended. If it was ended by another hand at this moment, its error says so.

    Raises:
        OrderNotFound: no order has the id.
        CourierHasOrder, NothingToCancel: it cannot be cancelled; nothing changed.
        CompensationFailed: it is cancelled, and an undo failed; it is tried again.
        NoPrefectServer: the compensation needs the server; nothing changed.
    """
    with prefect_client() as client:
        order = read_order(order_id)
        require_cancellable(order, attempt)
        record_answers_left(client, order.run_id, [order_id])
        require_cancellable(read_order(order_id), attempt)
        cancelled = OrderCancelled(f"cancelled by a person{f': {reason}' if reason else ''}")
        not_given_back = None
        try:
            fail_and_compensate({order_id: attempt}, cancelled)
        except CompensationFailed as error:
            not_given_back = error
        order = read_order(order_id)
        if order.attempt != attempt or order.status in GOING_FORWARD:
            # Somebody was faster: a courier, or who asked for another attempt.
            require_cancellable(order, attempt)
        if order.status == OrderStatus.REJECTED:
            report_orders([order_id])  # no compensation has done so, since nothing was taken
        end_run(client, order)
        if not_given_back is not None:
            raise not_given_back
        return order


def answer_orders(order_ids: Sequence[str], answer: CourierAnswer) -> list[Order]:
    """Answer waiting orders as one and wake their runs.

    The decision is in the database before a run is woken. A run that cannot be woken now is
    found by the dispatcher or by recovery.

    Args:
        order_ids: The orders.
        answer: What the person has answered.

    Returns:
        The orders as they stand now.

    Raises:
        OrderNotFound: no order has one of the ids; nothing changed.
        InvalidDecision: an order does not wait, or the answer makes no sense; nothing changed.
        NoPrefectServer: an answer that Prefect has accepted would count; nothing changed.
    """
    with prefect_client() as client:
        of_run: dict[str | None, list[str]] = defaultdict(list)
        for order_id in order_ids:
            of_run[read_order(order_id).run_id].append(order_id)
        # Each asks Prefect, and hundreds of orders may be one batch's.
        for run_id, its in of_run.items():
            record_answers_left(client, run_id, its)
        messages = answer_all(order_ids, answer)
        to_wake = {
            state.run_id: state
            for state in decisions_of(messages).values()
            if state.batch is None or not (state.batch.listens or state.batch.waits)
        }
        for state in to_wake.values():
            resume(client, state)
        return [read_order(order_id) for order_id in order_ids]


def ask_for_form(order_id: str) -> FlowRun:
    """Start a run with a form for a batch's waiting order.

    Args:
        order_id: The order.

    Returns:
        The run, which shows the form within seconds.

    Raises:
        OrderNotFound: no order has the id.
        InvalidDecision: the order does not wait, or has a form already; nothing changed.
        DeploymentNotFound: Prefect has no deployment of the checkout; nothing changed.
        NoPrefectServer: the run cannot be started; nothing changed.
    """
    with prefect_client() as client:
        order = read_order(order_id)
        record_answers_left(client, order.run_id, [order_id])
        order = read_order(order_id)
        if order.status != OrderStatus.WAITING or not batches_among([order.run_id or ""]):
            raise InvalidDecision(
                f"order: {order_id} is {order.status}, and no batch waits with it; "
                f"`checkout show {order_id}` has its run. Nothing was changed."
            )
        run = escalate(order_id)
        if run is None:
            raise InvalidDecision(f"order: {order_id} has moved on; `checkout show` has more")
        # Its batch may have waited for this one alone.
        close_runs(client, {order.run_id})
        return run


def try_undos(order_id: str, step: str | None) -> list[OpenUndo]:
    """Run an order's open undos now, as recovery would later.

    Args:
        order_id: An order that is being given back.
        step: The one step that is to be undone; left out, all that are left.

    Returns:
        What is left to be given back afterwards.

    Raises:
        OrderNotFound: no order has the id.
        NothingToUndo: there is nothing to try; nothing changed.
        CompensationFailed: what was tried has failed again; its error is recorded.
        NoPrefectServer: the compensation needs the server; nothing changed.
    """
    with prefect_client() as client:
        order = read_order(order_id)
        if step is not None and step not in held_steps([order_id]):
            raise NothingToUndo(why_not_open(order_id, step))
        if order.status not in UNDOING:
            raise NothingToUndo(f"order {order_id} is {order.status}; nothing is left to be tried")
        try:
            compensate_tagged([order_id], step)
        except CompensationFailed:
            logger.info("not all of order %s is given back", order_id, extra={"order_id": order_id})
        close_runs(client, {order.run_id})
    left = open_undos(order_id)
    for undo in left:
        if step in (None, undo.step):
            raise CompensationFailed(
                f"{undo.step} of order {order_id} could not be undone: {undo.error}. At stake: "
                f"{undo.at_stake}. Tries: {undo.tries}; recover_orders tries again."
            )
    return left


def settle_undo(order_id: str, step: str, *, by: str, reason: str, put_back: bool) -> Order:
    """Record a failed undo as done by a person.

    The last open undo makes the order compensated.

    Args:
        order_id: The order.
        step: The step whose undo failed.
        by: Who has seen to it.
        reason: What was done.
        put_back: Whether copies or points are to be booked as back, or else as written off.

    Returns:
        The order as it stands now.

    Raises:
        OrderNotFound: no order has the id.
        NothingToUndo: this undo has not failed, or is done; nothing changed.
        NoPrefectServer: the order's run is to be told; nothing changed.
    """
    with prefect_client() as client:
        settle(order_id, step, by=by, reason=reason, put_back=put_back)
        if not held_steps([order_id]):
            conclude_compensation([order_id])
            report_orders([order_id])
        order = read_order(order_id)
        close_runs(client, {order.run_id})
        return order
