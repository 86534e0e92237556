"""The flow ``store_checkout``, from an order's input to its receipt.

It may start again from its top at any time, after a crash or by the UI's Retry: every step asks
the saga log first. No flow-level retries: a resumed pause counts as a run, so they would be spent
before they were needed, and they would run after the compensation.
"""

import logging
import time
from typing import Any

from prefect import State, flow, runtime
from prefect.states import Completed, Crashed
from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError

from flows.compensation import compensate_run
from flows.order.courier_wait import await_courier
from flows.order.events import emit_statuses, form_url, publish_timeline_of_run, report_orders
from flows.runs.continuation import CONTINUATION, continue_crashed_run, who_asked
from flows.runs.defects import is_interruption
from flows.runs.pause import Wait
from flows.runs.results import ON_THIS_MACHINE
from orders.acceptance import AcceptedOrder, accept_order, begin_attempt
from orders.lookup import read_order
from reports.history import ordered_in_words
from reports.receipts import explain, receipt
from store.errors import OrderError
from store.messages import CheckoutOrder, Receipt
from store.models import ENDED
from tasks.billing import bill_customer
from tasks.dispatch import dispatch_order, prepare_order
from tasks.inventory import check_inventory
from tasks.points import redeem_points
from tasks.pricing import calculate_total

logger = logging.getLogger("store.checkout")

TAKEOVER_SECONDS = 60.0
TAKEOVER_POLL_SECONDS = 1.0


def order_name() -> str:
    """Return the flow run's name, by which a person finds its order.

    That is the caller's orderId. Without one it is what was ordered, with the run's own id, which
    is the order's id, at its end.
    """
    order = runtime.flow_run.parameters.get("order")
    given = order.order_id if isinstance(order, CheckoutOrder) else None
    run_id = str(runtime.flow_run.id)
    if given or not isinstance(order, CheckoutOrder):
        return given or run_id
    try:
        return f"{ordered_in_words(order.lines())}, {run_id}"
    except (DBAPIError, ValidationError) as error:
        # `accept` meets the same, and says what becomes of the order.
        logger.warning("the run is named by its id: %s", type(error).__name__)
        return run_id


@flow(
    name="store-checkout",
    flow_run_name=order_name,
    retries=0,
    persist_result=False,
    result_storage=ON_THIS_MACHINE,
    on_completion=[publish_timeline_of_run],
    on_failure=[compensate_run],
    on_cancellation=[compensate_run],
    on_crashed=[continue_crashed_run],
)
def store_checkout(order: CheckoutOrder, wait: Wait = "pause") -> Receipt | State[Any]:
    """Check one order out: reserve, price, redeem, bill, find a courier, dispatch.

    A failure before a courier has accepted gives back all that was taken (see `compensate`).

    Args:
        order: The order: a customer, and either one book with its copies or a cart. Its order id
            is your idempotency key.
        wait: How the run waits for a courier. With pause it keeps its process; with suspend it
            keeps none, and starts over when it is answered.

    Returns:
        The receipt of the dispatched order. An order that was sent before and is still under way
        in another run gives a completed state whose message says where.

    Raises:
        RefusedOrder: the order was not accepted; nothing changed.
        OrderError: the order cannot be carried out; the message says what is to be given back.
    """
    run_id = str(runtime.flow_run.id)
    try:
        accepted = accept(order, run_id, wait)
    except Exception as error:
        if not is_interruption(error):
            raise
        # No order leads to this run yet; recovery finds a crashed run and starts it again.
        return Crashed(message=f"the order could not be recorded: {type(error).__name__}")
    if not accepted.owned and not is_taken_over(accepted.id, run_id):
        return where_it_is(accepted.id)
    group = [accepted.id]
    try:
        check_inventory(group)  # reserves the copies, as well as checking them
        calculate_total(group)
        if order.redeem:
            redeem_points(group)
        bill_customer(group)
        prepare_order(group)
        # The pivot is in `dispatch_orders`: its decision, or a person's, ends this wait. From then
        # on the order only goes forward.
        await_courier(accepted.id, wait, accepted.started_over)
        dispatch_order(group)
    # RunTakenAway passes on purpose: the order is fine, and another process goes on with it.
    except OrderError as error:
        report_orders(group)
        raise explain(accepted.id, error) from error
    emit_statuses(group)
    return receipt(accepted.id)


def accept(order: CheckoutOrder, run_id: str, wait: Wait) -> AcceptedOrder:
    """Record the order for this run, or begin the requested attempt."""
    accepted = accept_order(order, run_id, wait)
    if accepted.failed and (asked_by := who_asked(run_id)):
        return begin_attempt(order, run_id, asked_by, wait)
    return accepted


def is_taken_over(order_id: str, run_id: str) -> bool:
    """Return whether this run replaces one that Prefect cannot restart.

    Such a run may begin a moment before it is made the order's owner.
    """
    deadline = time.monotonic() + TAKEOVER_SECONDS
    while CONTINUATION in runtime.flow_run.tags and time.monotonic() < deadline:
        order = read_order(order_id)
        if order.run_id == run_id:
            return True
        if order.status in ENDED:
            return False
        time.sleep(TAKEOVER_POLL_SECONDS)
    return False


def where_it_is(order_id: str) -> Receipt | State[Any]:
    """Return another run's receipt, or a completed state naming that run.

    A run that brings an order sent before ends at once: it keeps no process and no slot of its
    queue while the order waits.

    Raises:
        OrderError: the order has ended without a dispatch.
    """
    order = read_order(order_id)
    if order.status in ENDED:
        return receipt(order_id)
    return Completed(
        message=f"order {order_id} was sent before and is {order.status}; "
        f"its run is {form_url(order) or order.run_id}"
    )
