"""The audit's rules of orders, from their steps to their endings."""
# ruff: noqa: S608  (the queries are put together from the code's own constants alone)

from collections.abc import Iterator

from reports.rules import (
    BILLED,
    EXPLAINED,
    FORWARD,
    HELD,
    INTENDED,
    ON_ITS_WAY,
    REFUSABLE,
    STATES,
    TAKING,
    Check,
    Rule,
)
from store import sql
from store.messages import ASSIGNED
from store.models import BEFORE_PIVOT, ENDED, OrderStatus, StepState
from store.sql import sql_list
from tasks.points import CENTS_PER_POINT
from tasks.steps import ALWAYS, BEFORE_THE_WAIT, SEQUENCE, STEPS, UNDOS


def orders() -> Check:
    """Check each order against its lines and present attempt's records."""
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
        rules=[*_rules_of_status(), *_rules_of_steps(), *_rules_of_ending(), *_rules_of_amounts()],
    )


def _rules_of_status() -> list[Rule]:
    taken = " OR ".join(f"{step} IN {HELD}" for step in UNDOS)
    given_back = " OR ".join(f"{step} = 'undone'" for step in UNDOS)
    refused = " OR ".join(f"{step} IN ('undone', 'void')" for step in UNDOS)
    any_step = " OR ".join(f"{step} IS NOT NULL" for step in SEQUENCE)
    return [
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
        Rule("I4 forward", f"status IN {FORWARD} AND ({refused})", f"is {{status}}; {STATES}"),
    ]


def _rules_of_steps() -> list[Rule]:
    return [
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
    ]


def _rules_of_ending() -> list[Rule]:
    return [
        Rule(
            "I4 reason",
            f"(error IS NOT NULL) <> (status IN {EXPLAINED})",
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
        Rule("I4 wait", "status = 'waiting' AND wait_until IS NULL", "waits without an end"),
    ]


def _rules_of_amounts() -> list[Rule]:
    return [
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
    ]


def _out_of_sequence() -> Iterator[str]:
    """Yield each step's condition that the one before it is missing.

    Only steps that every order needs tell it.
    """
    before = None
    for step in STEPS:
        if before is not None:
            yield f"({step.name} IS NOT NULL AND {before} IS NULL)"
        if step.needed is ALWAYS:
            before = step.name


def _missing() -> Iterator[str]:
    """Yield each step's condition that an order needs and lacks it."""
    for step in BEFORE_THE_WAIT:
        lacks = (
            f"COALESCE({step.name}, '') <> 'done'" if step.is_awaited else f"{step.name} IS NULL"
        )
        yield f"({step.needed.sql} AND {lacks})"


def records() -> Check:
    """Check each record of the saga log by itself."""
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
                "OR (state = 'undone') <> (COALESCE(json_typeof(undo_result), 'null') <> 'null')",
                "{step} of attempt {attempt} is {state}, undone at {undone_at}",
            ),
            *_rules_of_what_was_given_back(),
        ],
    )


def _rules_of_what_was_given_back() -> list[Rule]:
    """Return the rules of a step's result against its undo's."""
    # What a person has settled is booked as back, or as written off.
    copies_back = (
        f"COALESCE({sql.value('undo_result', 'written_off')}, {sql.value('undo_result', 'copies')})"
    )
    billed = sql.number("result", "amount_cents")
    money_back = f"COALESCE({sql.number('undo_result', 'amount_cents')}, -1)"
    settled = f"{sql.field('undo_result', 'settled_by')} IS NOT NULL"
    points_back = (
        f"COALESCE({sql.number('undo_result', 'written_off')}, "
        f"{sql.number('undo_result', 'points')})"
    )
    return [
        Rule(
            "I1 given back",
            "step = 'check_inventory' AND state = 'undone' AND "
            f"COALESCE({copies_back}, 'null') <> {sql.value('result', 'copies')}",
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
    ]


def reservations() -> Check:
    """Check that an order's reserved copies match its lines by title."""
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


def decisions() -> Check:
    """Check each accepted decision against its order."""
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


def unfinished() -> Check:
    """Warn of unfinished orders that no run moves any more.

    No invariant is broken by them yet.
    """
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
    )
