"""The audit's rules about stock, points, couriers, notices and money."""
# ruff: noqa: S608  (the queries are put together from the code's own constants alone)

from reports.rules import BACKWARD, HELD, Check, Rule
from store import sql


def books() -> Check:
    """Check each book's stock against what orders hold."""
    return Check(
        subject="book {id}",
        rows=f"""
            SELECT b.id, b.initial_quantity, b.quantity,
              COALESCE(h.copies, 0) + COALESCE(c.copies, 0) AS held
            FROM books b LEFT JOIN checkpoint_copies c ON c.book_id = b.id LEFT JOIN (
              SELECT l.book_id, SUM(l.quantity) AS copies
              FROM saga_log s JOIN order_lines l ON l.order_id = s.order_id
              WHERE s.step = 'check_inventory' AND s.state IN {HELD} GROUP BY l.book_id
            ) h ON h.book_id = b.id""",
        rules=[
            Rule(
                "I1 stock",
                "initial_quantity <> quantity + held",
                "{initial_quantity} copies at first, {quantity} now, {held} held or sold",
            )
        ],
    )


def customers() -> Check:
    """Check each customer's points against what orders hold."""
    return Check(
        subject="customer {id}",
        rows=f"""
            SELECT c.id, c.initial_points, c.points,
              COALESCE(h.points, 0) + COALESCE(p.points, 0) AS held
            FROM customers c LEFT JOIN checkpoint_points p ON p.customer_id = c.id LEFT JOIN (
              SELECT {sql.field("result", "user_id")} AS user_id,
                SUM({sql.number("result", "points")}) AS points
              FROM saga_log WHERE step = 'redeem_points' AND state IN {HELD}
              GROUP BY {sql.field("result", "user_id")}
            ) h ON h.user_id = c.id""",
        rules=[
            Rule(
                "I2 points",
                "initial_points <> points + held",
                "{initial_points} points at first, {points} now, {held} held or spent",
            )
        ],
    )


def couriers() -> Check:
    """Check each courier's capacity against its orders."""
    return Check(
        subject="courier {id}",
        rows="""
            SELECT c.id, c.capacity_copies, c.assigned_copies, COALESCE(o.copies, 0) AS carried
            FROM couriers c LEFT JOIN (
              SELECT courier_id, SUM(copies) AS copies FROM orders
              WHERE status = 'dispatching' GROUP BY courier_id
            ) o ON o.courier_id = c.id""",
        rules=[
            Rule(
                "I4 capacity",
                "assigned_copies <> carried OR carried > capacity_copies",
                "{assigned_copies} of {capacity_copies} copies assigned, its orders have {carried}",
            )
        ],
    )


def notices() -> Check:
    """Check that each dispatch notice in the table has its saga record."""
    return Check(
        subject="order {order_id}",
        rows="""
            SELECT n.key, n.order_id, s.state, o.status
            FROM notifications n
            LEFT JOIN saga_log s ON s.step = 'dispatch_order' AND s.order_id = n.order_id
              AND n.key = s.order_id || ':' || s.attempt || ':' || 'dispatched'
            LEFT JOIN orders o ON o.id = n.order_id
            WHERE n.key LIKE '%dispatched'""",
        rules=[
            Rule(
                "I5 notice",
                "state IS NULL",
                "is {status}, but the notice {key} went out without a record before it",
            )
        ],
    )


def charges(movements: str) -> Check:
    """Compare the gateway's captures and refunds with the saga's records.

    A charge of another gateway, from before it was changed, has a reference of another kind.
    """
    reference = sql.field("s.result", "reference")
    return Check(
        subject="charge {charge}",
        rows=f"""
            SELECT s.order_id || ':' || s.attempt AS charge, s.state, o.status,
              s.attempt = o.attempt AS is_present, o.currency,
              {sql.number("s.result", "amount_cents")} AS amount,
              {sql.number("s.undo_result", "amount_cents")} AS given_back,
              {sql.field("s.undo_result", "settled_by")} AS settled_by,
              COALESCE(m.captures, 0) AS captures, COALESCE(m.captured, 0) AS captured,
              COALESCE(m.refunds, 0) AS refunds, COALESCE(m.refunded, 0) AS refunded,
              m.lowest_currency, m.highest_currency
            FROM saga_log s JOIN orders o ON o.id = s.order_id
            LEFT JOIN (
              SELECT charge,
                SUM(CASE WHEN kind = 'capture' THEN 1 ELSE 0 END) AS captures,
                SUM(CASE WHEN kind = 'capture' THEN amount_cents ELSE 0 END) AS captured,
                SUM(CASE WHEN kind = 'refund' THEN 1 ELSE 0 END) AS refunds,
                SUM(CASE WHEN kind = 'refund' THEN amount_cents ELSE 0 END) AS refunded,
                MIN(currency) AS lowest_currency, MAX(currency) AS highest_currency
              FROM ({movements}) of_gateway WHERE moved GROUP BY charge
            ) m ON m.charge = s.order_id || ':' || s.attempt
            WHERE s.step = 'bill_customer'
              AND COALESCE({reference}, s.order_id || ':' || s.attempt)
                = s.order_id || ':' || s.attempt""",
        rules=[
            Rule(
                "I3 one charge",
                "captures > 1 OR refunds > 1",
                "captured {captures} times, refunded {refunds} times",
            ),
            Rule(
                "I3 amount",
                "amount IS NULL OR captured NOT IN (0, amount) OR refunded NOT IN (0, captured) "
                "OR (is_present AND COALESCE(lowest_currency, currency) <> currency) "
                "OR COALESCE(highest_currency, '') <> COALESCE(lowest_currency, '')",
                "recorded {amount}, captured {captured}, refunded {refunded} {highest_currency}",
            ),
            Rule(
                "I3 money",
                "(state = 'done' AND captured <> amount) OR (state = 'void' AND captured > 0)",
                "billing is {state}: {captured} captured of {amount}, {refunded} refunded",
            ),
            Rule(
                "I3 money",
                # Given back, and not recorded yet, is it only while the order is giving back.
                f"refunded > 0 AND state <> 'undone' AND NOT (is_present AND status IN {BACKWARD})",
                "{refunded} refunded of an order that is {status}, whose billing is {state}",
            ),
            Rule(
                "I3 given back",
                "state = 'undone' AND settled_by IS NULL "
                "AND (refunded <> captured OR COALESCE(given_back, -1) <> refunded)",
                "{captured} captured, {refunded} refunded, recorded as given back {given_back}",
            ),
            Rule(
                "I3 given back",
                "settled_by IS NOT NULL AND refunded > 0",
                "{settled_by} gave back {given_back} by hand, and {refunded} were refunded as well",
            ),
        ],
    )


def unintended(movements: str) -> Check:
    """Look for movements of money without an intent."""
    return Check(
        subject="charge {charge}",
        rows=f"""
            SELECT m.charge, m.order_id, m.kind, m.amount_cents, s.state
            FROM ({movements}) m LEFT JOIN saga_log s ON s.step = 'bill_customer'
              AND s.order_id = m.order_id AND m.charge = s.order_id || ':' || s.attempt""",
        rules=[
            Rule(
                "I5 intent",
                "state IS NULL",
                "a {kind} of {amount_cents} for order {order_id} without a record before it",
            )
        ],
    )


def archived() -> Check:
    """Look for orders that are archived and in the tables as well."""
    return Check(
        subject="order {id}",
        rows="""
            SELECT o.id, o.status, a.archive_id
            FROM orders o JOIN archived_orders a ON a.order_id = o.id""",
        rules=[
            Rule(
                "I4 archived",
                "archive_id IS NOT NULL",
                "is {status}, and is archived in archive {archive_id} as well",
            )
        ],
    )


def unclear_charges() -> Check:
    """Look for charges whose outcome has been unknown for long."""
    return Check(
        subject="charge {charge}",
        rows="""
            SELECT order_id || ':' || attempt AS charge, at FROM saga_log
            WHERE step = 'bill_customer' AND state = 'intended'""",
        rules=[
            Rule(
                "I5 unclear",
                "at < :forgotten",
                "asked for at {at:%Y-%m-%d %H:%M} UTC, and nobody knows yet whether it was paid",
                is_warning=True,
            )
        ],
    )
