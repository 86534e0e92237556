"""How the commands speak: answers on standard output, as a table or as JSON, the rest on error."""

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from prefect.logging.handlers import PrefectConsoleHandler
from rich.console import Console
from rich.table import Table

from console.numbers import WholeNumber

AsJson = Annotated[
    bool, Parameter(name="--json", negative="", help="Print JSON, for programs, not a table.")
]
"""The option that every command which prints an answer has."""

Limit = Annotated[WholeNumber, Parameter(name=["--limit", "-n"], validator=Number(gte=1))]
"""The option of the commands that list."""

_WIDTH_WITHOUT_TERMINAL = 1_000_000
"""Wider than any line: what reads a file or a pipe wants each row of a table in one."""


def terminal(*, stderr: bool = False) -> Console:
    """Return a console that prints what it is given as it is.

    Nothing is taken as markup or emoji, since most of it is data, and no line is wrapped, since a
    link or a remedy is to be copied. It is made when asked for, so that a redirected stream counts.
    """
    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(
        stderr=stderr,
        markup=False,
        emoji=False,
        highlight=False,
        soft_wrap=True,
        width=None if is_terminal else _WIDTH_WITHOUT_TERMINAL,
    )


def print_json(value: object) -> None:
    """Print one JSON document, in ISO 8601 where it has a time."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=_as_json) + "\n")


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str
) -> None:
    """Print rows under their columns, numbers to the right; ``empty`` where there is no row."""
    found = [list(row) for row in rows]
    if not found:
        terminal().print(empty)
        return
    table = Table(title=title)
    for at, column in enumerate(columns):
        is_number = all(isinstance(row[at], int | float | None) for row in found)
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in found:
        table.add_row(*(_as_text(cell) for cell in row))
    terminal().print(table)


def duration(seconds: float) -> str:
    """Return a length of time as people read it, in its two largest units: ``2 h 5 min``."""
    rest = max(0, int(seconds))
    parts: list[tuple[int, str]] = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, length)
        if count or parts:
            parts.append((count, unit))
    return " ".join(f"{count} {unit}" for count, unit in parts[:2] if count) or "0 s"


def confirmed(question: str) -> bool:
    """Ask a person on standard error, so that standard output has the answer alone.

    Where nobody answers, at the end of the input, the answer is no.
    """
    terminal(stderr=True).print(f"{question} [y/N] ", end="")
    try:
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        return False


@contextmanager
def quiet_runs() -> Iterator[None]:
    """Keep off the terminal what a flow run in this process logs: the answer says what it came to.

    Prefect keeps the logs at the run all the same.
    """
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


def _as_json(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
