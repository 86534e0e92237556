"""What a front end is told of an order."""

from typing import Any

from reports.receipts import receipt
from store.models import Order, OrderStatus


def order_as_data(order: Order) -> dict[str, Any]:
    """Return an order's status, next step, and receipt or error."""
    return {
        "orderId": order.id,
        "attempt": order.attempt,
        "status": order.status,
        "next": what_next(order),
        "acceptedAt": order.created_at.isoformat(),
        "changedAt": order.updated_at.isoformat(),
        "currency": order.currency,
        "totalCents": order.total_cents,
        "pointsRedeemed": order.points_redeemed,
        "dueCents": order.due_cents,
        "waitsUntil": order.wait_until.isoformat() if order.wait_until else None,
        "error": {"name": order.error, "message": order.message} if order.error else None,
        "receipt": (
            receipt(order.id).model_dump(mode="json")
            if order.status == OrderStatus.DISPATCHED
            else None
        ),
    }


def what_next(order: Order) -> str:
    """Return what happens to an order next, in a sentence."""
    match OrderStatus(order.status):
        case OrderStatus.SUBMITTED:
            return "It is recorded and waits for a batch that carries it."
        case OrderStatus.STARTED:
            return "It is reserved, priced and charged."
        case OrderStatus.WAITING:
            until = f" until {order.wait_until:%Y-%m-%d %H:%M} UTC" if order.wait_until else ""
            return f"It waits for a courier{until}. Without one all of it is given back."
        case OrderStatus.DISPATCHING:
            return "A courier has accepted it, and the parcel is handed over."
        case OrderStatus.DISPATCHED:
            return "Nothing. The courier has the parcel."
        case OrderStatus.COMPENSATING:
            return "It has failed, and what it took is given back."
        case OrderStatus.COMPENSATION_FAILED:
            return "It has failed. Not all is given back yet; that is tried again."
        case OrderStatus.COMPENSATED:
            return "Nothing. It has failed, and all was given back. A new order needs another id."
        case OrderStatus.REJECTED:
            return "Nothing. It has failed before anything was taken. A new order needs another id."
