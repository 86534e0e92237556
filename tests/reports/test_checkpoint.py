"""An audit since the last clean one finds what a full one finds, and reads only what changed."""

import threading
from datetime import timedelta

import pytest
from sqlalchemy import text

from reports.audit import audit
from reports.checkpoint import FULL_EVERY, MARGIN, is_full_due, move_checkpoint, read_checkpoint
from seed.catalogue import EDUARDO_SANTANA, TEN_X_RULE
from store.checkpoint import AuditCheckpoint, forget_checkpoint
from store.database import snapshot, transaction
from store.models import utc_now
from tests.polling import wait_until
from tests.shop import assign, carry_on, end_run, failed, order_row, place, placed, set_order

pytestmark = pytest.mark.usefixtures("database")


def age(days: int, *order_ids: str) -> None:
    """Move all that happened to the orders into the past."""
    with transaction() as session:
        for statement in (
            "UPDATE orders SET created_at = created_at - :age, updated_at = updated_at - :age "
            "WHERE id = ANY(:ids)",
            "UPDATE saga_log SET at = at - :age, undone_at = undone_at - :age "
            "WHERE order_id = ANY(:ids)",
        ):
            session.execute(text(statement), {"age": timedelta(days=days), "ids": [*order_ids]})


def findings(since: AuditCheckpoint | None) -> list[str]:
    with snapshot() as session:
        return [str(found) for found in audit(session, since)]


def present() -> AuditCheckpoint | None:
    with snapshot() as session:
        return read_checkpoint(session)


def audited(in_hours: int = 0) -> AuditCheckpoint:
    """The checkpoint after a clean audit from the one there was, so many hours later."""
    since = present()
    assert [found for found in findings(since) if "forgotten" not in found] == []
    assert move_checkpoint(since, utc_now() + timedelta(hours=in_hours))
    moved = present()
    assert moved is not None
    return moved


def old_shop() -> AuditCheckpoint:
    """Orders of ten days ago with each ending, audited in full."""
    placed("old", "dispatch_order", 3, redeem=True)
    placed("given-back", "prepare_order", 2, redeem=True)
    end_run("given-back")
    age(10, "old", "given-back")
    placed("waits", "prepare_order", 4, redeem=True)
    return audited()


def counted() -> tuple[int | None, int | None]:
    with transaction() as session:
        copies, points = (
            session.execute(text(query)).scalar()
            for query in (
                "SELECT SUM(copies) FROM checkpoint_copies",
                "SELECT SUM(points) FROM checkpoint_points",
            )
        )
    return copies, points


def test_what_was_dispatched_is_counted_once_and_read_no_more() -> None:
    first = old_shop()
    copies, points = counted()
    assert copies == 3
    assert points
    carry_on(["waits"], after="prepare_order")
    placed("new", "dispatch_order", 5)
    assert findings(first) == []
    second = audited(in_hours=2)
    assert second.full_at == first.full_at
    assert counted()[0] == 3 + 4 + 5
    # Something else than a step moves an order's time: it is counted already.
    set_order("waits", updated_at=utc_now() + timedelta(hours=2))
    assert audited(in_hours=3).before > second.before
    assert counted()[0] == 3 + 4 + 5
    added_up = counted()
    assert move_checkpoint(None, utc_now() + timedelta(hours=3))
    assert counted() == added_up
    due_cents = order_row("old").due_cents
    set_order("old", due_cents=7)
    try:
        assert findings(second) == []
        assert any("order old" in found for found in findings(None))
    finally:
        set_order("old", due_cents=due_cents)


def test_stock_and_points_of_all_orders_are_compared_with_what_was_counted() -> None:
    since = old_shop()
    with transaction() as session:
        session.execute(text("UPDATE books SET quantity = quantity + 1"))
        session.execute(text("UPDATE customers SET points = points + 1"))
    try:
        found = findings(since)
        assert f"I1 stock: book {TEN_X_RULE} 500 copies at first, 494 now, 7 held or sold" in found
        assert any(f"I2 points: customer {EDUARDO_SANTANA}" in line for line in found)
    finally:
        with transaction() as session:
            session.execute(text("UPDATE books SET quantity = quantity - 1"))
            session.execute(text("UPDATE customers SET points = points - 1"))


def test_an_old_order_that_is_tried_again_is_read_again() -> None:
    old_shop()
    place("given-back", 2, redeem=True)
    carry_on(["given-back"], up_to="prepare_order")
    since = audited()
    due_cents = order_row("given-back").due_cents
    set_order("given-back", due_cents=7)
    assert any("order given-back" in found for found in findings(since))
    set_order("given-back", due_cents=due_cents)
    assign("given-back")
    carry_on(["given-back"], after="find_couriers")
    assert audited(in_hours=2).before > since.before


def test_an_audit_does_not_replace_a_checkpoint_that_it_did_not_start_from() -> None:
    since = old_shop()
    later = audited()
    assert not move_checkpoint(since, utc_now() + 2 * MARGIN)
    with transaction() as session:
        forget_checkpoint(session)
    assert not move_checkpoint(later, utc_now() + 2 * MARGIN)
    assert present() is None


def test_orders_are_not_counted_while_another_transaction_takes_them_away() -> None:
    old_shop()
    over: list[bool] = []
    with transaction() as session:
        forget_checkpoint(session)
        counting = threading.Thread(target=lambda: over.append(move_checkpoint(None, utc_now())))
        counting.start()
        with transaction() as other:
            wait_until(
                lambda: other.execute(
                    text("SELECT COUNT(*) FROM pg_locks WHERE NOT granted")
                ).scalar(),
                "audit that waits for the other transaction",
            )
        assert over == []
    counting.join()
    assert over == [True]


def test_a_full_audit_is_due_once_a_week() -> None:
    since = old_shop()
    assert not is_full_due(since, since.full_at + FULL_EVERY - timedelta(minutes=1))
    assert is_full_due(since, since.full_at + timedelta(days=7) - timedelta(minutes=10))


def test_a_failed_undo_is_read_however_old_it_is() -> None:
    failed("stuck", "bill_customer")
    age(10, "stuck")
    since = audited()
    due_cents = order_row("stuck").due_cents
    set_order("stuck", due_cents=7)
    try:
        assert any("order stuck" in found for found in findings(since))
    finally:
        set_order("stuck", due_cents=due_cents)
