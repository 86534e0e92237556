"""Amounts, lines and records as people read them."""

from collections.abc import Mapping, Sequence
from typing import Any

from store.messages import money
from store.models import Order, OrderLine


def in_words(result: Mapping[str, Any], currency: str) -> str:
    """Return a record's result as text, without the customer's identity."""
    words = []
    for name, value in result.items():
        if name == "user_id":
            continue
        if name.endswith("_cents"):
            amount = money(value, currency)
            words.append(f"{name.removesuffix('_cents').replace('_', ' ')} {amount}")
        elif isinstance(value, Mapping):
            copies = ", ".join(f"{count} of {id_}" for id_, count in value.items())
            words.append(f"{name.replace('_', ' ')} {copies or 'none'}")
        else:
            words.append(f"{name.replace('_', ' ')} {value}")
    return ", ".join(words)


def amount(cents: int | None, order: Order) -> str:
    """Return an amount of an order in its currency."""
    return "not known yet" if cents is None else money(cents, order.currency)


def paid(order: Order) -> str:
    """Return an order's total and how it is paid."""
    return (
        f"Total {amount(order.total_cents, order)}, paid with {order.points_redeemed} points and "
        f"{amount(order.due_cents, order)}."
    )


def table_of(lines: Sequence[tuple[OrderLine, str]], order: Order) -> list[str]:
    """Return an order's lines and titles as a Markdown table."""
    return [
        "| title | copies | price each |",
        "|---|---:|---:|",
        *(
            f"| {title} | {line.quantity} | {amount(line.unit_price_cents, order)} |"
            for line, title in lines
        ),
    ]
