"""Whether the report on sales agrees with the ledger and the books, to the cent.

The expected sums are read from the tables by other queries than the report's. A charge in doubt is
in none of them; a refund that is not recorded yet must not be there.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import get_args

from sqlalchemy import text
from sqlmodel import Session

from reports.attempts import Period, read_attempts
from reports.sales import COPIES, COUNTS, SHARED, By, Sales, sales

EVER = Period(None, None, "UTC")
_LEDGER = """
    SELECT l.currency, CASE l.kind WHEN 'capture' THEN 'captured_cents' ELSE 'refunded_cents' END,
      SUM(l.amount_cents)
    FROM ledger l JOIN saga_log s ON s.step = 'bill_customer' AND s.state <> 'intended'
      AND s.order_id || ':' || s.attempt = REPLACE(l.key, ':' || 'refund', '')
    WHERE l.status IN ('captured', 'refunded') GROUP BY 1, 2"""
_BY_HAND = """
    SELECT l.currency, CAST(s.undo_result ->> 'amount_cents' AS BIGINT) AS cents,
      l.status = 'captured' AS is_captured
    FROM saga_log s JOIN ledger l ON l.key = s.order_id || ':' || s.attempt
    WHERE s.step = 'bill_customer' AND s.undo_result ->> 'settled_by' IS NOT NULL"""


def expected_money(session: Session) -> dict[tuple[str, str], int]:
    """The ledger's captures and refunds by currency, with what people have refunded by hand.

    A charge that was settled by hand while in doubt counts as captured: a person gave it back.
    """
    money: Counter[tuple[str, str]] = Counter()
    for currency, name, cents in session.execute(text(_LEDGER)):
        money[currency, name] += int(cents)
    for currency, cents, is_captured in session.execute(text(_BY_HAND)):
        money[currency, "refunded_cents"] += cents
        money[currency, "by_hand_cents"] += cents
        money[currency, "captured_cents"] += 0 if is_captured else cents
    return dict(+money)


def added_up(rows: Iterable[Sales], names: Iterable[str]) -> dict[tuple[str, str], int]:
    """The sums of the rows by currency and name, without those of nothing."""
    sums: Counter[tuple[str, str]] = Counter()
    for row in rows:
        sums.update({(row.currency, name): row.amounts[name] for name in names})
    return dict(+sums)


def disagreements(session: Session, grouped_by: Sequence[By] = get_args(By)) -> list[str]:
    """What the report and the export say otherwise than the ledger, the orders, and each other."""
    found = []
    money = ("captured_cents", "refunded_cents", "by_hand_cents")
    by_day = list(sales(session, "day", EVER))
    expected = expected_money(session)
    for by in grouped_by:
        rows = list(sales(session, by, EVER))
        if (sums := added_up(rows, money)) != expected:
            found.append(f"by {by} {sums}, in the ledger {expected}")
        additive = [*COPIES, *SHARED, *(() if by == "title" else COUNTS)]
        if (sums := added_up(rows, additive)) != added_up(by_day, additive):
            found.append(f"by {by} {sums}, by day {added_up(by_day, additive)}")
    exported: Counter[tuple[str, str]] = Counter()
    for row in read_attempts(session, EVER):
        exported.update({(row.currency, name): row._mapping[name] for name in SHARED})
    if +exported != added_up(by_day, SHARED):
        found.append(f"exported {+exported}, by day {added_up(by_day, SHARED)}")
    return [*found, *_of_orders(session, by_day)]


def _of_orders(session: Session, by_day: list[Sales]) -> list[str]:
    copies, dispatched, orders, unfinished = session.execute(
        text(
            "SELECT COALESCE(SUM(copies) FILTER (WHERE status = 'dispatched'), 0), "
            "COUNT(*) FILTER (WHERE status = 'dispatched'), COUNT(*), "
            "COUNT(*) FILTER (WHERE status NOT IN ('dispatched', 'rejected', 'compensated')) "
            "FROM orders"
        )
    ).one()
    sums = {name: sum(row.amounts[name] for row in by_day) for name in (*COUNTS, *COPIES)}
    ended = sums["dispatched"] + sums["failed"]
    holds = {
        f"{sums['copies']} copies, dispatched were {copies}": sums["copies"] == copies,
        f"{sums['dispatched']} dispatched, not {dispatched}": sums["dispatched"] == dispatched,
        f"{sums['orders']} orders, not {orders}": sums["orders"] == orders,
        f"{sums} and {unfinished} unfinished": sums["orders"] + sums["retried"]
        == ended + unfinished,
        "failures without why": all(sum(r.why.values()) == r.amounts["failed"] for r in by_day),
    }
    return [sentence for sentence, is_so in holds.items() if not is_so]
