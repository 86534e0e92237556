"""All attempts of orders, with their money and its moments.

The orders' table has the present attempt of an order; what an earlier one ended with is in the
request of the attempt after it. Amounts come from the saga log, so that they are there with any
payment gateway.
"""
# ruff: noqa: S608  (the queries are put together from the code's own constants alone)

from collections.abc import Iterator, Mapping
from datetime import date, datetime
from typing import Any, NamedTuple

from sqlalchemy import Row, text
from sqlmodel import Session

from reports.archived import IN_PLACE, archived_pages
from reports.audit import with_moments
from store import sql
from store.models import ENDED, OrderStatus, StepState, UtcDateTime
from store.sql import sql_list

ROWS_AT_ONCE = 1_000
UNKNOWN = "unknown"
"""The error of an attempt that ended before the store kept errors of earlier attempts."""
_BILLED = sql.number("billed.result", "amount_cents")
_REFUNDED = f"CASE WHEN billed.state = '{StepState.UNDONE}' " + (
    f"THEN {sql.number('billed.undo_result', 'amount_cents')} END"
)


class Period(NamedTuple):
    """The days of a time zone from one up to another.

    The last one is excluded. Without a day it is open at that end.
    """

    from_day: date | None
    to_day: date | None
    zone: str


def period_bounds(session: Session, period: Period) -> dict[str, datetime]:
    """Return the moments at which the period's days begin.

    They are ``since`` and ``until``, each only if the period has it. The database is asked, since
    its calendar puts the moments into days.
    """
    days = {"since": period.from_day, "until": period.to_day}
    statement = text("SELECT CAST(:day AS TIMESTAMP) AT TIME ZONE :zone AS at").columns(
        at=UtcDateTime()
    )
    return {
        name: session.execute(statement, {"day": day.isoformat(), "zone": period.zone}).scalar_one()
        for name, day in days.items()
        if day is not None
    }


def read_attempts(session: Session, period: Period) -> Iterator[Row[Any]]:
    """Yield the attempts of a period's orders, by acceptance.

    An order is the period's in which it was accepted. Those in archives come first. Memory does not
    grow with the orders.

    Args:
        session: One of :func:`store.database.snapshot`.
        period: The days.

    Raises:
        ArchiveDamaged, ArchiveRefused, ArchiveUnavailable: as :func:`reports.sales.sales`.
    """
    bounds = period_bounds(session, period)
    of_page = with_moments(_accepted_query(bounds, f"WITH {IN_PLACE}"), **bounds)
    for page in archived_pages(session, bounds):
        yield from session.execute(of_page, page)
    yield from session.execute(
        with_moments(_accepted_query(bounds), **bounds),
        execution_options={"yield_per": ROWS_AT_ONCE},
    )


def _accepted_query(bounds: Mapping[str, datetime], tables: str = "") -> str:
    conditions = {"since": "o.created_at >= :since", "until": "o.created_at < :until"}
    return f"""
        {tables}
        SELECT tried.*, (
          SELECT STRING_AGG(l.book_id || ' x ' || l.quantity, ', ' ORDER BY l.book_id)
          FROM order_lines l WHERE l.order_id = tried.order_id
        ) AS books
        FROM ({attempts_query(" AND ".join(conditions[name] for name in bounds) or "TRUE")}) tried
        ORDER BY accepted_at, order_id, attempt"""


def attempts_query(orders: str) -> str:
    """Return the query with one row for each attempt.

    Args:
        orders: The condition on the orders ``o`` that are looked at.
    """
    return f"""
        SELECT t.*,
          {sql.number("priced.result", "total_cents")} AS total_cents,
          COALESCE({sql.number("redeemed.result", "points")}, 0) AS points_redeemed,
          redeemed.at AS redeemed_at,
          COALESCE({sql.number("redeemed.undo_result", "points")}, 0) AS points_restored,
          redeemed.undone_at AS restored_at,
          COALESCE(CASE WHEN billed.state = '{StepState.DONE}'
              OR {sql.field("billed.result", "reference")} IS NOT NULL THEN {_BILLED}
            -- A charge in doubt: what was given back is all that is known to have been captured.
            ELSE {_REFUNDED} END, 0) AS captured_cents,
          billed.at AS captured_at,
          COALESCE({_REFUNDED}, 0) AS refunded_cents, billed.undone_at AS refunded_at,
          COALESCE(CASE WHEN {sql.field("billed.undo_result", "settled_by")} IS NOT NULL
            THEN {_REFUNDED} END, 0) AS by_hand_cents,
          COALESCE(CASE WHEN billed.state = '{StepState.INTENDED}' THEN {_BILLED} END, 0)
            AS in_doubt_cents,
          handed_over.at AS dispatched_at
        FROM ({_present(orders)} UNION ALL {_earlier(orders)}) t
        {_step("calculate_total", "priced")}
        {_step("redeem_points", "redeemed")}
        {_step("bill_customer", "billed")}
        {_step("dispatch_order", "handed_over")}"""


def _step(step: str, name: str) -> str:
    return f"""LEFT JOIN saga_log {name} ON {name}.order_id = t.order_id
          AND {name}.attempt = t.attempt AND {name}.step = '{step}'
          AND {name}.state <> '{StepState.VOID}'"""


def _present(orders: str) -> str:
    return f"""
        SELECT o.id AS order_id, o.attempt, o.user_id, o.copies, o.created_at AS accepted_at,
          COALESCE(request.began_at, o.created_at) AS began_at, o.status, o.error, o.currency,
          o.courier_id AS courier, o.submitted_by,
          CASE WHEN o.status IN {sql_list(ENDED)} THEN o.updated_at END AS ended_at
        FROM orders o
        LEFT JOIN attempts request ON request.order_id = o.id AND request.attempt = o.attempt
        WHERE {orders}"""


def _earlier(orders: str) -> str:
    # In a shop that is older than the requests' table an attempt may have none.
    return f"""
        SELECT o.id, number, o.user_id, o.copies, o.created_at,
          COALESCE(request.began_at, o.created_at),
          COALESCE(later.previous_status, CASE WHEN EXISTS (
            SELECT FROM saga_log s WHERE s.order_id = o.id AND s.attempt = number
              AND s.state = '{StepState.UNDONE}'
          ) THEN '{OrderStatus.COMPENSATED}' ELSE '{OrderStatus.REJECTED}' END),
          COALESCE(later.previous_error, '{UNKNOWN}'),
          COALESCE(later.previous_currency, o.currency), NULL, o.submitted_by,
          COALESCE(later.previous_ended_at, later.began_at, o.updated_at)
        FROM orders o CROSS JOIN LATERAL GENERATE_SERIES(1, o.attempt - 1) AS number
        LEFT JOIN attempts request ON request.order_id = o.id AND request.attempt = number
        LEFT JOIN attempts later ON later.order_id = o.id AND later.attempt = number + 1
        WHERE o.attempt > 1 AND {orders}"""
