"""The audit: I1 to I5 over the whole database, as it was at one moment.

Each check is one query that gives a row for each subject (a book, an order, a charge) together
with the rules that such a row may break. The database does the work and the findings are streamed,
so that memory does not grow with the shop. It reads only, and takes no lock that a worker waits
for.

The rules hold between any two transactions. What is between an effect outside of the database and
its record (money captured, the answer not written down yet) is under way, and no finding.
"""
# ruff: noqa: S608  (the queries are put together from the constants below, from nothing else)

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Row, TextClause, bindparam, text
from sqlmodel import Session

from store.dialects import Dialect, sql_list
from store.messages import ASSIGNED
from store.models import (
    BEFORE_PIVOT,
    ENDED,
    GIVING_BACK,
    GOING_FORWARD,
    HOLDING,
    OrderStatus,
    StepState,
    UtcDateTime,
    utc_now,
)
from store.payments import movements_query
from tasks.points import CENTS_PER_POINT
from tasks.steps import ALWAYS, BEFORE_THE_WAIT, SEQUENCE, STEPS, UNDOS

FORGOTTEN_SECONDS = 3600
"""An order that stood still for so long is looked for by nobody: recovery comes every minute."""
UNCLAIMED_SECONDS = 36 * 3600
"""A submitted order waits for the next nightly batch, and a night may be missed."""
ROWS_AT_ONCE = 1_000
NOT_COMPARED = "The payment gateway keeps its own records; they were not compared."


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is off: which invariant it breaks, whose row, and the facts.

    A warning breaks no invariant yet, but somebody should look.
    """

    invariant: str
    subject: str
    facts: str
    is_warning: bool = False

    def __str__(self) -> str:
        """Return it as one line."""
        warning = "warning: " if self.is_warning else ""
        return f"{warning}{self.invariant}: {self.subject} {self.facts}"


class Rule(NamedTuple):
    """What a row must not be. ``facts`` is a sentence with the row's columns in braces."""

    invariant: str
    broken_if: str
    facts: str
    is_warning: bool = False


class Check(NamedTuple):
    """A query with one row for each subject, and its rules; a row is told by the first it breaks.

    ``subject`` names a row by its columns. ``kinds`` says of which type a column is, where the
    driver cannot know.
    """

    subject: str
    rows: str
    rules: Sequence[Rule]
    kinds: Mapping[str, type[UtcDateTime]] = {}


def audit(session: Session) -> Iterator[Finding]:
    """Give everything in the database that is off; nothing if all is well.

    Args:
        session: One of :func:`store.database.snapshot`, so that all checks see the same moment.
    """
    for check in checks(Dialect.of(session)):
        yield from _findings(session, check)


def forgotten_orders(session: Session) -> Iterator[Finding]:
    """Give the orders that nobody seems to move any more; a part of the audit that is cheap."""
    return _findings(session, _unfinished())


def is_compared_with_gateway() -> bool:
    """Say whether what the payment gateway took and gave back is a part of the audit."""
    return movements_query() is not None


def _findings(session: Session, check: Check) -> Iterator[Finding]:
    now = utc_now()
    rules = "\n".join(
        f"WHEN {rule.broken_if} THEN {number}" for number, rule in enumerate(check.rules)
    )
    query = (
        f"SELECT * FROM (SELECT subject.*, CASE {rules} END AS broken_rule "
        f"FROM ({check.rows}) subject) found WHERE broken_rule IS NOT NULL"
    )
    statement = with_moments(
        query,
        forgotten=now - timedelta(seconds=FORGOTTEN_SECONDS),
        unclaimed=now - timedelta(seconds=UNCLAIMED_SECONDS),
    )
    rows = session.execute(
        statement.columns(**check.kinds), execution_options={"yield_per": ROWS_AT_ONCE}
    )
    for row in rows:
        yield _finding(check, row)


def with_moments(query: str, **moments: datetime) -> TextClause:
    """Return a query with those of the moments in it that it names."""
    return text(query).bindparams(
        *(
            bindparam(name, moment, type_=UtcDateTime())
            for name, moment in moments.items()
            if f":{name}" in query
        )
    )


def _finding(check: Check, row: Row[Any]) -> Finding:
    facts = {name: "nothing" if fact is None else fact for name, fact in row._mapping.items()}
    rule = check.rules[row.broken_rule]
    return Finding(
        invariant=rule.invariant,
        subject=check.subject.format(**facts),
        facts=rule.facts.format(**facts),
        is_warning=rule.is_warning,
    )


HELD = sql_list(HOLDING)
TAKING = sql_list(list(UNDOS))
INTENDED = sql_list([step.name for step in STEPS if step.asks_outside])
REFUSABLE = sql_list([step.name for step in STEPS if step.asks_outside and step.name in UNDOS])
STATES = ", ".join(f"{name}: {{{name}}}" for name in SEQUENCE)
"""The state of each step in an order's row, for a finding."""
FORWARD = sql_list(GOING_FORWARD)
BACKWARD = sql_list(GIVING_BACK)
BILLED = sql_list([OrderStatus.WAITING, OrderStatus.DISPATCHING, OrderStatus.DISPATCHED])
ON_ITS_WAY = sql_list([OrderStatus.DISPATCHING, OrderStatus.DISPATCHED])
FAILED = sql_list([OrderStatus.REJECTED, OrderStatus.COMPENSATED, *GIVING_BACK])


def checks(sql: Dialect) -> list[Check]:
    """Return the checks, their queries in the database's words."""
    found = [
        _books(),
        _customers(sql),
        _couriers(),
        _orders(sql),
        _records(sql),
        _reservations(sql),
        _decisions(),
        _notices(),
        _unfinished(),
        _unclear_charges(),
    ]
    movements = movements_query()
    if movements is not None:
        found += [_charges(sql, movements), _unintended(movements)]
    return found


def _books() -> Check:
    return Check(
        subject="book {id}",
        rows=f"""
            SELECT b.id, b.initial_quantity, b.quantity, COALESCE(h.copies, 0) AS held
            FROM books b LEFT JOIN (
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


def _customers(sql: Dialect) -> Check:
    return Check(
        subject="customer {id}",
        rows=f"""
            SELECT c.id, c.initial_points, c.points, COALESCE(h.points, 0) AS held
            FROM customers c LEFT JOIN (
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


def _couriers() -> Check:
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


def _orders(sql: Dialect) -> Check:
    """Check each order against its lines and the records of its present attempt."""
    taken = " OR ".join(f"{step} IN {HELD}" for step in UNDOS)
    given_back = " OR ".join(f"{step} = 'undone'" for step in UNDOS)
    refused = " OR ".join(f"{step} IN ('undone', 'void')" for step in UNDOS)
    any_step = " OR ".join(f"{step} IS NOT NULL" for step in SEQUENCE)
    states = ", ".join(f"MAX(CASE WHEN step = '{s}' THEN state END) AS {s}" for s in SEQUENCE)
    return Check(
        subject="order {id}",
        rows=f"""
            SELECT o.id, o.attempt, o.status, o.redeem, o.user_id, o.copies, o.total_cents,
              o.points_redeemed, o.due_cents, o.courier_id, o.error, o.wait_until, o.run_id,
              COALESCE(l.copies, 0) AS line_copies, l.cents AS line_cents,
              d.outcome, d.courier_id AS decided_courier, r.*
            FROM orders o
            LEFT JOIN (
              SELECT order_id, SUM(quantity) AS copies, SUM(quantity * unit_price_cents) AS cents
              FROM order_lines GROUP BY order_id
            ) l ON l.order_id = o.id
            LEFT JOIN (
              SELECT order_id, attempt AS in_attempt, {states},
                MAX(CASE WHEN step = 'calculate_total'
                  THEN {sql.number("result", "total_cents")} END) AS priced_cents,
                MAX(CASE WHEN step = 'redeem_points'
                  THEN {sql.number("result", "points")} END) AS taken_points,
                MAX(CASE WHEN step = 'redeem_points'
                  THEN {sql.field("result", "user_id")} END) AS taken_from
              FROM saga_log GROUP BY order_id, attempt
            ) r ON r.order_id = o.id AND r.in_attempt = o.attempt
            LEFT JOIN decisions d ON d.order_id = o.id AND d.attempt = o.attempt AND d.accepted""",
        rules=[
            Rule(
                "I4 status",
                f"status NOT IN {sql_list(list(OrderStatus))} OR attempt < 1",
                "is {status} in attempt {attempt}, which there is not",
            ),
            Rule(
                "I1 lines",
                "copies <> line_copies OR copies < 1",
                "has {copies} copies, its lines have {line_copies}",
            ),
            Rule(
                "I4 untouched",
                f"status = 'submitted' AND ({any_step} OR run_id IS NOT NULL)",
                "is submitted, but has begun",
            ),
            Rule(
                "I4 rejected",
                f"status = 'rejected' AND ({taken} OR {given_back})",
                "is rejected, but something was taken",
            ),
            Rule(
                "I4 compensated",
                f"status = 'compensated' AND ({taken} OR NOT COALESCE({given_back}, FALSE))",
                f"is compensated; {STATES}",
            ),
            Rule(
                "I4 forward",
                f"status IN {FORWARD} AND ({refused})",
                f"is {{status}}; {STATES}",
            ),
            Rule(
                "I5 sequence",
                " OR ".join(_out_of_sequence()),
                f"has a step without the one before it; {STATES}",
            ),
            Rule(
                "I4 steps",
                f"status IN {BILLED} AND ({' OR '.join(_missing())})",
                f"is {{status}}; {STATES}",
            ),
            Rule(
                "I4 steps",
                "status = 'started' AND prepare_order IS NOT NULL",
                "is started, but a courier was asked for",
            ),
            Rule(
                "I4 dispatch",
                "(status = 'dispatched') <> (COALESCE(dispatch_order, '') = 'done') OR "
                f"(status NOT IN {ON_ITS_WAY} AND dispatch_order IS NOT NULL)",
                "is {status}; handed over: {dispatch_order}",
            ),
            Rule(
                "I4 reason",
                f"(error IS NOT NULL) <> (status IN {FAILED})",
                "is {status} with error {error}",
            ),
            Rule(
                "I4 courier",
                f"(status IN {ON_ITS_WAY}) <> (courier_id IS NOT NULL) "
                f"OR (status IN {ON_ITS_WAY} AND courier_id <> COALESCE(decided_courier, ''))",
                "is {status} with courier {courier_id}, decided was {decided_courier}",
            ),
            Rule(
                "I4 pivot",
                f"(outcome = '{ASSIGNED}') <> (status IN {ON_ITS_WAY}) "
                f"OR (outcome IS NOT NULL AND status IN {sql_list(BEFORE_PIVOT)})",
                "is {status}, but decided was {outcome}",
            ),
            Rule(
                "I4 wait",
                "status = 'waiting' AND wait_until IS NULL",
                "waits without an end",
            ),
            Rule(
                "I3 price",
                "COALESCE(total_cents, -1) <> COALESCE(priced_cents, -1) OR "
                "(priced_cents IS NOT NULL AND priced_cents <> COALESCE(line_cents, -1))",
                "total {total_cents}, recorded {priced_cents}, its lines come to {line_cents}",
            ),
            Rule(
                "I2 redeemed",
                "points_redeemed <> COALESCE(taken_points, 0) OR (redeem_points IS NOT NULL "
                "AND (NOT redeem OR COALESCE(taken_from, '') <> user_id))",
                "redeemed {points_redeemed} points of {user_id}, recorded {taken_points} of "
                "{taken_from}",
            ),
            Rule(
                "I3 due",
                "COALESCE(due_cents, -1) <> COALESCE(total_cents "
                f"- {CENTS_PER_POINT} * points_redeemed, -1) OR due_cents < 0",
                "total {total_cents}, {points_redeemed} points redeemed, due {due_cents}",
            ),
        ],
    )


def _out_of_sequence() -> Iterator[str]:
    """Yield the condition, for each step, that the last one before it is missing.

    Only steps that every order needs tell it.
    """
    before = None
    for step in STEPS:
        if before is not None:
            yield f"({step.name} IS NOT NULL AND {before} IS NULL)"
        if step.needed is ALWAYS:
            before = step.name


def _missing() -> Iterator[str]:
    """Yield the condition, for each step before the wait, that an order lacks it and needs it."""
    for step in BEFORE_THE_WAIT:
        lacks = (
            f"COALESCE({step.name}, '') <> 'done'" if step.is_awaited else f"{step.name} IS NULL"
        )
        yield f"({step.needed.sql} AND {lacks})"


def _records(sql: Dialect) -> Check:
    """Check each record of the saga log by itself."""
    # What a person has settled is booked as back, or as written off.
    copies_back = (
        f"COALESCE({sql.field('undo_result', 'written_off')}, {sql.field('undo_result', 'copies')})"
    )
    billed = sql.number("result", "amount_cents")
    money_back = f"COALESCE({sql.number('undo_result', 'amount_cents')}, -1)"
    settled = f"{sql.field('undo_result', 'settled_by')} IS NOT NULL"
    points_back = (
        f"COALESCE({sql.number('undo_result', 'written_off')}, "
        f"{sql.number('undo_result', 'points')})"
    )
    return Check(
        subject="order {order_id}",
        rows="""
            SELECT s.*, o.attempt AS order_attempt, o.status, o.due_cents
            FROM saga_log s JOIN orders o ON o.id = s.order_id""",
        rules=[
            Rule(
                "I5 record",
                f"step NOT IN {sql_list(SEQUENCE)} OR state NOT IN {sql_list(list(StepState))} "
                f"OR (state = 'undone' AND step NOT IN {TAKING}) "
                f"OR (state = 'void' AND step NOT IN {REFUSABLE}) "
                f"OR (state = 'intended' AND step NOT IN {INTENDED})",
                "{step} of attempt {attempt} is {state}, which cannot be",
            ),
            Rule(
                "I5 attempt",
                "attempt > order_attempt OR attempt < 1",
                "has {step} of attempt {attempt}, but is in attempt {order_attempt}",
            ),
            Rule(
                "I4 endings",
                f"attempt < order_attempt AND step IN {TAKING} AND state IN {HELD}",
                "is in attempt {order_attempt} and still holds {step} of attempt {attempt}",
            ),
            Rule(
                "I4 pivot",
                "attempt < order_attempt AND step = 'dispatch_order'",
                "is in attempt {order_attempt}, but attempt {attempt} was handed over",
            ),
            Rule(
                "I5 undo",
                "(state = 'undone') <> (undone_at IS NOT NULL) "
                # None is written by SQLAlchemy as JSON's own null.
                "OR (state = 'undone') <> (COALESCE(CAST(undo_result AS TEXT), 'null') <> 'null')",
                "{step} of attempt {attempt} is {state}, undone at {undone_at}",
            ),
            Rule(
                "I1 given back",
                "step = 'check_inventory' AND state = 'undone' AND "
                f"COALESCE({copies_back}, '') <> {sql.field('result', 'copies')}",
                "took {result} in attempt {attempt}, gave back {undo_result}",
            ),
            Rule(
                "I2 given back",
                "step = 'redeem_points' AND state = 'undone' AND "
                f"COALESCE({points_back}, -1) <> {sql.number('result', 'points')} "
                # Nobody is there to get them where the customer is gone; the reason says so.
                f"AND NOT ({sql.field('undo_result', 'reason')} IS NOT NULL AND {points_back} = 0)",
                "took {result} in attempt {attempt}, gave back {undo_result}",
            ),
            Rule(
                "I3 recorded",
                f"step = 'bill_customer' AND ({billed} IS NULL "
                f"OR (attempt = order_attempt AND {billed} <> COALESCE(due_cents, -1)))",
                "billed {result} in attempt {attempt}, due are {due_cents}",
            ),
            Rule(
                "I3 recorded",
                f"step = 'bill_customer' AND state = 'undone' AND {money_back} <> {billed} "
                # Nothing is given back where nothing was captured, but a person gives back all.
                f"AND ({money_back} <> 0 OR {settled})",
                "billed {result} in attempt {attempt}, gave back {undo_result}",
            ),
        ],
    )


def _reservations(sql: Dialect) -> Check:
    """Check that what an order has reserved is what its lines ask for, title by title."""
    reserved = sql.number_at("s.result", "copies", "l.book_id")
    return Check(
        subject="order {order_id}",
        rows=f"""
            SELECT s.order_id, s.attempt, MAX(CAST(s.result AS TEXT)) AS result,
              MAX({sql.size("s.result", "copies")}) AS titles, COUNT(l.book_id) AS lines,
              SUM(CASE WHEN {reserved} = l.quantity THEN 1 ELSE 0 END) AS lines_reserved
            FROM saga_log s LEFT JOIN order_lines l ON l.order_id = s.order_id
            WHERE s.step = 'check_inventory' GROUP BY s.order_id, s.attempt""",
        rules=[
            Rule(
                "I1 reserved",
                "COALESCE(titles, 0) <> lines OR lines_reserved <> lines",
                "reserved {result} in attempt {attempt}, which are not its {lines} lines",
            )
        ],
    )


def _decisions() -> Check:
    return Check(
        subject="order {order_id}",
        rows="""
            SELECT d.*, o.attempt AS order_attempt
            FROM decisions d JOIN orders o ON o.id = d.order_id WHERE d.accepted""",
        rules=[
            Rule(
                "I4 decision",
                f"(outcome = '{ASSIGNED}') <> (courier_id IS NOT NULL) OR attempt > order_attempt",
                "is in attempt {order_attempt}; decided in attempt {attempt} was {outcome} with "
                "courier {courier_id}",
            ),
            Rule(
                "I4 pivot",
                f"attempt < order_attempt AND outcome = '{ASSIGNED}'",
                "is in attempt {order_attempt}, but {courier_id} took attempt {attempt}",
            ),
        ],
    )


def _notices() -> Check:
    """Check that nobody was told of a dispatch that there was not, where notices are a table."""
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


def _charges(sql: Dialect, movements: str) -> Check:
    """Check what the gateway took and gave back against what is recorded of it.

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


def _unintended(movements: str) -> Check:
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


def _unfinished() -> Check:
    """Look for orders that nobody moves any more; none of the invariants is broken by it yet."""
    return Check(
        subject="order {id}",
        rows=f"""
            SELECT o.id, o.status, o.updated_at, o.wait_until,
              EXISTS (
                SELECT 1 FROM saga_log s WHERE s.order_id = o.id AND s.at >= :forgotten
              ) OR EXISTS (
                SELECT 1 FROM batches b WHERE b.run_id = o.run_id AND b.moved_at >= :forgotten
              ) AS has_moved
            FROM orders o WHERE o.status NOT IN {sql_list(ENDED)}""",
        rules=[
            Rule(
                "I4 forgotten",
                "status = 'submitted' AND updated_at < :unclaimed",
                "is submitted since {updated_at:%Y-%m-%d %H:%M} UTC and was never begun",
                is_warning=True,
            ),
            Rule(
                "I4 forgotten",
                "status = 'waiting' AND wait_until < :forgotten",
                "waits on, but its wait was over at {wait_until:%Y-%m-%d %H:%M} UTC",
                is_warning=True,
            ),
            Rule(
                "I4 forgotten",
                "status NOT IN ('submitted', 'waiting') AND updated_at < :forgotten "
                "AND NOT has_moved",
                "is {status} and has not moved since {updated_at:%Y-%m-%d %H:%M} UTC",
                is_warning=True,
            ),
        ],
        kinds={"updated_at": UtcDateTime, "wait_until": UtcDateTime},
    )


def _unclear_charges() -> Check:
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
        kinds={"at": UtcDateTime},
    )
