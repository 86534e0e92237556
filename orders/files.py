"""The orders of a file, each made of its lines.

An order that a file names in several places is never taken in part, whatever lies in between. So a
file is read twice: for the ids that come again, then for the orders. Either time one order's lines
are held at once, and of each orderId a number: about 100 MB for a million orders.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import IO, Any

from pydantic import ValidationError

from orders.rows import Row, rows
from store.messages import CheckoutOrder
from store.wrong_input import first_problem

LINES_OF_AN_ORDER = 1_000
"""Bounds the memory that one order takes; an order has at most 100 titles."""

_OF_THE_ORDER = ("userId", "redeem", "paymentMethod")
"""What the lines of one order must not contradict each other in."""


@dataclass(frozen=True, slots=True)
class Reject:
    """A rejected line of a file, with its field and reason."""

    line: int
    field: str
    reason: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A file's order with its line numbers, or its lines' rejections."""

    lines: tuple[int, ...]
    order: CheckoutOrder | None = None
    rejects: tuple[Reject, ...] = ()


def read_orders(
    copy: IO[bytes], source: str, *, line_items: bool, keep_alive: Callable[[], None] = lambda: None
) -> Iterator[Entry]:
    """Yield a file's orders with their lines, in the file's order.

    Args:
        copy: The file, as :func:`opened` gives it.
        source: Its name, which says its format.
        line_items: Whether lines that follow each other with one orderId are one order's.
        keep_alive: Called again and again while the file is read for the first time.

    Raises:
        UnreadableSource: the header of a CSV file is wrong.
    """
    again = _ids_that_come_again(_groups(rows(copy, source), line_items), keep_alive)
    first: dict[int, int] = {}
    before: Row | None = None
    groups = iter(_groups(rows(copy, source), line_items))
    group = next(groups, None)
    while group is not None:
        following = next(groups, None)
        own = hash(group[0].id)
        if group[0].id is not None and own in again:
            # Beside the first place the second is named, beside each other one the first.
            line = first.get(own, again[own])
            first.setdefault(own, group[0].number)
            yield _rejected(group, "orderId", _is_elsewhere(line, line_items))
        elif line_items and (unknown := _of_unknown_order(group, before, following)):
            yield _rejected(
                group,
                "orderId",
                f"line {unknown.number} beside it has no orderId that can be read, and may belong "
                "to this order",
            )
        elif line_items and not group[-1].has_end:
            yield _rejected(group, "", "the file ends here without a line end; end it with one")
        else:
            entry = _entry(group)
            if entry.order and not line_items and following and _may_go_on(group[0], following[0]):
                entry = _rejected(group, "orderId", _may_be_further_title(following[0].number))
            yield entry
        before, group = group[-1], following


def _groups(found: Iterable[Row], line_items: bool) -> Iterator[list[Row]]:
    """Yield each order's rows, consecutive ones with the same orderId."""
    for id_, following in groupby(found, key=lambda row: row.id):
        together: list[Row] = []
        for row in following:
            together.append(row)
            # A larger group counts as several, and so as an id that comes again.
            if not line_items or id_ is None or len(together) == LINES_OF_AN_ORDER:
                yield together
                together = []
        if together:
            yield together


def _ids_that_come_again(
    groups: Iterable[list[Row]], keep_alive: Callable[[], None]
) -> dict[int, int]:
    """Return the hashes of repeated ids, each with its second group's line."""
    seen: set[int] = set()
    again: dict[int, int] = {}
    for count, group in enumerate(groups):
        if group[0].id is not None:
            own = hash(group[0].id)
            if own in seen:
                again.setdefault(own, group[0].number)
            seen.add(own)
        if count % 1_000 == 0:
            keep_alive()
    return again


def _is_elsewhere(line: int, line_items: bool) -> str:
    if line_items:
        return f"is in line {line} too; the lines of an order must follow each other"
    return (
        f"is in line {line} too, and each line is an order of its own; where an order has a line "
        "for each title, load the file with line_items (--line-items)"
    )


def _may_go_on(row: Row, below: Row) -> bool:
    """Return whether the row below may continue the order without an id."""
    return (
        row.id is not None
        and below.fields.get("orderId") is None
        and not {"bookId", "items"}.isdisjoint(below.fields)
        and below.fields.get("userId") in (None, row.fields.get("userId"))
    )


def _may_be_further_title(line: int) -> str:
    return (
        f"line {line} below it has no orderId and may belong to this order; give each line its "
        "orderId, and load the file with line_items (--line-items)"
    )


def _of_unknown_order(
    group: list[Row], before: Row | None, following: list[Row] | None
) -> Row | None:
    """Return a neighbouring row without an id, possibly of the same order."""
    if group[0].id is None:
        return None
    beside = [*([before] if before else []), *(following or [])[:1]]
    return next((row for row in beside if row.id is None), None)


def _rejected(group: list[Row], field_: str, reason: str) -> Entry:
    """Reject a group's rows, each for its own fault or this reason."""
    return Entry(
        tuple(row.number for row in group),
        rejects=tuple(Reject(row.number, *(row.wrong or (field_, reason))) for row in group),
    )


def _entry(group: list[Row]) -> Entry:
    """Build one order from its rows, or reject them all."""
    if len(group) == 1:
        (row,) = group
        order = _order(row, row.fields)
        return _rejected(group, "", "") if order is None else Entry((row.number,), order)
    common = _common(group)
    orders = []
    for row in group:
        left_out = {name: v for name, v in common.items() if row.fields.get(name) is None}
        orders.append(_order(row, row.fields | left_out))
    if wrong := next((row for row in group if row.wrong), None):
        return _rejected(group, "orderId", f"line {wrong.number} of the same order is wrong")
    copies: dict[str, int] = {}
    for line in (line for order in orders if order for line in order.lines()):
        copies[line.book_id] = copies.get(line.book_id, 0) + line.quantity
    items = [{"bookId": book, "quantity": count} for book, count in copies.items()]
    try:
        order = CheckoutOrder.model_validate(common | {"items": items})
    except ValidationError as error:
        problem = first_problem(error)
        return _rejected(group, problem.field, problem.reason)
    return Entry(tuple(row.number for row in group), order)


def _common(group: list[Row]) -> dict[str, Any]:
    """Return the fields of the whole order, marking contradictory rows.

    Some exports have them in the first row alone.
    """
    common: dict[str, Any] = {"orderId": group[0].id}
    for name in _OF_THE_ORDER:
        for row in group:
            value = row.fields.get(name)
            if value is not None and common.setdefault(name, value) != value:
                row.wrong = row.wrong or (name, "differs from a line above it of the same order")
    return common


def _order(row: Row, fields: dict[str, Any]) -> CheckoutOrder | None:
    """Return the order of one row, or None with its fault noted."""
    if row.wrong is None:
        try:
            return CheckoutOrder.model_validate(fields)
        except ValidationError as error:
            problem = first_problem(error)
            row.wrong = (problem.field, problem.reason)
    return None
