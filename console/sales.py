"""The report on sales, and the export of orders."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime, timedelta
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from cyclopts import CycloptsError, Parameter, Token
from sqlalchemy import RowMapping

from reports.attempts import Period, read_attempts
from reports.sales import COUNTS, MOVES, By, Sales, add_up, sales
from store.database import snapshot
from store.messages import money
from store.models import utc_now
from store.settings import settings
from terminal.output import AsJson, Columns, Wide, complain, print_table, terminal
from terminal.rows import (
    AsCsv,
    Parquet,
    print_csv,
    print_json_rows,
    require_one_format,
    write_parquet,
)

KEYS: dict[By, tuple[str, ...]] = {
    "day": ("day",),
    "title": ("book_id", "title"),
    "customer": ("user_id",),
    "courier": ("courier",),
    "error": ("error",),
}
"""The columns that name a row of the report."""
AMOUNTS = ("orders", "dispatched", "failed", "copies", "points", "captured", "refunded", "net")
"""The columns of its table with amounts."""
EXPORTED: dict[str, type] = {
    "order_id": str,
    "attempt": int,
    "status": str,
    "accepted_at": datetime,
    "began_at": datetime,
    "ended_at": datetime,
    "user_id": str,
    "books": str,
    "copies": int,
    "currency": str,
    "total_cents": int,
    "points_redeemed": int,
    "points_restored": int,
    "captured_cents": int,
    "captured_at": datetime,
    "refunded_cents": int,
    "refunded_at": datetime,
    "by_hand_cents": int,
    "in_doubt_cents": int,
    "courier": str,
    "error": str,
    "submitted_by": str,
}
"""The columns of the export, each with the type of its values."""
FIRST_DAY, LAST_DAY = date(1970, 1, 1), date(9999, 1, 1)
"""Beyond them a day's beginning may be out of the calendar, in the shop's time zone or another."""
NO_PARQUET = (
    "--parquet needs the library of Parquet: install store-checkout[parquet]. Nothing was written."
)


def _day(_: Any, tokens: Sequence[Token]) -> date:
    text = tokens[0].value
    with suppress(ValueError):
        # Python takes other forms of ISO 8601 as well, such as weeks.
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            day = date.fromisoformat(text)
            if FIRST_DAY <= day <= LAST_DAY:
                return day
    raise ValueError(
        f"{text!r} is no day from {FIRST_DAY} to {LAST_DAY}; give one such as 2026-11-01"
    )


Day = Annotated[date, Parameter(converter=_day)]
From = Annotated[Day | None, Parameter(name="--from")]
To = Annotated[Day | None, Parameter(name="--to")]


def report(
    *,
    from_: From = None,
    to: To = None,
    by: By = "day",
    columns: Columns = None,
    wide: Wide = False,
    as_csv: AsCsv = False,
    as_json: AsJson = False,
    parquet: Parquet = None,
) -> int:
    """Report the orders, copies, points and money of a period.

    Each amount counts on the day on which it moved: an order when it was accepted, a charge when
    it was captured, a refund when it was made, copies when they were dispatched. An order that was
    tried several times counts with each attempt. Days are in STORE_TIMEZONE. Each currency has a
    row of its own.

    Args:
        from_: The first day, such as 2026-11-01; left out, the first of this month.
        to: The day after the last one; left out, tomorrow.
        by: What the rows are. By title an order counts for each title, and its money is shared out.
    """
    require_one_format(csv=as_csv, json=as_json, parquet=parquet)
    period = _period(from_, to)
    if parquet and not find_spec("pyarrow"):
        return complain(NO_PARQUET)
    with snapshot() as session:
        rows = sales(session, by, period)
        if as_json:
            print_json_rows(_as_data(row, by) for row in rows)
        elif as_csv or parquet:
            names = [*KEYS[by], "currency", *MOVES, "net_cents", "why"]
            texts = {*KEYS[by], "currency", "why"}
            kinds: dict[str, type] = {name: str if name in texts else int for name in names}
            flat = ({**_as_data(row, by), "why": _why(row)} for row in rows)
            if parquet:
                return _written(parquet, write_parquet(parquet, kinds, flat))
            print_csv(kinds, flat)
        else:
            _print_report(list(rows), by, period, only=columns, wide=wide)
    return 0


def _as_data(row: Sales, by: By) -> dict[str, Any]:
    return {
        **dict(zip(KEYS[by], (row.key, row.title), strict=False)),
        "currency": row.currency,
        **row.amounts,
        "net_cents": row.net_cents,
        "why": dict(row.why),
    }


def _why(row: Sales) -> str:
    return ", ".join(f"{error} {count}" for error, count in row.why.items())


def _print_report(
    rows: list[Sales], by: By, period: Period, *, only: str | None, wide: bool
) -> None:
    """Print the table, with sums for each currency of several rows."""
    lines = [[*_names(row, by), row.currency, *_cells(row.amounts), _why(row)] for row in rows]
    for total in add_up(rows):
        if sum(row.currency == total.currency for row in rows) > 1:
            # An order counts for each of its titles, which do not add up to the orders.
            amounts = {n: v for n, v in total.amounts.items() if by != "title" or n not in COUNTS}
            blanks = [""] * (len(KEYS[by]) - 1)
            lines.append([*blanks, total.key, total.currency, *_cells(amounts), ""])
    print_table(
        f"Sales from {period.from_day} up to {period.to_day}, days in {period.zone}",
        [*_names_of_columns(by), "currency", *AMOUNTS, "why"],
        lines,
        empty="There is nothing in this period.",
        text="title" if by == "title" else "why",
        expendable=["why", "book", "points", "copies", "orders", "failed", "dispatched"],
        only=only,
        wide=wide,
    )
    for total in add_up(rows):
        if cents := total.amounts["in_doubt_cents"]:
            terminal(stderr=True).print(
                f"{money(cents, total.currency)} of charges are in doubt: asked for, and without "
                "an answer yet. They count once it is known whether they were captured."
            )


def _names_of_columns(by: By) -> list[str]:
    return ["book", "title"] if by == "title" else [by]


def _names(row: Sales, by: By) -> list[str]:
    return [row.key, row.title or ""] if by == "title" else [row.key]


def _cells(amounts: Mapping[str, int]) -> list[object]:
    captured, refunded = amounts["captured_cents"], amounts["refunded_cents"]
    return [
        *(amounts.get(name) for name in ("orders", "dispatched", "failed", "copies")),
        amounts["points_redeemed"] - amounts["points_restored"],
        *(Decimal(cents).scaleb(-2) for cents in (captured, refunded, captured - refunded)),
    ]


def export(
    *,
    from_: From = None,
    to: To = None,
    as_csv: AsCsv = False,
    as_json: AsJson = False,
    parquet: Parquet = None,
) -> int:
    """Print the orders accepted in a period, as CSV for a spreadsheet.

    Each attempt of an order has a row, so that the money adds up; nearly all orders have one.
    Customers have their ids, never their names. Times are in STORE_TIMEZONE, amounts in the
    currency's minor unit. It is written as it is read, however many orders there are.

    Args:
        from_: The first day, such as 2026-11-01; left out, the first of this month.
        to: The day after the last one; left out, tomorrow.
    """
    require_one_format(csv=as_csv, json=as_json, parquet=parquet)
    period = _period(from_, to)
    if parquet and not find_spec("pyarrow"):
        return complain(NO_PARQUET)
    with snapshot() as session:
        rows = (_exported(row._mapping) for row in read_attempts(session, period))
        if parquet:
            return _written(parquet, write_parquet(parquet, EXPORTED, rows))
        if as_json:
            print_json_rows(rows)
        else:
            print_csv(EXPORTED, rows)
    return 0


def _exported(row: RowMapping) -> dict[str, Any]:
    zone = settings().zone
    return {
        name: row[name].astimezone(zone) if kind is datetime and row[name] else row[name]
        for name, kind in EXPORTED.items()
    }


def _period(from_day: date | None, to_day: date | None) -> Period:
    """Return the period in the shop's time zone.

    By default it is this month so far.

    Raises:
        CycloptsError: it ends before it begins.
    """
    today = utc_now().astimezone(settings().zone).date()
    first = from_day or today.replace(day=1)
    end = to_day or today + timedelta(days=1)
    if end <= first:
        raise CycloptsError(
            msg=f"--to {end}: give a day after {first}, the first day of the period."
        )
    return Period(first, end, settings().timezone)


def _written(file: Path, number: int) -> int:
    terminal().print(f"{number} rows written to {file}.")
    return 0
