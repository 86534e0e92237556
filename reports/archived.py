"""Archived orders as the tables that a report's query reads.

A page of them goes to the database as JSON and stands in the query in the tables' place, so that
one query serves orders in the tables and in files.
"""
# ruff: noqa: S608  (the query is put together from the code's own constants alone)

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

import orjson
from sqlalchemy import text
from sqlmodel import Session

from store.archive_files import archives, read_orders

ORDERS_AT_ONCE = 1_000
TABLES = {"orders": "order", "order_lines": "lines", "attempts": "attempts", "saga_log": "saga_log"}
"""The tables that the reports read, each with its name in a file."""
IN_PLACE = ", ".join(
    f"{table} AS (SELECT * FROM "
    f"json_populate_recordset(CAST(NULL AS {table}), CAST(:page_of_{table} AS JSON)))"
    for table in TABLES
)
"""The WITH clause's parts for a page of archived orders."""
SKEW = timedelta(days=1)
"""More than the clocks of two machines, which set an order's moments, can be apart."""


def archived_pages(session: Session, bounds: Mapping[str, datetime]) -> Iterator[dict[str, str]]:
    """Yield pages of a period's archived orders, as ``IN_PLACE`` binds them.

    An order that the tables still have at the session's moment is left out.

    Args:
        session: One of :func:`store.database.snapshot`.
        bounds: The moments ``since`` and ``until``, if the period has them. Orders from outside of
            it may be on the pages as well.

    Raises:
        ArchiveDamaged: a file is not the one that was archived.
        ArchiveRefused: a file is not there, or must not be read.
        ArchiveUnavailable: S3 did not answer.
    """
    found = archives(
        session,
        ended_after=bounds["since"] - SKEW if "since" in bounds else None,
        accepted_before=bounds["until"] + SKEW if "until" in bounds else None,
    )
    if found:
        _plan_pages(session, is_page=True)
    for archive in found:
        orders = read_orders(session, archive)
        while page := list(islice(orders, ORDERS_AT_ONCE)):
            yield {f"page_of_{table}": _page(page, part) for table, part in TABLES.items()}
    if found:
        _plan_pages(session, is_page=False)


def _plan_pages(session: Session, *, is_page: bool) -> None:
    """Plan the session's next queries for pages, or for tables again.

    Of a page's size the planner knows nothing, and would compare each row with each. What it is
    kept from counts as so dear that PostgreSQL before 18 would compile each page's query first.
    """
    value = "off" if is_page else "DEFAULT"
    for name in ("enable_nestloop", "jit"):
        session.execute(text(f"SET LOCAL {name} = {value}"))


def _page(orders: list[dict[str, Any]], part: str) -> str:
    if part == "order":
        return orjson.dumps([order[part] for order in orders]).decode()
    return orjson.dumps([row for order in orders for row in order[part]]).decode()
