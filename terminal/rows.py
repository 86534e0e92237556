"""Rows as CSV, JSON or Parquet, written as they come.

All three have the same columns. Nothing keeps the rows, however many there are.
"""

import csv
import json
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import IO, Annotated, Any

from cyclopts import CycloptsError, Parameter

from terminal.output import as_json_text

Row = Mapping[str, Any]
Columns = Mapping[str, type]
"""The names of the columns, each with the type of its values: str, int or datetime."""
ROWS_OF_A_GROUP = 50_000
"""Rows that a Parquet file has in one group, which is kept in memory until it is whole."""
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001
"""What a spreadsheet takes for the beginning of a formula (OWASP, CSV injection)."""

AsCsv = Annotated[
    bool, Parameter(name="--csv", negative="", help="Print CSV, for a spreadsheet, not a table.")
]
Parquet = Annotated[
    Path | None, Parameter(name="--parquet", help="Write this Parquet file instead of printing.")
]


def require_one_format(**given: object) -> None:
    """Raise CycloptsError if more than one format is asked for.

    Args:
        given: Whether each option, by its name without the dashes, was given.
    """
    asked = [f"--{name}" for name, is_given in given.items() if is_given]
    if len(asked) > 1:
        raise CycloptsError(msg=f"{' and '.join(asked)}: give one of them.")


def print_csv(columns: Columns, rows: Iterable[Row]) -> None:
    """Print rows as CSV, as :func:`write_csv` does."""
    write_csv(sys.stdout, columns, rows)


def write_csv(file: IO[str], columns: Iterable[str], rows: Iterable[Row]) -> None:
    """Write rows as CSV under their columns, for a spreadsheet."""
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows([cell(row[name]) for name in columns] for row in rows)


def cell(value: object) -> object:
    """Return a value as a spreadsheet reads it in CSV.

    A text that it would take for a formula begins with an apostrophe: ids, titles and reasons come
    from outside.
    """
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, str):
        return f"'{value}" if value.startswith(FORMULA) else value
    return value


def print_json_rows(rows: Iterable[Row]) -> None:
    """Print rows as one JSON list of objects."""
    sys.stdout.write("[")
    between = "\n"
    for row in rows:
        sys.stdout.write(f"{between}{json.dumps(row, ensure_ascii=False, default=as_json_text)}")
        between = ",\n"
    sys.stdout.write("]\n" if between == "\n" else "\n]\n")


def write_parquet(file: Path, columns: Columns, rows: Iterable[Row]) -> int:
    """Write rows as a Parquet file and return their number.

    An interrupted call leaves no file, and a file that was there before as it was.

    Raises:
        ModuleNotFoundError: pyarrow is not installed.
        OSError: the file cannot be written.
    """
    import pyarrow
    from pyarrow import parquet

    types = {str: pyarrow.string(), int: pyarrow.int64(), datetime: pyarrow.timestamp("us", "UTC")}
    schema = pyarrow.schema([(name, types[kind]) for name, kind in columns.items()])
    unfinished = file.with_name(f".{file.name}.unfinished")
    written = 0
    source = iter(rows)
    try:
        with parquet.ParquetWriter(unfinished, schema) as writer:
            while group := list(islice(source, ROWS_OF_A_GROUP)):
                writer.write_table(pyarrow.Table.from_pylist(group, schema))
                written += len(group)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
    return written
