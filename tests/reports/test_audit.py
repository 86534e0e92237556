"""The audit finds whatever breaks an invariant, names it, and finds nothing in a shop that is well.

What is off is put into the database in a transaction that is rolled back, so that one busy shop
serves all of them.
"""

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import pytest
from sqlalchemy import bindparam, text, update
from sqlmodel import Session, SQLModel, col

from orders.archive import archive_orders
from orders.intake import submit_orders
from reports.audit import UNCLAIMED_SECONDS, Finding, audit, checks
from seed.catalogue import EDUARDO_SANTANA, JOHN_DOE, STRIPED_PAJAMAS, TEN_X_RULE
from store.checkpoint import AuditCheckpoint
from store.database import engine, snapshot, transaction
from store.embedded_gateway import EmbeddedGateway
from store.errors import BillingError, BookOutOfStock, CompensationFailed
from store.messages import NO_COURIER, CourierAnswer
from store.models import Book, Customer, Order, SagaRecord, UtcDateTime, utc_now
from store.payments import Charge
from store.settings import settings
from tasks.billing import bill_customer, refund_customer
from tasks.couriers import record_answer
from tests.shop import (
    LONG_AGO,
    NOWHERE,
    add_book,
    add_customer,
    an_order,
    carry_on,
    end_at,
    end_run,
    give_back,
    place,
    placed,
    points,
    status,
    stock,
)

LATE = CourierAnswer(outcome=NO_COURIER, reason="too late", answered_by="Ada")


class AnswerLost(Exception):
    """The gateway has done its work, and the process dies before it hears of it."""


def busy_shop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put orders in every status, at every step, with retries, failed undos and late answers."""
    submit_orders([an_order("submitted")])
    place("begun")
    placed("reserved", "check_inventory", 2)
    placed("priced", "calculate_total", items={TEN_X_RULE: 1, STRIPED_PAJAMAS: 2})
    placed("redeemed", "redeem_points", 2, user_id=JOHN_DOE, redeem=True)
    placed("billed", "bill_customer", 2)
    placed("waiting", "prepare_order", 2)
    placed("dispatching", "find_couriers", 2)
    placed("dispatched", "dispatch_order", 3, redeem=True)
    placed("paid-in-points", "dispatch_order", 1, redeem=True)
    placed("answered-late", "dispatch_order", 2)
    record_answer("answered-late", LATE)
    place("rejected", 100_000)
    with pytest.raises(BookOutOfStock):
        carry_on(["rejected"])
    placed("cancelled", "prepare_order", 2)
    end_run("cancelled")
    place("declined", 50, redeem=True, payment_method="pm_card_chargeDeclined")
    with pytest.raises(BillingError):
        carry_on(["declined"])
    give_back("declined")
    placed("second-attempt", "prepare_order", 2)
    record_answer("second-attempt", LATE)
    give_back("second-attempt")
    place("second-attempt", 2)
    carry_on(["second-attempt"])

    right_capture, right_refund = EmbeddedGateway.capture, EmbeddedGateway.refund

    def capture_unheard(ledger: EmbeddedGateway, charges: list[Charge]) -> Any:
        right_capture(ledger, charges)
        raise AnswerLost

    def refund_unheard(ledger: EmbeddedGateway, charges: list[Charge]) -> Any:
        right_refund(ledger, charges)
        raise AnswerLost

    placed("captured-unheard", "calculate_total", 2)
    with monkeypatch.context() as fault:
        fault.setattr(EmbeddedGateway, "capture", capture_unheard)
        with pytest.raises(AnswerLost):
            bill_customer.fn(["captured-unheard"])
    placed("refunded-unheard", "prepare_order", 2)
    record_answer("refunded-unheard", LATE)
    for order_id in ("failed-undo", "refused"):
        placed(order_id, "prepare_order", 2)
        record_answer(order_id, LATE)
    with monkeypatch.context() as fault:
        fault.setattr(EmbeddedGateway, "refund", refund_unheard)
        with pytest.raises(AnswerLost):
            refund_customer.fn(["refunded-unheard"])
        with pytest.raises(CompensationFailed):
            give_back("failed-undo")


@pytest.fixture
def busy(database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Session]:
    """A session on a busy shop in which nothing is off; what is done in it is rolled back."""
    placed("archived", "dispatch_order", 2, redeem=True)
    end_at(LONG_AGO, "archived")
    assert len(list(archive_orders(str(tmp_path), timedelta(days=365)))) == 1
    busy_shop(monkeypatch)
    with Session(engine(settings().database_url)) as session:
        yield session
    # The books of the tests know nothing of a refund that is given and not recorded yet.
    give_back("refunded-unheard", "failed-undo", "refused")


def test_a_record_that_was_mended_by_hand_with_other_spaces_is_no_finding(busy: Session) -> None:
    for change in (
        "result = CAST(replace(result::text, ':', ' : ') AS JSON)",
        "undo_result = CAST(replace(undo_result::text, ':', ' :  ') AS JSON)",
    ):
        busy.execute(text(f"UPDATE saga_log SET {change}"))  # noqa: S608  (the test's own words)
        assert found_in(busy) == set()


class Off(NamedTuple):
    """A row that is changed to what it must not be, and what the audit says of it."""

    table: str
    column: str
    change: str
    found: str


def all_off() -> list[Off]:
    """The cases of audit_cases.txt: pairs of lines, a change and what is found then."""
    names = {"BOOK": TEN_X_RULE, "OTHER_BOOK": STRIPED_PAJAMAS}
    users = {"USER": EDUARDO_SANTANA, "OTHER_USER": JOHN_DOE}
    cases = Template(Path(__file__).with_name("audit_cases.txt").read_text())
    lines = cases.substitute(names | users).splitlines()
    told = [line.strip() for line in lines if line and not line.startswith("#")]
    return [
        Off(table=change.split()[0], column=change.split()[2], change=change, found=found)
        for change, found in zip(told[::2], told[1::2], strict=True)
    ]


OFF = all_off()
NOT_COVERED = {
    "books": {"title", "price_cents"},
    "customers": {"name", "payment_method"},
    "couriers": {"name", "capacity_copies"},
    "orders": {
        *("id", "payment_method", "request", "message", "continuations"),
        *("announced_attempt", "reminded_attempt", "created_at", "wait", "submitted_by"),
    },
    "attempts": {
        *("order_id", "asked_by", "attempt", "began_at"),
        *("previous_status", "previous_error", "previous_currency", "previous_ended_at"),
    },
    "saga_log": {"undo_tries", "undo_error"},
    "decisions": {"id", "reason", "decided_by", "decided_at"},
    "notifications": {"subject", "body", "data", "published_at"},
    "ledger": {"payment_method", "tries", "at"},
    "archives": {
        *("id", "location", "month", "from_at", "until_at", "planned_at", "written_at", "sha256"),
        *("sums", "accepted_from", "verified_at", "deleted_at", "archived"),
    },
    "archived_orders": {"archive_id"},
    "batches": {"run_id", "source", "wait", "started_at", "moved_at", "listens_until"},
    "audit_checkpoint": {"id", "before", "audited_at", "full_at"},
    "checkpoint_copies": {"book_id", "copies"},
    "checkpoint_points": {"customer_id", "points"},
    "order_queue": {
        *("id", "body", "visible_at", "receive_count", "sent_at", "dead_at", "dead_reason"),
    },
}
"""Columns of which the invariants say nothing, or that the database itself does not let be wrong
(an order's id has its records, a courier's capacity what is assigned)."""


YESTERDAY = utc_now() - timedelta(days=1)
ALL_CHANGED = AuditCheckpoint(before=YESTERDAY, audited_at=YESTERDAY, full_at=YESTERDAY)
"""With it an audit of what has changed reads every order of the busy shop."""


def found_in(session: Session, since: AuditCheckpoint | None = None) -> set[str]:
    return {f"{finding.invariant}: {finding.subject}" for finding in audit(session, since)}


def test_nothing_is_found_in_a_busy_shop(busy: Session) -> None:
    with snapshot() as session:
        assert list(audit(session)) == []


def settle(session: Session, step: str, **undo_result: object) -> None:
    """Record an undo of the order that was refused a courier as one that a person has settled."""
    session.execute(
        update(SagaRecord)
        .where(col(SagaRecord.order_id) == "refused", col(SagaRecord.step) == step)
        .values(
            state="undone",
            undone_at=utc_now(),
            undo_result={**undo_result, "settled_by": "Ada", "reason": "seen to"},
        )
    )


def test_what_a_person_has_settled_and_booked_is_no_finding(busy: Session) -> None:
    settle(busy, "bill_customer", amount_cents=40_00)
    settle(busy, "check_inventory", copies={}, written_off={TEN_X_RULE: 2})
    busy.execute(
        update(Book)
        .where(col(Book.id) == TEN_X_RULE)
        .values(initial_quantity=col(Book.initial_quantity) - 2)
    )
    busy.execute(text("UPDATE orders SET status = 'compensated' WHERE id = 'refused'"))
    assert list(audit(busy)) == []


def test_what_is_settled_otherwise_than_it_was_taken_is_found(busy: Session) -> None:
    settle(busy, "bill_customer", amount_cents=39_00)
    settle(busy, "check_inventory", copies={}, written_off={TEN_X_RULE: 1})
    assert found_in(busy) >= {"I3 recorded: order refused", "I1 given back: order refused"}
    busy.rollback()
    settle(busy, "bill_customer", amount_cents=40_00)
    busy.execute(
        text("UPDATE ledger SET key = 'refused:1:refund' WHERE key = 'failed-undo:1:refund'")
    )
    assert "I3 given back: charge refused:1" in found_in(busy)


def test_the_audit_sees_one_moment_and_holds_up_nobody(busy: Session) -> None:
    with snapshot() as session:
        findings = audit(session)
        assert session.scalar(text("SELECT COUNT(*) FROM orders WHERE id = 'meanwhile'")) == 0
        placed("meanwhile", "dispatch_order", 2)
        carry_on(["waiting"], after="prepare_order")
        assert list(findings) == []
        assert session.scalar(text("SELECT COUNT(*) FROM orders WHERE id = 'meanwhile'")) == 0
    assert status("waiting") == "dispatched"


def test_a_finding_tells_the_facts_and_a_warning_is_one(busy: Session) -> None:
    busy.connection().execute(text("UPDATE ledger SET amount_cents = 7 WHERE key = 'waiting:1'"))
    long_ago = utc_now() - timedelta(hours=2)
    busy.execute(update(Order).where(col(Order.id) == "begun").values(updated_at=long_ago))
    charge, order = sorted(audit(busy), key=lambda finding: finding.invariant)
    assert charge == Finding(
        "I3 amount",
        "charge waiting:1",
        "recorded 4000, captured 7, refunded 0 USD",
    )
    assert (order.invariant, order.is_warning) == ("I4 forgotten", True)
    assert order.facts == f"is started and has not moved since {long_ago:%Y-%m-%d %H:%M} UTC"


def test_each_column_that_is_off_is_found_by_its_invariant(busy: Session) -> None:
    long_ago = utc_now() - timedelta(seconds=UNCLAIMED_SECONDS + 60)
    missed = {}
    for off in OFF:
        statement = text(f"UPDATE {off.change}")
        if ":long_ago" in off.change:
            statement = statement.bindparams(bindparam("long_ago", long_ago, type_=UtcDateTime()))
        assert busy.connection().execute(statement).rowcount > 0, off
        found = found_in(busy)
        assert off.found in found_in(busy, ALL_CHANGED), off
        busy.rollback()
        if off.found not in found:
            missed[off] = found
    assert not missed, "\n".join(f"{off}\n  found: {found}" for off, found in missed.items())


OF_ITS_ORDERS = """(SELECT SUM(copies) FROM orders
    WHERE status = 'dispatching' AND courier_id = couriers.id)"""
BY_HAND = {
    "I1 stock": (
        "books SET quantity = quantity + 7",
        "books SET initial_quantity = initial_quantity + 7",
    ),
    "I2 points": (
        "customers SET points = points + 7",
        "customers SET initial_points = initial_points + 7",
    ),
    "I4 capacity": (
        "couriers SET assigned_copies = 0 WHERE id = 'city-vans'",
        f"couriers SET assigned_copies = {OF_ITS_ORDERS} WHERE id = 'city-vans'",
    ),
    "I4 untouched": (
        "orders SET status = 'submitted' WHERE id = 'priced'",
        "orders SET status = 'started' WHERE id = 'priced'",
    ),
}
"""What a person has done, and the runbook's remedy for the finding, where it names a change."""


def test_the_runbooks_remedy_of_a_finding_ends_it(busy: Session) -> None:
    for finding, (done, remedy) in BY_HAND.items():
        busy.execute(text(f"UPDATE {done}"))
        assert {found.invariant for found in audit(busy)} == {finding}
        busy.execute(text(f"UPDATE {remedy}"))
        assert list(audit(busy)) == []
        busy.rollback()


def test_each_invariant_of_the_audit_is_broken_here(
    setting: Callable[[str, object], None],
) -> None:
    setting("database_url", NOWHERE)
    told = {rule.invariant for check in checks() for rule in check.rules}
    assert told == {off.found.partition(":")[0] for off in OFF}


def test_each_column_is_put_off_here_or_has_a_reason_not_to_be() -> None:
    for table in SQLModel.metadata.sorted_tables:
        put_off = {off.column for off in OFF if off.table == table.name}
        not_covered = NOT_COVERED.get(table.name, set())
        assert put_off | not_covered == set(table.columns.keys()), table.name
        assert not put_off & not_covered


def test_rows_that_were_deleted_and_added_again_balance_by_the_runbooks_remedy(
    database: str,
) -> None:
    def findings() -> list[str]:
        with snapshot() as session:
            return [str(found) for found in audit(session)]

    bought = {"book_id": add_book("back", 10), "user_id": add_customer("back", 50), "redeem": True}
    placed("sold", "dispatch_order", 3, **bought)
    placed("held", "prepare_order", 2, **bought)
    with transaction() as session:
        session.delete(session.get_one(Book, "back"))
        session.delete(session.get_one(Customer, "back"))
    assert findings() == []
    add_book("back", 7)
    add_customer("back", 4)
    assert findings() == [
        "I1 stock: book back 7 copies at first, 7 now, 5 held or sold",
        "I2 points: customer back 4 points at first, 4 now, 50 held or spent",
    ]
    with transaction() as session:
        session.get_one(Book, "back").initial_quantity += 5
        session.get_one(Customer, "back").initial_points += 50
    assert findings() == []
    end_run("held")
    assert (findings(), stock("back"), points("back")) == ([], 9, 24)
