"""The notices to the shop's topic, one function each."""

from collections.abc import Sequence
from datetime import datetime

from store.errors import and_more
from store.messages import money
from store.models import Order
from store.notifications import Notice
from store.saga_log import SagaOrder
from texts.words import shop_time


def dispatched(order: SagaOrder, lines: Sequence[str]) -> Notice:
    """Return the notice of a dispatched order with its lines."""
    return Notice(
        key=f"{order.id}:{order.attempt}:dispatched",
        order_id=order.id,
        subject=f"Order {order.id} is on its way",
        body="\n".join(
            [
                f"Order {order.id} was handed over to courier {order.courier_id}.",
                "",
                *lines,
                "",
                f"Total: {money(order.total_cents or 0, order.currency)}",
                f"Paid with points: {order.points_redeemed}",
                f"Charged: {money(order.due_cents or 0, order.currency)}",
            ]
        ),
        data={
            "event": "dispatched",
            "orderId": order.id,
            "attempt": order.attempt,
            "courier": order.courier_id,
            "copies": order.copies,
            "totalCents": order.total_cents,
            "pointsRedeemed": order.points_redeemed,
            "chargedCents": order.due_cents,
            "currency": order.currency,
        },
    )


def queue_refuses(order: SagaOrder, count: int, reason: str, now: datetime) -> Notice:
    """Return the notice that the queue refuses messages of ``count`` orders."""
    return Notice(
        # Another outage may begin with the same order.
        key=f"{order.id}:{order.attempt}:queue-refuses:{now:%Y%m%dT%H%M%S}",
        order_id="",
        subject="The order queue does not take messages",
        body="\n".join(
            [
                f"The queue did not take the messages of {count} orders, order {order.id} first:",
                reason,
                "",
                "The orders wait, as do those that come after them. recover_orders sends their "
                "messages again; an order is refunded only when its own wait ends.",
                "See docs/aws.md for what to do about each refusal, and `checkout doctor`.",
            ]
        ),
        data={"event": "queue-refuses", "orderId": order.id, "count": count},
    )


def waiting(order: Order, where: str, form_url: str) -> Notice:
    """Return the notice that an order waits for a courier."""
    return _of_wait(order, where, form_url, "waiting", "waits for a courier")


def reminder(order: Order, where: str, form_url: str) -> Notice:
    """Return the notice that an order's wait is nearly over."""
    return _of_wait(order, where, form_url, "reminder", "still waits for a courier")


def _of_wait(order: Order, where: str, form_url: str, kind: str, what: str) -> Notice:
    return Notice(
        key=f"{order.id}:{order.attempt}:{kind}",
        order_id=order.id,
        subject=f"Order {order.id} {what}",
        body="\n".join(
            [
                f"Order {order.id} ({order.copies} copies) {what}.",
                f"Without an answer it is refunded at {shop_time(order.wait_until)}."
                if order.wait_until
                else "",
                "",
                where,
            ]
        ),
        data={
            "event": kind,
            "orderId": order.id,
            "attempt": order.attempt,
            "copies": order.copies,
            "waitUntil": order.wait_until.isoformat() if order.wait_until else None,
            "formUrl": form_url,
        },
    )


def compensation_failed(order: Order, failed: Sequence[str]) -> Notice:
    """Return the notice of an order's failed undos."""
    return Notice(
        key=f"{order.id}:{order.attempt}:compensation-failed",
        order_id=order.id,
        subject=f"Order {order.id}: not everything could be given back",
        body="\n".join(
            [
                f"Attempt {order.attempt} of order {order.id} failed ({order.error}), "
                "and so did its compensation.",
                "",
                *failed,
                "",
                "It is tried again by recover_orders, with growing delays.",
            ]
        ),
        data={
            "event": "compensation-failed",
            "orderId": order.id,
            "attempt": order.attempt,
            "failed": list(failed),
        },
    )


def books_off(findings: Sequence[str], count: int, run_id: str) -> Notice:
    """Return the notice of an audit's findings, the first of ``count``."""
    return Notice(
        key=f"audit:{run_id}",
        order_id="",
        subject=f"The books are off: {count} findings",
        body="\n".join(
            [
                *findings,
                *and_more(count - len(findings)),
                "",
                "See docs/runbook.md, and `checkout audit`.",
            ]
        ),
        data={"event": "books-off", "runId": run_id, "count": count},
    )
