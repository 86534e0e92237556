"""The flow ``store_checkout``: one order from its input to its receipt.

It may start again from its top at any time, after a crash or by the UI's Retry: every step asks
the saga log first. No flow-level retries: a resumed pause counts as a run, so they would be spent
before they were needed, and they would run after the compensation.
"""

import time

from prefect import flow, runtime

from flows.compensation import compensate_run
from flows.courier_wait import await_courier
from store.errors import OrderError, OrderInProgress
from store.messages import CheckoutOrder, Receipt
from store.models import ENDED, OrderStatus
from store.settings import settings
from tasks.billing import bill_customer
from tasks.dispatch import dispatch_order, prepare_order
from tasks.inventory import check_inventory
from tasks.orders import accept_order, explain, read_order, receipt
from tasks.points import redeem_points
from tasks.pricing import calculate_total


def order_name() -> str:
    """Name the run by its order: the caller's orderId, else the run's own id."""
    order = runtime.flow_run.parameters.get("order")
    given = order.order_id if isinstance(order, CheckoutOrder) else None
    return given or str(runtime.flow_run.id)


@flow(
    name="store-checkout",
    flow_run_name=order_name,
    retries=0,
    on_failure=[compensate_run],
    on_cancellation=[compensate_run],
)
def store_checkout(order: CheckoutOrder) -> Receipt:
    """Check one order out: reserve, price, redeem, bill, find a courier, dispatch.

    A failure before a courier has accepted gives back all that was taken (see `compensate`).

    Args:
        order: The order, as the original took it: `{"userId": …, "bookId": …, "quantity": 1,
            "redeem": false}`, or with `items` for a cart of several titles. `orderId` is your
            idempotency key.

    Returns:
        The receipt of the dispatched order.

    Raises:
        RefusedOrder: the order was not accepted; nothing changed.
        OrderError: the order cannot be carried out; the message says what is given back.
    """
    accepted = accept_order(order, str(runtime.flow_run.id))
    if not accepted.owned:
        return join(accepted.id)
    group = [accepted.id]
    try:
        check_inventory(group)
        calculate_total(group)
        if order.redeem:
            redeem_points(group)
        bill_customer(group)
        prepare_order(group)
        await_courier(accepted.id)
        dispatch_order(group)
    except OrderError as error:
        raise explain(accepted.id, error) from error
    return receipt(accepted.id)


def join(order_id: str) -> Receipt:
    """Wait for the end of an order that another run carries out, and return its receipt.

    Raises:
        OrderError: the order ended otherwise; its reason.
        OrderInProgress: it has not ended in the time that an order waits for a courier at most.
    """
    deadline = time.monotonic() + settings().courier_timeout_seconds
    while True:
        order = read_order(order_id)
        if order.status in ENDED:
            return receipt(order_id)
        if time.monotonic() >= deadline or order.status == OrderStatus.COMPENSATION_FAILED:
            raise OrderInProgress(
                f"order {order_id} is {order.status} in flow run {order.run_id}; look there"
            )
        time.sleep(settings().pause_poll_seconds)
