"""Cancellation of an order from the store's database alone.

The order is marked here. The batch that owns it, or recovery, gives back what it took.
"""

from typing import Any

from flows.actions.by_hand import require_cancellable
from orders.listening import listens
from orders.lookup import read_order
from reports.compensations import open_undos
from store.errors import NothingToCancel, OrderCancelled
from store.models import GOING_FORWARD, Order, OrderStatus
from store.saga import fail_orders
from tasks.steps import UNDOS


def preview(order_id: str) -> dict[str, Any]:
    """Return the undos that a cancellation would run.

    Raises:
        OrderNotFound: no order has the id.
        CourierHasOrder, NothingToCancel: it cannot be cancelled.
    """
    order = _cancellable(order_id)
    gives_back = [
        {"undo": UNDOS[undo.step].name, "atStake": undo.at_stake} for undo in open_undos(order_id)
    ]
    return {"orderId": order_id, "status": order.status, "givesBack": gives_back}


def cancel(order_id: str, reason: str) -> None:
    """Cancel an order that no courier has accepted.

    One that is cancelled already stays as it is.

    Args:
        order_id: The order.
        reason: Why; it becomes a part of the order's message.

    Raises:
        OrderNotFound: no order has the id.
        CourierHasOrder, NothingToCancel: it cannot be cancelled; nothing changed.
    """
    if read_order(order_id).error == OrderCancelled.__name__:
        return
    attempt = _cancellable(order_id).attempt
    cancelled = OrderCancelled(f"cancelled by the customer{f': {reason}' if reason else ''}")
    fail_orders([order_id], cancelled, attempts={order_id: attempt})
    order = read_order(order_id)
    if order.attempt != attempt or order.status in GOING_FORWARD:
        # Somebody was faster: a courier, or who asked for another attempt.
        require_cancellable(order, attempt)


def _cancellable(order_id: str) -> Order:
    """Return the order if it may be cancelled from here.

    One that waits in a pause may have an answer that only Prefect knows, and that counts.
    """
    order = read_order(order_id)
    require_cancellable(order)
    if order.status == OrderStatus.WAITING and not listens(order.run_id or ""):
        raise NothingToCancel(
            f"order {order_id} waits for a person, who may have answered in Prefect; the shop "
            f"cancels it with `checkout cancel {order_id}`. Nothing was changed."
        )
    return order
