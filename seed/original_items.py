"""Conversion of the original's DynamoDB items to books and customers.

The original writes what it is given: `price` and `points` in whole units of the currency, any of
them may be missing, and `quantity` falls below zero where it has sold a copy twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pydantic import TypeAdapter, ValidationError

from store.messages import Id

CENTS_PER_UNIT = 100
WHOLE_AT_MOST = 2**31 - 1
"""Copies and points are kept in columns of this size."""
PRICE_AT_MOST_CENTS = 10**11
"""The total of the largest order, 100 titles of 100,000 copies, still fits its column."""

_ID: TypeAdapter[str] = TypeAdapter(Id)


class ItemRefused(ValueError):
    """An item is refused because of a field."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Taken:
    """An item as a row, with its missing and its unknown fields.

    ``row`` is what a second import brings up to date; ``only_new`` is put with a new row alone.
    """

    row: dict[str, Any]
    only_new: dict[str, Any]
    missing: tuple[str, ...]
    left_out: tuple[str, ...]


def book(item: Mapping[str, Any]) -> Taken:
    """Return an item of the book table as a book.

    Without a title the id stands for it, without a price it is not sold, without a quantity there
    is no copy of it.

    Raises:
        ItemRefused: a field holds what cannot be taken.
    """
    fields = _Fields(item)
    id_ = fields.id("bookId")
    title = fields.text("title")
    price_cents = fields.whole("price", PRICE_AT_MOST_CENTS, per_unit=CENTS_PER_UNIT)
    quantity = fields.whole("quantity", WHOLE_AT_MOST) or 0
    return fields.taken(
        {
            "id": id_,
            "title": title or id_,
            "price_cents": price_cents,
            "quantity": quantity,
            "initial_quantity": quantity,
        }
    )


def customer(item: Mapping[str, Any], payment_method: str) -> Taken:
    """Return an item of the user table as a customer.

    Without a name the customer has an empty one, without points there are none to redeem.

    Args:
        item: The item.
        payment_method: What a new customer pays with; the original knows none.

    Raises:
        ItemRefused: a field holds what cannot be taken.
    """
    fields = _Fields(item)
    id_ = fields.id("userId")
    name = fields.text("name")
    points = fields.whole("points", WHOLE_AT_MOST) or 0
    return fields.taken(
        {"id": id_, "name": name, "points": points, "initial_points": points},
        payment_method=payment_method,
    )


class _Fields:
    """The fields of an item, with a note of the missing ones."""

    def __init__(self, item: Mapping[str, Any]) -> None:
        self._item = item
        self._asked: list[str] = []
        self._missing: list[str] = []

    def id(self, name: str) -> str:
        value = self._value(name)
        try:
            return _ID.validate_python(value, strict=True)
        except ValidationError:
            reason = "cannot be ordered by: an id has 1 to 64 letters, digits, dots, dashes"
            raise ItemRefused(name, f"{reason} and underscores") from None

    def text(self, name: str) -> str:
        value = self._value(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise ItemRefused(name, f"is no text but {_kind(value)}")
        if "\0" in value:
            raise ItemRefused(name, "holds a NUL character, which the database does not keep")
        return value

    def whole(self, name: str, at_most: int, per_unit: int = 1) -> int | None:
        value = self._value(name)
        if value is None:
            return None
        if not isinstance(value, Decimal):
            raise ItemRefused(name, f"is no number but {_kind(value)}")
        if value < 0:
            reason = f"is below zero ({value})"
            if name == "quantity":
                reason += ": more copies were sold than there were; correct these orders first"
            raise ItemRefused(name, reason)
        if value * per_unit > at_most:
            raise ItemRefused(name, f"is more than {Decimal(at_most) / per_unit:f}")
        if value * per_unit % 1:
            what = "a part of a cent" if per_unit > 1 else "no whole number"
            raise ItemRefused(name, f"is {what} ({value})")
        return int(value * per_unit)

    def taken(self, row: dict[str, Any], **only_new: Any) -> Taken:
        left_out = sorted(set(self._item) - set(self._asked))
        return Taken(row, only_new, tuple(self._missing), tuple(left_out))

    def _value(self, name: str) -> Any:
        self._asked.append(name)
        value = self._item.get(name)
        if value is None:
            self._missing.append(name)
        return value


def _kind(value: object) -> str:
    return {str: "text", Decimal: "a number", bool: "true or false"}.get(
        type(value), "a list, set, map or binary"
    )
