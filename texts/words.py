"""Amounts, lines, times and records as people read them."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any

from store.messages import money
from store.models import Order, OrderLine
from store.settings import settings

ID_OF_A_LINE = 32
"""Characters of an id that fit on a line of a timeline's heading at 1024 pixels."""


def in_words(result: Mapping[str, Any], currency: str) -> str:
    """Return a record's result as text, without the customer's identity.

    Times are in UTC.
    """
    words = []
    for name, value in result.items():
        label = name.replace("_", " ")
        if name == "user_id":
            continue
        if name.endswith("_cents"):
            words.append(f"{label.removesuffix(' cents')} {money(value, currency)}")
        elif name.endswith("_at"):
            words.append(f"{label} {moment(datetime.fromisoformat(value), UTC)}")
        elif isinstance(value, Mapping):
            copies = ", ".join(f"{count} of {id_}" for id_, count in value.items())
            words.append(f"{label} {copies or 'none'}")
        else:
            words.append(f"{label} {value}")
    return ", ".join(words)


def moment(at: datetime, zone: tzinfo) -> str:
    """Return a moment as in ``27 Nov 2026, 22:40 CET``."""
    local = at.astimezone(zone)
    return f"{local.day} {local:%b %Y, %H:%M %Z}"


def shop_time(at: datetime) -> str:
    """Return a moment in the shop's time zone."""
    return moment(at, settings().zone)


def markdown(text: str) -> str:
    """Return a text as part of one line of Markdown."""
    return re.sub(r"([\\`*\[\]<>|~#]|\b_|_\b)", r"\\\1", " ".join(text.split()))


def shown_id(id_: str) -> str:
    """Return an id, shortened in its middle if no line holds it.

    The UI breaks lines after dashes alone, and its Markdown cannot allow a break elsewhere.
    """
    is_breakable = all(len(part) <= ID_OF_A_LINE for part in id_.split("-"))
    return id_ if is_breakable else f"{id_[:16]}…{id_[-8:]}"


def amount(cents: int | None, order: Order) -> str:
    """Return an amount of an order in its currency."""
    return "not known yet" if cents is None else money(cents, order.currency)


def paid(order: Order) -> str:
    """Return an order's total and how it is paid."""
    return (
        f"Total {amount(order.total_cents, order)}, paid with {order.points_redeemed} points and "
        f"{amount(order.due_cents, order)}."
    )


def section(title: str, *lines: str) -> list[str]:
    """Return the lines of Markdown under a title, none without a text."""
    return [f"#### {title}", "", *lines, ""] if any(lines) else []


def table_of(lines: Sequence[tuple[OrderLine, str]], order: Order) -> list[str]:
    """Return an order's lines and titles as a Markdown table."""
    return [
        "| title | copies | price each |",
        "|---|---:|---:|",
        *(
            f"| {markdown(title)} | {line.quantity} | {amount(line.unit_price_cents, order)} |"
            for line, title in lines
        ),
    ]
