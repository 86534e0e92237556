"""Rows of a CSV or JSON file of orders, with their faults."""

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from pydantic import TypeAdapter, ValidationError

from orders.sources import file_format
from store.errors import UnreadableSource
from store.messages import QUANTITY_RULE, REDEEM_RULE

LINE_BYTES = 64 * 1024
"""A longer line is no order: a cart of 100 titles has about 10 KB."""
ROUNDED_ID = (
    "was rounded by a spreadsheet; make the column text there, enter the ids again, and export it"
)

_HEADER = {"userid": "userId", "bookid": "bookId", "quantity": "quantity", "items": "items"} | {
    "redeem": "redeem",
    "orderid": "orderId",
    "paymentmethod": "paymentMethod",
}
_SNAKE_CASE = {
    "user_id": "userId",
    "book_id": "bookId",
    "order_id": "orderId",
    "payment_method": "paymentMethod",
}
_LINE_ENDS = (b"\n", b"\r")
_BOOLEANS = {"true": True, "false": False}
_ROUNDED = re.compile(r"[0-9]([.,][0-9]+)?[eE]\+[0-9]+")
_ITEMS: TypeAdapter[list[dict[str, Any]]] = TypeAdapter(list[dict[str, Any]])


@dataclass(slots=True)
class Row:
    """A line with its fields by JSON name, and its first fault."""

    number: int
    has_end: bool = True
    fields: dict[str, Any] = field(default_factory=dict)
    wrong: tuple[str, str] | None = None

    @property
    def id(self) -> str | None:
        """Return the orderId as it is written, if there is one."""
        found = self.fields.get("orderId")
        return found if isinstance(found, str) else None


def rows(copy: IO[bytes], source: str) -> Iterator[Row]:
    """Read each line that is not blank, from the file's beginning.

    Args:
        copy: The file, in UTF-8 without a mark.
        source: Its name, which tells its format.

    Raises:
        UnreadableSource: the header of a CSV file is wrong.
    """
    copy.seek(0)
    lines = _lines(copy)
    parse: Callable[[Row, str], bool] = _from_json
    if file_format(source) == "csv":
        _, header = next(lines, (1, b""))
        parse = _csv_parser(header)
    for number, line in lines:
        row = Row(number, line is None or line.endswith(_LINE_ENDS))
        if line is None:
            row.wrong = ("", f"longer than {LINE_BYTES} bytes")
        elif not line.strip():
            continue
        else:
            try:
                if not parse(row, line.decode()):
                    continue
            except UnicodeDecodeError as error:
                row.wrong = ("", f"is not UTF-8 at byte {error.start + 1}; save the file as UTF-8")
        yield row


def _lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Yield the numbered lines, None for one that is too long."""
    number = 0
    while line := stream.readline(LINE_BYTES):
        number += 1
        if len(line) == LINE_BYTES and not line.endswith(b"\n"):
            while (rest := stream.readline(LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield number, None
        else:
            yield number, line


class NamedTwice(ValueError):
    """A JSON object has a name twice."""


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object without repeated names, as a hook of :func:`json.loads`.

    Raises:
        NamedTwice: a name comes twice, and JSON does not say which one counts.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise NamedTwice("names a field twice")
    return found


def _from_json(row: Row, line: str) -> bool:
    """Read a JSON object into the row.

    Its last brace shows its end.
    """
    try:
        read = json.loads(line, object_pairs_hook=once_each)
    except NamedTwice as error:
        row.wrong = ("", str(error))
    except json.JSONDecodeError as error:
        row.wrong = ("", f"is no JSON: {error.msg} at character {error.pos + 1}")
    except (ValueError, RecursionError):
        row.wrong = ("", "is no JSON that can be read")
    else:
        if not isinstance(read, dict):
            row.wrong = ("", "must be a JSON object")
            return True
        for name, value in read.items():
            known = _SNAKE_CASE.get(name) or name
            # Both spellings at once are left as they are, for the order's own check.
            row.fields[name if known in read else known] = value
    return True


def _csv_parser(header: bytes | None) -> Callable[[Row, str], bool]:
    """Return a parser that fills rows and detects empty lines."""
    if header is None or b"\r" in header.rstrip(b"\r\n"):
        raise UnreadableSource(
            "line 1: the lines do not end with line feeds; save the file as CSV UTF-8"
        )
    try:
        names = _filled(next(csv.reader([header.decode().strip()], strict=True), []))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UnreadableSource("line 1: the header cannot be read as CSV in UTF-8") from error
    columns = [_HEADER.get(name.strip().replace("_", "").lower()) for name in names]
    if header and not header.endswith(_LINE_ENDS):
        raise UnreadableSource("line 1: the file ends in its header; it was cut off, or is empty")
    known = [column for column in columns if column is not None]
    if len(known) < len(columns) or not known or len(set(known)) < len(known):
        unknown = [str(at) for at, column in enumerate(columns, 1) if column is None]
        raise UnreadableSource(
            f"line 1: the header must name columns among {', '.join(_HEADER.values())}, each once "
            "and separated by commas"
            + (f"; unknown: column {', '.join(unknown)} of {len(columns)}" if unknown else "")
        )

    def parse(row: Row, line: str) -> bool:
        text = line.rstrip("\r\n")
        try:
            # Line by line: no value has a line break, and an open quote spoils one line.
            cells = _filled(next(csv.reader([text], strict=True)))
        except csv.Error:
            row.wrong = ("", "is no CSV: a quotation mark or a line end is missing")
            return True
        if not cells:
            return False
        if len(cells) > len(known):
            row.wrong = ("", f"{len(cells)} cells; the header has {len(known)}")
        for column, cell in zip(known, map(str.strip, cells), strict=False):
            if cell:
                value, wrong = _value(column, cell)
                row.fields[column] = value
                if wrong and row.wrong is None:
                    row.wrong = (column, wrong)
        if not row.has_end and not _shows_its_end(text, known, cells):
            row.wrong = (
                "",
                "may be cut off: the file ends here without a line end; end it with one",
            )
            if known[len(cells) - 1 :][:1] == ["orderId"]:
                del row.fields["orderId"]
        return True

    return parse


def _filled(cells: list[str]) -> list[str]:
    """Return cells without the empty ones at their end.

    A spreadsheet leaves those out or adds them.
    """
    while cells and not cells[-1].strip():
        cells = cells[:-1]
    return cells


def _shows_its_end(text: str, columns: Sequence[str], cells: Sequence[str]) -> bool:
    """Return whether a line without a line end is certainly complete.

    `1` may be the beginning of `120`, and an empty cell that of anything. A closed quotation is
    whole, and so is `true`.
    """
    return len(cells) >= len(columns) and (
        text.endswith('"') or (columns[-1] == "redeem" and cells[-1].strip().lower() in _BOOLEANS)
    )


def _value(column: str, cell: str) -> tuple[Any, str]:
    """Return a cell's value and its fault, if any."""
    match column:
        case "quantity":
            whole = re.fullmatch(r"[0-9]{1,9}", cell)
            return (int(cell), "") if whole else (None, QUANTITY_RULE)
        case "redeem":
            known = cell.lower() in _BOOLEANS
            return _BOOLEANS.get(cell.lower()), "" if known else REDEEM_RULE
        case "items":
            try:
                return _ITEMS.validate_json(cell), ""
            except ValidationError:
                return None, "must be JSON: a list of bookId and quantity"
        case _:
            rounded = _ROUNDED.fullmatch(cell)
            return cell, ROUNDED_ID if rounded else ""
