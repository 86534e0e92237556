"""The shop's figures, for monitoring.

Cheap in a shop with years of orders: what is unfinished, and what ended lately, have indexes of
their own, and what has happened is told of the last hour only.
"""
# ruff: noqa: S608  (the queries are put together from the constants below, from nothing else)

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import CursorResult, text
from sqlmodel import Session

from reports.audit import forgotten_orders, with_moments
from store import sql
from store.blockers import Blocker, blockers
from store.database import snapshot
from store.models import ENDED, HOLDING, UNDOING, OrderStatus, utc_now
from store.settings import settings
from store.sql import sql_list
from tasks.steps import UNDOS

WINDOW_SECONDS = 3600
"""What has happened is told of this time."""
# As the indexes say it, so that the database takes them.
HAS_ENDED = f"status IN {sql_list(ENDED)}"
UNFINISHED = f"status NOT IN {sql_list(ENDED)}"


@dataclass(frozen=True, slots=True)
class FailedUndos:
    """Failed undos of one step and currency that are being retried."""

    step: str
    currency: str
    count: int
    cents: int


@dataclass(frozen=True, slots=True)
class Durations:
    """How often a step ended, and its seconds since the step before.

    Done and refused steps count.
    """

    count: int
    average_seconds: float
    longest_seconds: float


@dataclass(frozen=True, slots=True)
class Figures:
    """The shop's figures at one moment, without zero counts.

    ``orders`` counts unfinished orders: those that ended are counted by ``endings``, and by
    `checkout report` for any time, since counting years of them takes ever longer.
    ``idle_seconds`` is how long the row of the order has not changed that has stood longest in a
    status. ``waited_seconds`` is how long the order has waited for its courier that waits longest.
    """

    orders: dict[str, int]
    idle_seconds: dict[str, float]
    waited_seconds: float
    forgotten: int
    failed_undos: list[FailedUndos]
    endings: dict[tuple[str, str], int]
    steps: dict[tuple[str, str], Durations]
    undos: dict[str, int]
    blockers: list[Blocker]


def read_figures() -> Figures:
    """Return the shop's figures, all of one moment."""
    with snapshot() as session:
        # A second process takes longer to start than any of these queries.
        session.execute(text("SET LOCAL max_parallel_workers_per_gather TO 0"))
        orders, idle_seconds = _orders(session)
        return Figures(
            orders=orders,
            idle_seconds=idle_seconds,
            waited_seconds=_waited_seconds(session),
            forgotten=sum(1 for _ in forgotten_orders(session)),
            failed_undos=sums_of_failed_undos(session),
            endings=_endings(session),
            steps=_steps(session),
            undos=_undos(session),
            blockers=blockers(session),
        )


def _asked(session: Session, query: str) -> CursorResult[Any]:
    """Execute a query, binding the window's start and the present moment."""
    now = utc_now()
    since = now - timedelta(seconds=WINDOW_SECONDS)
    return session.connection().execute(with_moments(query, since=since, now=now))


def _orders(session: Session) -> tuple[dict[str, int], dict[str, float]]:
    found = _asked(
        session,
        f"""SELECT status, COUNT(*) AS number, {sql.seconds("MIN(updated_at)", ":now")} AS idle
        FROM orders WHERE {UNFINISHED} GROUP BY status""",
    ).all()
    orders = {row.status: row.number for row in found}
    return orders, {row.status: float(row.idle) for row in found}


def _waited_seconds(session: Session) -> float:
    left = _asked(
        session,
        f"""SELECT {sql.seconds(":now", "MIN(wait_until)")}
        FROM orders WHERE {UNFINISHED} AND status = '{OrderStatus.WAITING}'""",
    ).scalar()
    return 0.0 if left is None else max(0.0, settings().courier_timeout_seconds - float(left))


def sums_of_failed_undos(session: Session) -> list[FailedUndos]:
    """Return the sums of failed undos by step and currency.

    Only money has cents.
    """
    cents = sql.number("s.result", "amount_cents")
    found = _asked(
        session,
        f"""SELECT s.step, o.currency, COUNT(*) AS number, COALESCE(SUM({cents}), 0) AS cents
        FROM orders o JOIN saga_log s ON s.order_id = o.id AND s.attempt = o.attempt
        WHERE o.{UNFINISHED} AND o.status IN {sql_list(UNDOING)}
          AND s.step IN {sql_list(list(UNDOS))} AND s.state IN {sql_list(HOLDING)}
          AND s.undo_error IS NOT NULL
        GROUP BY s.step, o.currency""",
    )
    return [FailedUndos(row.step, row.currency, row.number, int(row.cents)) for row in found]


def _endings(session: Session) -> dict[tuple[str, str], int]:
    found = _asked(
        session,
        f"""SELECT status, COALESCE(error, '') AS error, COUNT(*) AS number FROM orders
        WHERE {HAS_ENDED} AND updated_at >= :since GROUP BY status, error""",
    )
    return {(row.status, row.error): row.number for row in found}


RECENT = f"""
  SELECT id, attempt, created_at FROM orders WHERE {HAS_ENDED} AND updated_at >= :since
  UNION ALL
  SELECT id, attempt, created_at FROM orders WHERE {UNFINISHED} AND updated_at >= :since
"""
"""The orders that have moved in the window, and with them all steps that were done in it."""


def _steps(session: Session) -> dict[tuple[str, str], Durations]:
    found = _asked(
        session,
        f"""SELECT step, outcome, COUNT(*) AS number, AVG(seconds) AS average,
          MAX(seconds) AS longest
        FROM (
          SELECT step, at,
            CASE state WHEN 'void' THEN 'refused' WHEN 'intended' THEN 'unclear' ELSE 'done' END
              AS outcome,
            {sql.seconds("began_at", "at")} AS seconds
          FROM (
            SELECT s.step, s.state, s.at, COALESCE(
              LAG(s.at) OVER (PARTITION BY s.order_id, s.attempt ORDER BY s.at),
              CASE WHEN s.attempt = 1 THEN o.created_at END) AS began_at
            FROM ({RECENT}) o JOIN saga_log s ON s.order_id = o.id AND s.attempt = o.attempt
          ) timed
        ) of_order WHERE at >= :since GROUP BY step, outcome""",
    )
    return {
        (row.step, row.outcome): Durations(
            row.number, float(row.average or 0), float(row.longest or 0)
        )
        for row in found
    }


def _undos(session: Session) -> dict[str, int]:
    found = _asked(
        session,
        f"""SELECT s.step, COUNT(*) AS number
        FROM ({RECENT}) o JOIN saga_log s ON s.order_id = o.id AND s.attempt = o.attempt
        WHERE s.undone_at >= :since GROUP BY s.step""",
    )
    return {row.step: row.number for row in found}
