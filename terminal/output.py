"""Output of the commands, as tables, JSON or errors.

Answers go to standard output, the rest to standard error.
"""

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from typing import Annotated, TypeVar

from cyclopts import CycloptsError, Parameter
from cyclopts.validators import Number
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from terminal.numbers import WholeNumber

T = TypeVar("T")

AsJson = Annotated[
    bool, Parameter(name="--json", negative="", help="Print JSON, for programs, not a table.")
]
"""The option that every command which prints an answer has."""

Limit = Annotated[WholeNumber, Parameter(name=["--limit", "-n"], validator=Number(gte=1))]
"""The option of the commands that list."""

Wide = Annotated[
    bool, Parameter(negative="", help="Print every column in full, whatever the terminal's width.")
]
"""The option of the commands that print a table too large for some terminals."""

Columns = Annotated[str | None, Parameter(help="Print only these columns, separated by commas.")]
"""The option of the commands with a table of many columns."""

REFUSED = 1
"""The exit status of what was refused."""
_WIDTH_WITHOUT_TERMINAL = 1_000_000
"""Wider than any line: what reads a file or a pipe wants each row of a table in one."""
_LEAST_TEXT = 24
"""Characters of a text that are worth its column."""
_OF_A_COLUMN, _OF_A_TABLE = 3, 1
"""Characters that a column's and a table's border take."""


class _Terminal(Console):
    def on_broken_pipe(self) -> None:
        """Raise what any other write raises, where rich would exit with 1."""
        raise BrokenPipeError


def terminal(*, stderr: bool = False) -> Console:
    """Return a console that prints what it is given as it is.

    Nothing is taken as markup or emoji, since most of it is data, and no line is wrapped, since a
    link or a remedy is to be copied. It is made when asked for, so that a redirected stream counts.
    """
    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return _Terminal(
        stderr=stderr,
        markup=False,
        emoji=False,
        highlight=False,
        soft_wrap=True,
        width=None if is_terminal else _WIDTH_WITHOUT_TERMINAL,
    )


def complain(message: str, status: int = REFUSED) -> int:
    """Print an error and return the exit status."""
    terminal(stderr=True).print(message, style="red")
    return status


def print_json(value: object) -> None:
    """Print one JSON document, in ISO 8601 where it has a time."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=as_json_text) + "\n")


def print_answer(data: object, *lines: str, as_json: bool) -> int:
    """Print an answer as JSON or as lines, and return 0.

    Args:
        data: The answer for programs.
        lines: The answer for people; an empty line is left out.
        as_json: Which of them is asked for.
    """
    if as_json:
        print_json(data)
    else:
        for line in filter(None, lines):
            terminal().print(line)
    return 0


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    empty: str,
    text: str | None = None,
    expendable: Sequence[str] = (),
    only: str | None = None,
    wide: bool = False,
) -> None:
    """Print rows under their columns, numbers to the right.

    No cell is broken. In a terminal that is too narrow the expendable columns are left out, then
    the text is cut short; a line on standard error names both. A pipe gets every column in full.

    Args:
        title: What the rows are.
        columns: Their names.
        rows: Their cells.
        empty: What is printed where there is no row.
        text: The column with sentences, which may be cut.
        expendable: The columns that a narrow terminal leaves out, the first one first.
        only: The columns that were asked for, separated by commas.
        wide: Whether every column is printed in full in any terminal.

    Raises:
        CycloptsError: ``only`` names a column that the table has not.
    """
    shown = _asked_for(columns, only)
    found = [list(row) for row in rows]
    if not found:
        terminal().print(empty)
        return
    cells = {
        name: [_as_text(row[at]) for row in found]
        for at, name in enumerate(columns)
        if name in shown
    }
    widths = {name: max(map(cell_len, (name, *texts))) for name, texts in cells.items()}
    console = terminal()
    left_out: list[str] = []
    if not wide and only is None:
        left_out = _left_out(widths, expendable, text, console.width)
        shown = [name for name in shown if name not in left_out]
    of_shown = {name: widths[name] for name in shown}
    cut_to = None if wide else _cut_to(of_shown, text, console.width)
    table = Table(title=title)
    for name in shown:
        at = columns.index(name)
        is_number = all(isinstance(row[at], int | float | Decimal | None) for row in found)
        is_cut = name == text and cut_to is not None
        table.add_column(
            name,
            justify="right" if is_number else "left",
            no_wrap=True,
            min_width=None if is_cut else widths[name],
            max_width=cut_to if is_cut else None,
            # With "ignore" rich would leave a number at the left.
            overflow="ellipsis",
        )
    for row in zip(*(cells[name] for name in shown), strict=True):
        table.add_row(*row)
    # A terminal breaks a line that is still too long by itself, and copies it whole.
    console.width = max(console.width, _width(of_shown))
    console.print(table)
    if hidden := [*left_out, *([f"the end of {text}"] if cut_to else [])]:
        terminal(stderr=True).print(f"Too narrow for {', '.join(hidden)}; --wide prints all.")


def _cut_to(widths: Mapping[str, int], text: str | None, width: int) -> int | None:
    """Return the characters to which the text is cut, if it is."""
    if text is None or text not in widths:
        return None
    room = width - _width({name: wide for name, wide in widths.items() if name != text})
    return None if widths[text] + _OF_A_COLUMN <= room else max(room - _OF_A_COLUMN, _LEAST_TEXT)


def _asked_for(columns: Sequence[str], only: str | None) -> list[str]:
    """Return the columns to print, in the requested order."""
    if only is None:
        return list(columns)
    asked = [name.strip() for name in only.split(",") if name.strip()]
    if unknown := [name for name in asked if name not in columns]:
        raise CycloptsError(
            msg=f"--columns {', '.join(unknown)}: give some of {','.join(columns)}."
        )
    return asked or list(columns)


def _left_out(
    widths: Mapping[str, int], expendable: Sequence[str], text: str | None, width: int
) -> list[str]:
    """Return the columns that a terminal of this width leaves out."""
    left = {name: min(size, _LEAST_TEXT) if name == text else size for name, size in widths.items()}
    gone = []
    for name in expendable:
        if _width(left) <= width:
            break
        if left.pop(name, None) is not None:
            gone.append(name)
    return gone


def _width(widths: Mapping[str, int]) -> int:
    return sum(size + _OF_A_COLUMN for size in widths.values()) + _OF_A_TABLE


def at_most(limit: int, found: list[T]) -> list[T]:
    """Return the first items, noting on standard error if there are more."""
    if len(found) > limit:
        terminal(stderr=True).print(f"There are more than these {limit}; --limit N lists N.")
    return found[:limit]


def duration(seconds: float) -> str:
    """Return a duration in its two largest units.

    For example `2 h 5 min`.
    """
    rest = max(0, int(seconds))
    parts: list[tuple[int, str]] = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        if count or parts:
            parts.append((count, unit))
    return " ".join(f"{count} {unit}" for count, unit in parts[:2] if count) or "0 s"


def confirmed(question: str) -> bool:
    """Ask a person on standard error, apart from the answer.

    Where nobody answers, at the end of the input, the answer is no.
    """
    terminal(stderr=True).print(f"{question} [y/N] ", end="")
    try:
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        return False


@contextmanager
def quiet_runs() -> Iterator[None]:
    """Keep this process's flow run logs off the terminal.

    Prefect keeps the logs at the run all the same.
    """
    from prefect.logging.handlers import PrefectConsoleHandler

    handlers = [
        handler
        for logger in (logging.getLogger(), logging.getLogger("prefect"))
        for handler in logger.handlers
        if isinstance(handler, PrefectConsoleHandler)
    ]
    before = [handler.level for handler in handlers]
    for handler in handlers:
        handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for handler, level in zip(handlers, before, strict=True):
            handler.setLevel(level)


def _as_text(cell: object) -> str:
    if cell is None:
        return ""
    if isinstance(cell, datetime):
        return f"{cell:%Y-%m-%d %H:%M:%S}"
    return str(cell)


def as_json_text(value: object) -> str:
    """Return a value as JSON text, a time in ISO 8601."""
    return value.isoformat() if isinstance(value, datetime) else str(value)
