"""An item of the original becomes a row of ours, or is refused with its field and a reason."""

from decimal import Decimal
from typing import Any

import pytest

from seed.original_items import ItemRefused, book, customer


def a_book(**fields: Any) -> dict[str, Any]:
    """A book as boto3 gives it, with changes."""
    good = {"bookId": "b-1", "title": "A", "quantity": Decimal(5), "price": Decimal(20)}
    return good | fields


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"bookId": "o'brien"}, "bookId", "cannot be ordered by"),
        ({"bookId": "x" * 65}, "bookId", "cannot be ordered by"),
        ({"bookId": None}, "bookId", "cannot be ordered by"),
        ({"title": Decimal(7)}, "title", "is no text but a number"),
        ({"title": "a\0b"}, "title", "holds a NUL character"),
        ({"quantity": Decimal(-3)}, "quantity", "is below zero (-3): more copies were sold"),
        ({"quantity": Decimal("2.5")}, "quantity", "is no whole number (2.5)"),
        ({"quantity": "50"}, "quantity", "is no number but text"),
        ({"quantity": True}, "quantity", "is no number but true or false"),
        ({"quantity": Decimal(2**31)}, "quantity", "is more than 2147483647"),
        ({"price": Decimal("19.999")}, "price", "is a part of a cent (19.999)"),
        ({"price": Decimal(-1)}, "price", "is below zero (-1)"),
        ({"price": Decimal("1E+100")}, "price", "is more than 1000000000"),
        ({"price": {"amount": Decimal(20)}}, "price", "is no number but a list, set, map or bin"),
    ],
)
def test_what_cannot_be_taken_is_refused(changes: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(ItemRefused) as refused:
        book(a_book(**changes))
    assert refused.value.field == field
    assert refused.value.reason.startswith(reason)


@pytest.mark.parametrize(
    ("price", "cents"),
    [("20", 20_00), ("19.99", 19_99), ("1E+2", 100_00), ("0.10", 10), ("0", 0), ("20.000", 20_00)],
)
def test_a_decimal_price_becomes_whole_cents(price: str, cents: int) -> None:
    assert book(a_book(price=Decimal(price))).row["price_cents"] == cents


def test_a_customer_that_cannot_be_taken_is_refused() -> None:
    with pytest.raises(ItemRefused, match="userId: cannot be ordered by"):
        customer({"userId": "someone@example.com", "points": Decimal(1)}, "pm_card_visa")
    with pytest.raises(ItemRefused, match="points: is no whole number"):
        customer({"userId": "u-1", "points": Decimal("0.5")}, "pm_card_visa")
