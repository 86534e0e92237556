"""What must be true of the shop at every moment: I1 to I5, as plain SQL over its tables.

Written apart from the code that it checks: each query reads the tables alone and returns the rows
that are off, as a name and a sentence; none, if all is well. They hold between any two
transactions, also in the middle of a charge or a refund. What holds only once everything has come
to rest stands in ``AT_REST``.
"""
# ruff: noqa: S608  (the queries are put together from the constants below, from nothing else)

from functools import lru_cache
from typing import NamedTuple

from sqlalchemy import Connection

from store.database import reading


class Violation(NamedTuple):
    """An invariant that does not hold, and the sentence that says where."""

    invariant: str
    sentence: str


_HELD = "state IN ('intended', 'done')"
_NOTHING_HELD = "('submitted', 'rejected', 'compensated')"
_COMPENSABLE = "('check_inventory', 'redeem_points', 'bill_customer')"
_MONEY = """
  SELECT order_id, REPLACE(key, ':refund', '') AS charge,
    SUM(CASE WHEN kind = 'capture' AND status = 'captured' THEN amount_cents ELSE 0 END)
      AS captured,
    SUM(CASE WHEN kind = 'refund' THEN amount_cents ELSE 0 END) AS refunded,
    SUM(CASE WHEN kind = 'capture' AND status = 'captured' THEN 1 ELSE 0 END) AS captures,
    SUM(CASE WHEN kind = 'refund' THEN 1 ELSE 0 END) AS refunds
  FROM ledger GROUP BY order_id, REPLACE(key, ':refund', '')
"""
_BY_HAND = "s.undo_result ->> 'settled_by' IS NOT NULL"
_BILLING = "s.step = 'bill_customer' AND m.charge = s.order_id || ':' || s.attempt"

ALWAYS = {
    "I1 stock": f"""
        SELECT 'book ' || b.id || ': ' || b.initial_quantity || ' at first, ' || b.quantity
          || ' now, ' || COALESCE(h.copies, 0) || ' held or sold'
        FROM books b LEFT JOIN (
          SELECT l.book_id, SUM(l.quantity) AS copies
          FROM saga_log s JOIN order_lines l ON l.order_id = s.order_id
          WHERE s.step = 'check_inventory' AND s.{_HELD} GROUP BY l.book_id
        ) h ON h.book_id = b.id
        WHERE b.initial_quantity <> b.quantity + COALESCE(h.copies, 0)""",
    "I2 points": f"""
        SELECT 'customer ' || c.id || ': ' || c.initial_points || ' points at first, ' || c.points
          || ' now, ' || COALESCE(h.points, 0) || ' held or spent'
        FROM customers c LEFT JOIN (
          SELECT s.result ->> 'user_id' AS user_id,
            SUM(CAST(s.result ->> 'points' AS BIGINT)) AS points
          FROM saga_log s WHERE s.step = 'redeem_points' AND s.{_HELD}
          GROUP BY s.result ->> 'user_id'
        ) h ON h.user_id = c.id
        WHERE c.initial_points <> c.points + COALESCE(h.points, 0)""",
    "I1 lines": """
        SELECT 'order ' || o.id || ' says ' || o.copies || ' copies, its lines do not'
        FROM orders o LEFT JOIN (
          SELECT order_id, SUM(quantity) AS copies FROM order_lines GROUP BY order_id
        ) l ON l.order_id = o.id
        WHERE o.copies <> COALESCE(l.copies, 0)""",
    "I1 reserved": f"""
        SELECT 'order ' || s.order_id || ' holds ' || CAST(s.result -> 'copies' AS TEXT)
          || ', which are not its lines'
        FROM saga_log s LEFT JOIN (
          SELECT order_id, JSONB_OBJECT_AGG(book_id, quantity) AS copies
          FROM order_lines GROUP BY order_id
        ) l ON l.order_id = s.order_id
        WHERE s.step = 'check_inventory' AND s.{_HELD}
          AND CAST(s.result -> 'copies' AS JSONB) IS DISTINCT FROM l.copies""",
    "I2 redeemed": f"""
        SELECT 'order ' || o.id || ' redeemed ' || (s.result ->> 'points') || ' points, its row '
          || 'says ' || o.points_redeemed
        FROM saga_log s JOIN orders o ON o.id = s.order_id AND o.attempt = s.attempt
        WHERE s.step = 'redeem_points' AND s.{_HELD}
          AND CAST(s.result ->> 'points' AS BIGINT) <> o.points_redeemed""",
    "I3 money": f"""
        SELECT 'charge ' || m.charge || ': ' || m.captured || ' captured, ' || m.refunded
          || ' refunded of order ' || o.id || ', which is ' || o.status || ' in attempt '
          || o.attempt || ' and owes ' || COALESCE(o.due_cents, 0) || '; billing '
          || COALESCE(s.state, 'not begun')
        FROM orders o JOIN ({_MONEY}) m ON m.order_id = o.id
        LEFT JOIN saga_log s ON {_BILLING}
        WHERE NOT CASE WHEN {_BY_HAND} THEN
          -- The customer has it back from elsewhere; whether it was captured may be in doubt.
          m.captured - m.refunded = CAST(s.result ->> 'amount_cents' AS BIGINT)
            OR (m.captured = m.refunded AND s.result ->> 'reference' IS NULL)
        ELSE
          (m.captured = m.refunded AND COALESCE(s.state, '') <> 'done')
          OR (m.captured = m.refunded AND o.attempt = s.attempt
            AND o.status IN ('compensating', 'compensation_failed'))
          OR (m.captured - m.refunded = o.due_cents AND o.attempt = s.attempt AND s.{_HELD}
            AND o.status NOT IN {_NOTHING_HELD})
        END""",
    "I3 refund": f"""
        SELECT 'charge ' || charge || ': ' || captured || ' captured, ' || refunded || ' refunded'
        FROM ({_MONEY}) m WHERE refunds > 0 AND refunded <> captured""",
    "I3 by hand": f"""
        SELECT 'charge ' || m.charge || ' was given back by hand, and refunded as well'
        FROM ({_MONEY}) m JOIN saga_log s ON {_BILLING}
        WHERE {_BY_HAND} AND m.refunded > 0""",
    "I3 paid": """
        SELECT 'order ' || o.id || ' is ' || o.status || ', owes ' || o.due_cents
          || ' and has no charge'
        FROM orders o LEFT JOIN ledger l ON l.order_id = o.id AND l.status = 'captured'
        WHERE o.status IN ('waiting', 'dispatching', 'dispatched')
          AND o.due_cents > 0 AND l.order_id IS NULL""",
    "I3 one charge": f"""
        SELECT 'order ' || m.order_id || ' was charged ' || m.captures || ' times and refunded '
          || m.refunds || ' times in ' || COALESCE(s.attempts, 0) || ' attempts'
        FROM (
          SELECT order_id, SUM(captures) AS captures, SUM(refunds) AS refunds
          FROM ({_MONEY}) by_charge GROUP BY order_id
        ) m LEFT JOIN (
          SELECT order_id, COUNT(*) AS attempts FROM saga_log
          WHERE step = 'bill_customer' GROUP BY order_id
        ) s ON s.order_id = m.order_id
        WHERE m.captures > COALESCE(s.attempts, 0) OR m.refunds > m.captures""",
    "I4 endings": f"""
        SELECT 'order ' || o.id || ' is ' || o.status || ' in attempt ' || o.attempt
          || ' and still holds ' || s.step || ' of attempt ' || s.attempt
        FROM orders o JOIN saga_log s ON s.order_id = o.id
        WHERE s.step IN {_COMPENSABLE} AND s.{_HELD}
          AND (o.status IN {_NOTHING_HELD} OR s.attempt <> o.attempt)""",
    "I4 forward": f"""
        SELECT 'order ' || o.id || ' is ' || o.status || ' and ' || s.step || ' is ' || s.state
        FROM orders o JOIN saga_log s ON s.order_id = o.id AND s.attempt = o.attempt
        WHERE o.status IN ('started', 'waiting', 'dispatching', 'dispatched')
          AND s.step IN {_COMPENSABLE} AND s.state IN ('undone', 'void')""",
    "I4 steps": """
        SELECT 'order ' || o.id || ' is ' || o.status || ' without ' || n.step
        FROM orders o CROSS JOIN (
          SELECT 'check_inventory' AS step UNION ALL SELECT 'calculate_total'
          UNION ALL SELECT 'redeem_points' UNION ALL SELECT 'bill_customer'
        ) n
        LEFT JOIN saga_log s ON s.order_id = o.id AND s.attempt = o.attempt AND s.step = n.step
          AND s.state = 'done'
        WHERE o.status IN ('waiting', 'dispatching', 'dispatched') AND s.step IS NULL
          AND (n.step <> 'redeem_points' OR o.redeem) AND (n.step <> 'bill_customer'
            OR o.due_cents > 0)""",
    "I4 reason": """
        SELECT 'order ' || id || ' is ' || status || ' with error ' || COALESCE(error, 'none')
        FROM orders
        WHERE (error IS NULL) = (
          status IN ('rejected', 'compensating', 'compensation_failed', 'compensated'))""",
    "I4 courier": """
        SELECT 'order ' || o.id || ' is ' || o.status || ' with '
          || COALESCE(o.courier_id, 'nobody') || ', decided was '
          || COALESCE(d.courier_id, 'nobody')
        FROM orders o LEFT JOIN decisions d
          ON d.order_id = o.id AND d.attempt = o.attempt AND d.accepted
        WHERE o.status IN ('dispatching', 'dispatched')
          AND (o.courier_id IS NULL OR d.courier_id IS NULL OR o.courier_id <> d.courier_id)""",
    "I4 one decision": """
        SELECT 'order ' || order_id || ' was decided ' || COUNT(*) || ' times in attempt '
          || attempt
        FROM decisions WHERE accepted GROUP BY order_id, attempt HAVING COUNT(*) > 1""",
    "I4 capacity": """
        SELECT 'courier ' || c.id || ' has ' || c.assigned_copies || ' of ' || c.capacity_copies
          || ' copies assigned, the orders say ' || COALESCE(o.copies, 0)
        FROM couriers c LEFT JOIN (
          SELECT courier_id, SUM(copies) AS copies FROM orders
          WHERE status = 'dispatching' GROUP BY courier_id
        ) o ON o.courier_id = c.id
        WHERE c.assigned_copies <> COALESCE(o.copies, 0)""",
    "I4 notice": """
        SELECT 'notice ' || n.key || ' went out, but order ' || o.id || ' is ' || o.status
          || ' in attempt ' || o.attempt
        FROM notifications n JOIN orders o ON o.id = n.order_id
        WHERE REPLACE(n.key, ':dispatched', '') <> n.key
          AND (o.status NOT IN ('dispatching', 'dispatched')
            OR n.key <> o.id || ':' || o.attempt || ':dispatched')""",
    "I4 handed over": """
        SELECT 'order ' || o.id || ' is dispatched without ' || n.step
        FROM orders o CROSS JOIN (
          SELECT 'prepare_order' AS step UNION ALL SELECT 'dispatch_order'
        ) n
        LEFT JOIN saga_log s ON s.order_id = o.id AND s.attempt = o.attempt AND s.step = n.step
          -- A person may answer for an order whose message the queue has not taken.
          AND (s.state = 'done' OR n.step = 'prepare_order')
        WHERE o.status = 'dispatched' AND s.step IS NULL""",
    "I4 archived": """
        SELECT 'order ' || o.id || ' is ' || o.status || ', and archived as well'
        FROM orders o JOIN archived_orders a ON a.order_id = o.id""",
    "I5 intent": f"""
        SELECT 'charge ' || m.charge || ' of order ' || m.order_id || ' has no intent'
        FROM ({_MONEY}) m LEFT JOIN saga_log s ON {_BILLING}
        WHERE s.order_id IS NULL""",
}
"""Invariants that hold between any two transactions."""

AT_REST = {
    "I4 every order ends": """
        SELECT 'order ' || id || ' is still ' || status FROM orders
        WHERE status NOT IN ('dispatched', 'rejected', 'compensated')""",
    "I3 no charge in doubt": """
        SELECT 'billing of order ' || order_id || ' is still intended' FROM saga_log
        WHERE step = 'bill_customer' AND state = 'intended'""",
    "I4 told": """
        SELECT 'order ' || o.id || ' is dispatched and nobody was told'
        FROM orders o LEFT JOIN notifications n
          ON n.key = o.id || ':' || o.attempt || ':dispatched'
        WHERE o.status = 'dispatched' AND n.key IS NULL""",
    "I4 no message is left": """
        SELECT 'message ' || id || ' was never settled' FROM order_queue WHERE dead_at IS NULL""",
}
"""Invariants that hold when nothing is under way any more."""


def violations(connection: Connection, queries: dict[str, str]) -> list[Violation]:
    """Return what is off, by the queries of ``ALWAYS`` or ``AT_REST``."""
    return [
        Violation(*row) for row in connection.exec_driver_sql(_together(tuple(queries.items())))
    ]


@lru_cache
def _together(queries: tuple[tuple[str, str], ...]) -> str:
    """Return one statement for all queries; each begins with its SELECT."""
    return "\nUNION ALL\n".join(
        query.replace("SELECT", f"SELECT '{name}' AS invariant,", 1) for name, query in queries
    )


def imbalances() -> list[str]:
    """Return everything in the settings' database that is off, one sentence each."""
    with reading() as session:
        return [found.sentence for found in violations(session.connection(), ALWAYS)]


def assert_books_balance() -> None:
    """Assert that I1 to I5 hold, as ``ALWAYS`` has them."""
    wrong = imbalances()
    assert not wrong, "\n".join(wrong)
