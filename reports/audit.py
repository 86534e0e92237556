"""The audit of I1 to I5 over one snapshot of the database.

Each check is one query that gives a row for each subject (a book, an order, a charge) together
with the rules that such a row may break. The database does the work and the findings are streamed,
so that memory does not grow with the shop. It reads only, and takes no lock that a worker waits
for.

The rules hold between any two transactions. What is between an effect outside of the database and
its record (money captured, the answer not written down yet) is under way, and no finding.
"""
# ruff: noqa: S608  (the queries are put together from the code's own constants alone)

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, TextClause, bindparam, text
from sqlmodel import Session

from reports import book_rules, order_rules
from reports.checkpoint import ALL_ORDERS, narrow
from reports.rules import Check
from store.checkpoint import AuditCheckpoint
from store.models import UtcDateTime, utc_now
from store.partners import movements_query

FORGOTTEN_SECONDS = 3600
"""An order that stood still for so long is looked for by nobody: recovery comes every minute."""
UNCLAIMED_SECONDS = 36 * 3600
"""A submitted order waits for the next nightly batch, and a night may be missed."""
ROWS_AT_ONCE = 1_000
NOT_COMPARED = "The payment gateway keeps its own records; they were not compared."


@dataclass(frozen=True, slots=True)
class Finding:
    """A broken invariant or a warning, with its row and facts.

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


def audit(session: Session, since: AuditCheckpoint | None = None) -> Iterator[Finding]:
    """Yield all findings and warnings of the database.

    Args:
        session: One of :func:`store.database.snapshot`, so that all checks see the same moment.
            It serves one audit.
        since: The last clean audit, to check only orders that have changed since, and all books,
            customers and couriers. None checks all orders.
    """
    if since is not None:
        narrow(session, since)
    counted_before = "" if since else ALL_ORDERS
    for check in checks():
        yield from _findings(session, check, counted_before)


def forgotten_orders(session: Session) -> Iterator[Finding]:
    """Yield warnings of orders that no run moves any more.

    It is a cheap part of the audit.
    """
    return _findings(session, order_rules.unfinished())


def is_compared_with_gateway() -> bool:
    """Return whether the audit includes the payment gateway's own records."""
    return movements_query() is not None


def _findings(session: Session, check: Check, counted_before: str = "") -> Iterator[Finding]:
    now = utc_now()
    rules = "\n".join(
        f"WHEN {rule.broken_if} THEN {number}" for number, rule in enumerate(check.rules)
    )
    query = (
        f"{counted_before} "
        f"SELECT * FROM (SELECT subject.*, CASE {rules} END AS broken_rule "
        f"FROM ({check.rows}) subject) found WHERE broken_rule IS NOT NULL"
    )
    statement = with_moments(
        query,
        forgotten=now - timedelta(seconds=FORGOTTEN_SECONDS),
        unclaimed=now - timedelta(seconds=UNCLAIMED_SECONDS),
    )
    rows = session.execute(statement, execution_options={"yield_per": ROWS_AT_ONCE})
    for row in rows:
        yield _finding(check, row)


def with_moments(query: str, **moments: datetime) -> TextClause:
    """Return a query with its named moments bound."""
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


def checks() -> list[Check]:
    """Return the checks."""
    found = [
        book_rules.books(),
        book_rules.customers(),
        book_rules.couriers(),
        order_rules.orders(),
        order_rules.records(),
        order_rules.reservations(),
        order_rules.decisions(),
        book_rules.notices(),
        book_rules.archived(),
        order_rules.unfinished(),
        book_rules.unclear_charges(),
    ]
    movements = movements_query()
    if movements is not None:
        found += [book_rules.charges(movements), book_rules.unintended(movements)]
    return found
