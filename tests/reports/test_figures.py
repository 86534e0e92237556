"""The figures of a shop: what is unfinished now, and what has happened in the last hour."""

from datetime import timedelta

from sqlalchemy import update
from sqlmodel import col

from reports.figures import WINDOW_SECONDS, Durations, FailedUndos, read_figures
from store.database import transaction
from store.messages import NO_COURIER, CourierAnswer
from store.models import SagaRecord, utc_now
from tasks.couriers import record_answer
from tests.shop import end_run, give_back, place, placed, set_order

NONE = CourierAnswer(outcome=NO_COURIER, answered_by="Ada")


def set_record(order_id: str, step: str, **columns: object) -> None:
    with transaction() as session:
        session.execute(
            update(SagaRecord)
            .where(col(SagaRecord.order_id) == order_id, col(SagaRecord.step) == step)
            .values(**columns)
        )


def test_an_empty_shop_has_no_figures(database: str) -> None:
    figures = read_figures()
    assert (figures.orders, figures.idle_seconds, figures.endings) == ({}, {}, {})
    assert (figures.steps, figures.undos, figures.failed_undos) == ({}, {}, [])
    assert (figures.waited_seconds, figures.forgotten, figures.blockers) == (0, 0, [])


def test_orders_are_counted_by_status_and_the_longest_wait_is_told(database: str) -> None:
    place("begun")
    for number, waited_minutes in enumerate([10, 100]):
        placed(f"waiting-{number}", "prepare_order")
        left = timedelta(hours=4) - timedelta(minutes=waited_minutes)
        set_order(f"waiting-{number}", wait_until=utc_now() + left)
    placed("dispatched", "dispatch_order")
    set_order("begun", updated_at=utc_now() - timedelta(minutes=30))
    figures = read_figures()
    assert figures.orders == {"started": 1, "waiting": 2}
    assert round(figures.idle_seconds["started"] / 60) == 30
    assert figures.idle_seconds["waiting"] < 60
    assert round(figures.waited_seconds / 60) == 100
    set_order("begun", updated_at=utc_now() - timedelta(hours=2))
    assert read_figures().forgotten == 1


def test_endings_and_undos_of_the_last_hour_are_counted_by_their_error(database: str) -> None:
    for number in range(2):
        placed(f"failed-{number}", "prepare_order")
        record_answer(f"failed-{number}", NONE)
        give_back(f"failed-{number}")
    placed("cancelled", "check_inventory")
    end_run("cancelled")
    placed("dispatched", "dispatch_order")
    placed("long-ago", "dispatch_order")
    set_order("long-ago", updated_at=utc_now() - timedelta(seconds=WINDOW_SECONDS + 60))
    figures = read_figures()
    assert figures.endings == {
        ("compensated", "NoCourierAvailable"): 2,
        ("compensated", "CheckoutFailed"): 1,
        ("dispatched", ""): 1,
    }
    assert figures.undos == {"bill_customer": 2, "check_inventory": 3}


def test_steps_are_timed_from_the_step_before_by_their_outcome(database: str) -> None:
    placed("o-1", "bill_customer")
    placed("o-2", "bill_customer")
    placed("long-ago", "bill_customer")
    began = utc_now() - timedelta(minutes=5)
    for order_id, billed in (("o-1", 2.0), ("o-2", 4.0)):
        set_order(order_id, created_at=began)
        set_record(order_id, "check_inventory", at=began + timedelta(seconds=1))
        set_record(order_id, "calculate_total", at=began + timedelta(seconds=1.5))
        set_record(order_id, "bill_customer", at=began + timedelta(seconds=1.5 + billed))
    set_record("o-2", "bill_customer", state="void")
    two_hours_ago = utc_now() - timedelta(hours=2)
    set_order("long-ago", updated_at=two_hours_ago)
    for step in ("check_inventory", "calculate_total", "bill_customer"):
        set_record("long-ago", step, at=two_hours_ago)
    steps = {
        of: Durations(d.count, round(d.average_seconds, 2), round(d.longest_seconds, 2))
        for of, d in read_figures().steps.items()
    }
    set_record("o-2", "bill_customer", state="done")
    assert steps == {
        ("check_inventory", "done"): Durations(2, 1.0, 1.0),
        ("calculate_total", "done"): Durations(2, 0.5, 0.5),
        ("bill_customer", "done"): Durations(1, 2.0, 2.0),
        ("bill_customer", "refused"): Durations(1, 4.0, 4.0),
    }


def test_failed_undos_are_counted_with_the_money_at_stake(database: str) -> None:
    for order_id in ("o-1", "o-2"):
        placed(order_id, "prepare_order", 2)
        record_answer(order_id, NONE)
        set_record(order_id, "bill_customer", undo_error="no answer", undo_tries=1)
    set_record("o-1", "check_inventory", undo_error="locked", undo_tries=1)
    assert sorted(read_figures().failed_undos, key=lambda undos: undos.step) == [
        FailedUndos("bill_customer", "USD", 2, 80_00),
        FailedUndos("check_inventory", "USD", 1, 0),
    ]
    give_back("o-1", "o-2")
    assert read_figures().failed_undos == []
