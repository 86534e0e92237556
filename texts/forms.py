"""The texts of forms, in Markdown, and the state messages of waits."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from store.models import Courier, Order, OrderLine, OrderStatus
from texts.words import markdown, paid, shop_time, shown_id, table_of

HOW = "To answer, choose Resume in the menu of the run's page."


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
        couriers: The couriers, those with room for the order first.
        taken: What it has taken, in words.
        refused: What was wrong with the last answer; empty if there was none.
    """
    free = [f"`{shown_id(courier.id)}` ({_free(courier)} copies free)" for courier in couriers]
    return "\n".join(
        [
            *([f"**Your answer was refused.** {markdown(refused)}", ""] if refused else []),
            f"Order `{shown_id(order.id)}` waits for a courier until {_until(order)}.",
            "",
            *table_of(lines, order),
            "",
            paid(order),
            "",
            f"Couriers: {', '.join(free) or 'none'}.",
            "",
            "Is there a courier who takes the order? If not, all that it has taken is given back: "
            f"{markdown(', '.join(taken)) or 'nothing'}.",
        ]
    )


def why_it_waits(order: Order, couriers: Sequence[Courier], refused: str) -> str:
    """Return the state message of a waiting order's run, in one line.

    It says until when the order waits, which couriers have room, and how to answer.
    """
    able = [
        f"{shown_id(c.id)} ({_free(c)} copies free)" for c in couriers if _free(c) >= order.copies
    ]
    return " ".join(
        [
            *([f"The last answer was refused: {refused}."] if refused else []),
            f"Order {shown_id(order.id)} waits for a courier until {_until(order)}.",
            f"Couriers with room for its {order.copies} copies: {', '.join(able) or 'none'}.",
            HOW,
        ]
    )


def _free(courier: Courier) -> int:
    return courier.capacity_copies - courier.assigned_copies


def _until(order: Order) -> str:
    return shop_time(order.wait_until) if order.wait_until else "it is answered"


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
            _of_waiting(counts, until) if until else "",
            "",
            "| status | orders |",
            "|---|---:|",
            *(f"| {status} | {count} |" for status, count in sorted(counts.items())),
            "",
            "The couriers are sought by `dispatch_orders`, and the batch goes on by itself. Your "
            "answer is about all orders that still wait; those that are decided stay so.",
        ]
    )


def why_batch_waits(counts: Mapping[str, int], until: datetime | None, remark: str) -> str:
    """Return the state message of a waiting batch's run, in one line."""
    return " ".join(
        [
            *([remark.replace("**", "")] if remark else []),
            _of_waiting(counts, until),
            "The dispatcher answers by itself.",
            HOW,
        ]
    )


def _of_waiting(counts: Mapping[str, int], until: datetime | None) -> str:
    waiting = counts.get(OrderStatus.WAITING, 0)
    end = f", at most until {shop_time(until)}" if until else ""
    return f"{waiting} orders of this batch wait for a courier{end}."


def where_to_answer(form_url: str, *, in_batch: bool) -> str:
    """Return where a person answers for a waiting order."""
    if in_batch:
        return (
            "An answer counts for all orders of its batch that still wait; this one alone is ended "
            f"by `checkout cancel`. The batch's form, with the button “Resume”: {form_url}"
        )
    return f"Answer here, with the button “Resume”: {form_url}"
