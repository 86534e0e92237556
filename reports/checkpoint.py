"""Audit only the orders that have changed since the last clean audit.

An order that was dispatched never changes, so its copies and points are summed up once. An order
counts as changed while it has not ended, and if it ended after the checkpoint.
"""
# ruff: noqa: S608  (the queries are put together from the code's own constants alone)

from datetime import datetime, timedelta

from sqlalchemy import text
from sqlmodel import Session

from store import sql
from store.checkpoint import ONLY_ROW, AuditCheckpoint
from store.database import transaction
from store.models import ENDED, HOLDING, OrderStatus
from store.sessions import SNAPSHOT
from store.sql import sql_list

MARGIN = timedelta(hours=1)
"""Longer than any step's transaction, and than clocks of two machines differ: an order's end that
is older than this before an audit's snapshot was in it."""
FULL_EVERY = timedelta(days=6, hours=12)
"""Half a day less than a week, so that a daily audit that begins a little early reads them too."""

ALL_ORDERS = """WITH
  checkpoint_copies AS (SELECT * FROM checkpoint_copies WHERE FALSE),
  checkpoint_points AS (SELECT * FROM checkpoint_points WHERE FALSE)
"""
"""The start of each query of a full audit: nothing was counted before it."""

CHANGED_ORDERS = f"""
  SELECT o.id FROM orders o WHERE status NOT IN {sql_list(ENDED)}
  UNION ALL
  SELECT o.id FROM orders o WHERE status IN {sql_list(ENDED)} AND o.updated_at >= :before
    AND NOT EXISTS (
      SELECT 1 FROM saga_log d WHERE d.order_id = o.id AND d.step = 'dispatch_order'
        AND d.state = 'done' AND d.at < :before)"""
BY_ORDER = {
    "orders": "id",
    "order_lines": "order_id",
    "saga_log": "order_id",
    "decisions": "order_id",
    "notifications": "order_id",
    "ledger": "order_id",
}
"""The tables that an audit reads by order, and the column with the order's id."""


def narrow(session: Session, since: AuditCheckpoint) -> None:
    """Make each table's name mean its rows of changed orders.

    For the rest of the transaction, by temporary tables of the same names, which PostgreSQL knows
    the size of: it joins them in one pass, however many orders a day has.
    """
    connection = session.connection()
    connection.execute(
        text(f"CREATE TEMP TABLE changed ON COMMIT DROP AS {CHANGED_ORDERS}"),
        {"before": since.before},
    )
    connection.execute(text("ANALYZE changed"))
    for table, column in BY_ORDER.items():
        connection.execute(
            text(
                f"CREATE TEMP TABLE {table} ON COMMIT DROP AS "
                f"SELECT found.* FROM {table} found JOIN changed ON changed.id = found.{column}"
            )
        )
        connection.execute(text(f"ANALYZE {table}"))


def read_checkpoint(session: Session) -> AuditCheckpoint | None:
    """Return the last clean audit, or None before the first one.

    Args:
        session: The audit's snapshot. Another moment's checkpoint is not that of the copies and
            points that the snapshot has as counted: an audit or an archival may come in between.
    """
    return session.get(AuditCheckpoint, ONLY_ROW)


def scope_of(checkpoint: AuditCheckpoint | None) -> str:
    """Return which orders an audit since this checkpoint reads."""
    if checkpoint is None:
        return "all orders"
    return f"orders changed since {checkpoint.before:%Y-%m-%d %H:%M} UTC"


def is_full_due(checkpoint: AuditCheckpoint, now: datetime) -> bool:
    """Return whether the last full audit is a week ago."""
    return now - checkpoint.full_at >= FULL_EVERY


def move_checkpoint(seen: AuditCheckpoint | None, began_at: datetime) -> bool:
    """Record a clean audit, and count what was dispatched before it.

    Args:
        seen: The checkpoint from which the audit started, or None for a full audit.
        began_at: When the audit's snapshot was taken.

    Returns:
        Whether it was recorded. It is not if another audit or the archive has replaced the
        checkpoint since.
    """
    before = began_at - MARGIN
    with transaction(SNAPSHOT) as session:
        # The archive, which deletes orders and the checkpoint, waits while they are counted.
        session.execute(text("LOCK TABLE audit_checkpoint IN EXCLUSIVE MODE"))
        present = session.get(AuditCheckpoint, ONLY_ROW)
        if seen is None:
            session.execute(text("DELETE FROM checkpoint_copies"))
            session.execute(text("DELETE FROM checkpoint_points"))
        elif present is None or present.before != seen.before:
            return False
        elif before <= seen.before:
            return True
        _count(session, None if seen is None else seen.before, before)
        session.merge(
            AuditCheckpoint(
                before=before,
                audited_at=began_at,
                full_at=began_at if seen is None else seen.full_at,
            )
        )
        return True


def _count(session: Session, since: datetime | None, before: datetime) -> None:
    """Add the copies and points of orders dispatched from ``since`` until ``before``."""
    dispatched = f"""
        SELECT o.id, o.attempt FROM orders o
        JOIN saga_log d ON d.order_id = o.id AND d.attempt = o.attempt
          AND d.step = 'dispatch_order' AND d.state = 'done' AND d.at < :before
        WHERE o.status = '{OrderStatus.DISPATCHED}' AND o.status IN {sql_list(ENDED)}"""
    moments = {"before": before}
    if since is not None:
        dispatched += " AND o.updated_at >= :since AND d.at >= :since"
        moments["since"] = since
    held = sql_list(HOLDING)
    for statement in (
        f"""INSERT INTO checkpoint_copies (book_id, copies)
        SELECT l.book_id, SUM(l.quantity) FROM ({dispatched}) o
        JOIN saga_log s ON s.order_id = o.id AND s.attempt = o.attempt
          AND s.step = 'check_inventory' AND s.state IN {held}
        JOIN order_lines l ON l.order_id = o.id
        GROUP BY l.book_id
        ON CONFLICT (book_id) DO UPDATE SET
          copies = checkpoint_copies.copies + excluded.copies""",
        f"""INSERT INTO checkpoint_points (customer_id, points)
        SELECT {sql.field("s.result", "user_id")}, SUM({sql.number("s.result", "points")})
        FROM ({dispatched}) o
        JOIN saga_log s ON s.order_id = o.id AND s.attempt = o.attempt
          AND s.step = 'redeem_points' AND s.state IN {held}
        GROUP BY {sql.field("s.result", "user_id")}
        ON CONFLICT (customer_id) DO UPDATE SET
          points = checkpoint_points.points + excluded.points""",
    ):
        session.execute(text(statement), moments)
