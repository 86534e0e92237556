"""The texts above the fields of a form, in Markdown."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from store.models import Courier, Order, OrderLine, OrderStatus
from texts.words import paid, table_of


def of_order(
    order: Order,
    lines: Sequence[tuple[OrderLine, str]],
    couriers: Sequence[Courier],
    taken: Sequence[str],
    refused: str,
) -> str:
    """Return the text of a waiting order's form.

    Args:
        order: The order.
        lines: Its lines, each with its title.
        couriers: The couriers there are.
        taken: What it has taken, in words.
        refused: What was wrong with the last answer; empty if there was none.
    """
    free = [
        f"`{courier.id}` ({courier.capacity_copies - courier.assigned_copies} copies free)"
        for courier in couriers
    ]
    return "\n".join(
        [
            *([f"**Your answer was refused.** {refused}", ""] if refused else []),
            f"Order `{order.id}` waits for a courier until {order.wait_until:%Y-%m-%d %H:%M} UTC.",
            "",
            *table_of(lines, order),
            "",
            paid(order),
            "",
            f"Couriers: {', '.join(free) or 'none'}.",
            "",
            "Is there a courier who takes the order? If not, all that it has taken is given back: "
            f"{', '.join(taken) or 'nothing'}.",
        ]
    )


def of_batch(counts: Mapping[str, int], until: datetime | None, remark: str) -> str:
    """Return the text of a waiting batch's form.

    Args:
        counts: How many of its orders have each status.
        until: When the wait of its last order ends; none if none waits any more.
        remark: What is to be said of the last answer; empty if nothing is.
    """
    return "\n".join(
        [
            *([remark, ""] if remark else []),
            f"{counts.get(OrderStatus.WAITING, 0)} orders of this batch wait for a courier, at "
            f"most until {until:%Y-%m-%d %H:%M} UTC."
            if until
            else "",
            "",
            "| status | orders |",
            "|---|---:|",
            *(f"| {status} | {count} |" for status, count in sorted(counts.items())),
            "",
            "The couriers are sought by `dispatch_orders`, and the batch goes on by itself. Your "
            "answer is about all orders that still wait; those that are decided stay so.",
        ]
    )


def where_to_answer(form_url: str, *, in_batch: bool) -> str:
    """Return where a person answers for a waiting order."""
    if in_batch:
        return (
            "An answer counts for all orders of its batch that still wait; this one alone is ended "
            f"by `checkout cancel`. The batch's form, with the button “Resume”: {form_url}"
        )
    return f"Answer here, with the button “Resume”: {form_url}"
