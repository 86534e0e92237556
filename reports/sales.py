"""Sales of a period by day, title, customer, courier or error.

Each amount counts at the moment when it moved: a charge when it was captured, a refund when it was
made. So the periods add up, and one that is over stays as it is. Money of several currencies is
never added up.
"""
# ruff: noqa: S608  (the queries are put together from the code's own constants alone)

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import reduce
from heapq import merge
from itertools import groupby
from typing import Any, Literal

from sqlalchemy import Row
from sqlmodel import Session

from reports.archived import IN_PLACE, SKEW, archived_pages
from reports.attempts import ROWS_AT_ONCE, Period, attempts_query, period_bounds
from reports.audit import with_moments
from store.models import ENDED, FAILED
from store.sql import sql_list

By = Literal["day", "title", "customer", "courier", "error"]
COUNTS: Mapping[str, tuple[str, str]] = {
    "orders": ("accepted_at", "CASE WHEN attempt = 1 THEN 1 END"),
    "retried": ("began_at", "CASE WHEN attempt > 1 THEN 1 END"),
    "dispatched": ("dispatched_at", "1"),
    "failed": ("ended_at", f"CASE WHEN status IN {sql_list(FAILED)} THEN 1 END"),
}
"""What counts an order once, with its moment."""
COPIES: Mapping[str, tuple[str, str]] = {"copies": ("dispatched_at", "copies")}
SHARED: Mapping[str, tuple[str, str]] = {
    "points_redeemed": ("redeemed_at", "points_redeemed"),
    "points_restored": ("restored_at", "points_restored"),
    "captured_cents": ("captured_at", "captured_cents"),
    "refunded_cents": ("refunded_at", "refunded_cents"),
    "by_hand_cents": ("refunded_at", "by_hand_cents"),
    "in_doubt_cents": ("captured_at", "in_doubt_cents"),
}
"""What an order has as a whole, and its titles share."""
MOVES = {**COUNTS, **COPIES, **SHARED}
"""Each amount with its moment, as columns of :func:`reports.attempts.attempts_query`."""
_KEYS: Mapping[By, str] = {
    "day": "CAST(CAST(at AT TIME ZONE :zone AS DATE) AS TEXT)",
    "title": "book_id",
    "customer": "user_id",
    "courier": "COALESCE(courier, '')",
    "error": "COALESCE(error, '')",
}
_WEIGHTS = """
    SELECT order_id, book_id, quantity, weight, SUM(weight) OVER (PARTITION BY order_id) AS weights
    FROM (
      SELECT order_id, book_id, quantity,
        -- A quantity weighs where nothing has a price.
        CAST(CASE WHEN SUM(quantity * unit_price_cents) OVER (PARTITION BY order_id) > 0
          THEN quantity * COALESCE(unit_price_cents, 0) ELSE quantity END AS NUMERIC) AS weight
      FROM order_lines
    ) weighed"""
_SIGNS = {"since": ">=", "until": "<"}
_SKEW = f"INTERVAL '{SKEW.days} day'"


@dataclass(frozen=True, slots=True)
class Sales:
    """The sales of one day, title, customer, courier or error.

    Attributes:
        key: The day in ISO 8601, the id, or the error's name; empty for none.
        currency: The ISO 4217 code.
        amounts: Each of ``MOVES``; money in minor units.
        why: The errors of the failed attempts, each with their number.
        title: The book's title, by title.
    """

    key: str
    currency: str
    amounts: Mapping[str, int]
    why: Mapping[str, int]
    title: str | None = None

    @property
    def net_cents(self) -> int:
        """Return what was captured and not refunded, in minor units."""
        return self.amounts["captured_cents"] - self.amounts["refunded_cents"]


def sales(session: Session, by: By, period: Period) -> Iterator[Sales]:
    """Yield the sales of a period, sorted by key and currency.

    Orders in archives count as those in the tables. Memory does not grow with the orders, and with
    the customers or titles only as far as they are archived.

    By title an order counts for each of its titles. Its money and points are shared out to them by
    their price, to the cent: each gets its share rounded down, and what is left over goes, a cent
    each, to those with the largest remainders.

    Args:
        session: One of :func:`store.database.snapshot`, so that all of it is of one moment.
        by: What the sales are grouped by.
        period: The days.

    Raises:
        ArchiveDamaged: a file of the period is not the one that was archived.
        ArchiveRefused: a file of the period is not there, or must not be read.
        ArchiveUnavailable: S3 did not answer.
    """
    bounds = period_bounds(session, period)
    zone = {"zone": period.zone} if by == "day" else {}
    archived: dict[tuple[str, str], Sales] = {}
    of_page = with_moments(_query(by, bounds, f"{IN_PLACE},"), **bounds)
    for page in archived_pages(session, bounds):
        for row in map(_of_row, session.execute(of_page, {**zone, **page})):
            before = archived.get(_place(row))
            archived[_place(row)] = row if before is None else _sum(before, row)
    in_tables = session.execute(
        with_moments(_query(by, bounds), **bounds),
        zone,
        execution_options={"yield_per": ROWS_AT_ONCE},
    )
    in_order = merge(sorted(archived.values(), key=_place), map(_of_row, in_tables), key=_place)
    for _, rows in groupby(in_order, _place):
        yield reduce(_sum, rows)


def add_up(rows: Sequence[Sales]) -> list[Sales]:
    """Return the sums of each currency, with the key ``total``.

    By title an order counts for each of its titles, so that its counts do not add up.
    """
    return [
        replace(reduce(_sum, (row for row in rows if row.currency == currency)), key="total")
        for currency in sorted({row.currency for row in rows})
    ]


def _place(row: Sales) -> tuple[str, str]:
    return row.key, row.currency


def _of_row(row: Row[Any]) -> Sales:
    """Return the sales of one key, currency and error."""
    amounts = {name: int(row._mapping[name] or 0) for name in MOVES}
    why = {row.error: amounts["failed"]} if amounts["failed"] else {}
    return Sales(row.key, row.currency, amounts, why, row.title)


def _sum(one: Sales, other: Sales) -> Sales:
    """Return the sales of one currency added up."""
    amounts = {name: amount + other.amounts[name] for name, amount in one.amounts.items()}
    why = Counter(one.why) + Counter(other.why)
    return replace(one, amounts=amounts, why=dict(sorted(why.items())))


def _query(by: By, bounds: Mapping[str, datetime], tables: str = "") -> str:
    """Return the query of the sales by key, currency and error.

    Args:
        by: What they are grouped by.
        bounds: The moments that the query binds.
        tables: Parts of its WITH clause that stand in the tables' place.
    """
    sums = ", ".join(f"SUM(amount) FILTER (WHERE move = '{name}') AS {name}" for name in MOVES)
    of_titles = by == "title"
    within = "".join(f" AND at {sign} :{name}" for name, sign in _SIGNS.items() if name in bounds)
    return f"""
        WITH {tables} moved AS (
          SELECT order_id, attempt, user_id, courier, error, currency, move, at, amount
          FROM ({attempts_query(_may_move(bounds))}) tried
          CROSS JOIN LATERAL (VALUES {_moves()}) AS moves (move, at, amount)
          WHERE at IS NOT NULL AND amount <> 0 {within}
        )
        SELECT grouped.*, {"books.title" if of_titles else "NULL"} AS title FROM (
          SELECT {_KEYS[by]} AS key, currency, error, {sums}
          FROM {_shared_out() if of_titles else "moved"} GROUP BY 1, 2, 3
        ) grouped {"LEFT JOIN books ON books.id = grouped.key" if of_titles else ""}
        ORDER BY key COLLATE "C", currency"""


def _may_move(bounds: Mapping[str, datetime]) -> str:
    """Return the condition that an order may have moves in the period."""
    conditions = {
        "until": f"o.created_at < :until + {_SKEW}",
        # As the two indexes of orders have it, so that years of ended ones are not read.
        "since": f"(o.status NOT IN {sql_list(ENDED)} OR (o.status IN {sql_list(ENDED)} "
        f"AND o.updated_at >= :since - {_SKEW}))",
    }
    return " AND ".join(conditions[name] for name in bounds) or "TRUE"


def _moves() -> str:
    """Return the rows into which an attempt is taken apart."""
    return ", ".join(
        f"('{name}', {moment}, CAST({amount} AS BIGINT))"
        for name, (moment, amount) in MOVES.items()
    )


def _shared_out() -> str:
    """Return the moves, shared out to each order's titles."""
    shared, copies = sql_list(list(SHARED)), sql_list(list(COPIES))
    return f"""(
          SELECT user_id, courier, error, currency, move, at, book_id,
            CASE WHEN move IN {copies} THEN quantity WHEN move NOT IN {shared} THEN amount
              ELSE rounded_down + CASE WHEN ROW_NUMBER() OVER (
                  PARTITION BY order_id, attempt, move ORDER BY remainder DESC, book_id
                ) <= amount - SUM(rounded_down) OVER (PARTITION BY order_id, attempt, move)
                THEN 1 ELSE 0 END
            END AS amount
          FROM (
            SELECT moved.*, line.book_id, line.quantity,
              DIV(amount * line.weight, line.weights) AS rounded_down,
              MOD(amount * line.weight, line.weights) AS remainder
            FROM moved JOIN ({_WEIGHTS}) line ON line.order_id = moved.order_id
          ) divided
        ) shared_out"""
