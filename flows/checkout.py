"""The flow ``store_checkout``: one order from its input to its receipt.

It may start again from its top at any time, after a crash or by the UI's Retry: every step asks
the saga log first. No flow-level retries: a resumed pause counts as a run, so they would be spent
before they were needed, and they would run after the compensation.
"""

import time

from prefect import flow, runtime
from prefect.settings import get_current_settings

from flows.compensation import compensate_run
from flows.continuation import continue_crashed_run, who_asked
from flows.courier_wait import await_courier
from flows.order_events import emit_statuses, publish_timeline_of_run, tell
from flows.pause import Wait
from flows.work_pool import give_run_back, pool_is_closed
from store.errors import OrderError, OrderInProgress
from store.messages import CheckoutOrder, Receipt
from store.models import ENDED, OrderStatus
from store.settings import settings
from tasks.billing import bill_customer
from tasks.dispatch import dispatch_order, prepare_order
from tasks.inventory import check_inventory
from tasks.orders import accept_order, begin_attempt, read_order
from tasks.points import redeem_points
from tasks.pricing import calculate_total
from tasks.reports import explain, receipt

ON_THIS_MACHINE = get_current_settings().results.local_storage_path
"""Where Prefect keeps the error of a failed run. Were it not named, each run would ask the server
twice whether it has a default storage."""


def order_name() -> str:
    """Name the run by its order: the caller's orderId, else the run's own id."""
    order = runtime.flow_run.parameters.get("order")
    given = order.order_id if isinstance(order, CheckoutOrder) else None
    return given or str(runtime.flow_run.id)


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
def store_checkout(order: CheckoutOrder, wait: Wait = "pause") -> Receipt:
    """Check one order out: reserve, price, redeem, bill, find a courier, dispatch.

    A failure before a courier has accepted gives back all that was taken (see `compensate`).

    Args:
        order: The order, as the original took it: `{"userId": …, "bookId": …, "quantity": 1,
            "redeem": false}`, or with `items` for a cart of several titles. `orderId` is your
            idempotency key.
        wait: `pause` keeps the run's process while a courier is sought; `suspend` keeps none.

    Returns:
        The receipt of the dispatched order.

    Raises:
        RefusedOrder: the order was not accepted; nothing changed.
        OrderError: the order cannot be carried out; the message says what is to be given back.
    """
    run_id = str(runtime.flow_run.id)
    accepted = accept_order(order, run_id)
    if accepted.failed and (asked_by := who_asked(run_id)):
        accepted = begin_attempt(order, run_id, asked_by)
    if not accepted.owned and not await_other_run(accepted.id, run_id):
        return receipt(accepted.id)
    group = [accepted.id]
    try:
        check_inventory(group)
        calculate_total(group)
        if order.redeem:
            redeem_points(group)
        bill_customer(group)
        prepare_order(group)
        await_courier(accepted.id, wait, accepted.started_over)
        dispatch_order(group)
    except OrderError as error:
        tell(group)
        raise explain(accepted.id, error) from error
    emit_statuses(group)
    return receipt(accepted.id)


def await_other_run(order_id: str, run_id: str) -> bool:
    """Wait while another run carries the order out; without a process while the pool is closed.

    Returns:
        Whether the order was handed over to this run; false when it has ended.

    Raises:
        OrderInProgress: neither happened in the time that an order waits for a courier at most.
    """
    deadline = time.monotonic() + settings().courier_timeout_seconds
    while (order := read_order(order_id)).status not in ENDED:
        if order.run_id == run_id:
            return True
        if time.monotonic() >= deadline or order.status == OrderStatus.COMPENSATION_FAILED:
            raise OrderInProgress(
                f"order {order_id} is {order.status} in flow run {order.run_id}; look there"
            )
        if pool_is_closed():
            give_run_back()
        time.sleep(settings().pause_poll_seconds)
    return False
