"""Prefect events about an order, for automations and people."""

from typing import Any

from store.models import Order, OrderStatus


def of_status(order: Order) -> dict[str, Any]:
    """Return the event `store.order.<status>` of an order and its run.

    The order is the resource, its run is related.
    """
    return {
        "event": f"store.order.{OrderStatus(order.status).value.replace('_', '-')}",
        "resource": {
            "prefect.resource.id": f"store.order.{order.id}",
            "prefect.resource.name": order.id,
        },
        "related": (
            [
                {
                    "prefect.resource.id": f"prefect.flow-run.{order.run_id}",
                    "prefect.resource.role": "flow-run",
                }
            ]
            if order.run_id
            else []
        ),
        "payload": {
            "attempt": order.attempt,
            "status": order.status,
            "error": order.error,
            "message": order.message,
            "total_cents": order.total_cents,
            "due_cents": order.due_cents,
            "currency": order.currency,
        },
    }
