"""The report on sales agrees with the ledger to the cent, whatever has happened to the orders."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, get_args

import pytest
from sqlalchemy import text
from sqlmodel import col, select

from orders import archive
from orders.settlement import settle
from reports.attempts import Period, read_attempts
from reports.sales import MOVES, By, Sales, sales
from reports.story import story
from seed.catalogue import EDUARDO_SANTANA, JOHN_DOE, STRIPED_PAJAMAS, TEN_X_RULE
from store.archive_files import OrderText
from store.archived_orders import Archive
from store.database import snapshot, transaction
from store.errors import CompensationFailed, OrderCancelled, OrderError, RetryableError
from store.models import (
    BEFORE_PIVOT,
    ENDED,
    HOLDING,
    Order,
    OrderStatus,
    SagaRecord,
    utc_now,
)
from tasks import billing
from tests.sales_agree import EVER, disagreements
from tests.shop import (
    STEPS,
    add_book,
    carry_on,
    end_run,
    give_back,
    place,
    placed,
    points,
    saga,
    set_order,
    set_price,
    status,
    undos_fail,
)

Setting = Callable[[str, object], None]
ORDERS = 30
ZONE = "Europe/Berlin"
LONG_AGO = timedelta(days=400)
TITLES = [TEN_X_RULE, STRIPED_PAJAMAS, "odd", "prime"]
METHODS = [None, None, "pm_card_chargeDeclined", *["pm_ledger_timeout_after"] * 2]


def report(by: By = "day", period: Period = EVER) -> list[Sales]:
    with snapshot() as session:
        return list(sales(session, by, period))


def days(first: date, end: date) -> Period:
    return Period(first, end, ZONE)


def end_somehow(chance: Random, order_id: str) -> None:
    """Dispatch an order, let it fail, settle what it took by hand, or leave it as it stands."""
    names = list(STEPS)
    fate = chance.choice(["dispatched", "dispatched", "failed", "by hand", "left"])
    last = names[-1] if fate == "dispatched" else chance.choice([*names[:5], *names[3:5]])
    with suppress(OrderError, RetryableError), pytest.MonkeyPatch.context() as patch:
        # A charge without an answer fails its order, or stays in doubt.
        patch.setattr(billing, "is_last_try", lambda: fate != "left")
        carry_on([order_id], last)
    if status(order_id) == OrderStatus.COMPENSATING or fate == "failed":
        end_run(order_id)
    is_charged = saga(order_id).get("bill_customer") in HOLDING
    if fate == "by hand" and is_charged and status(order_id) in BEFORE_PIVOT:
        with undos_fail("bill_customer"), pytest.raises(CompensationFailed):
            end_run(order_id)
        settle(order_id, "bill_customer", by="Ada", reason="bank transfer")
        give_back(order_id)


def scatter(chance: Random) -> None:
    """Put each order into some day, and what was given back of it into a later one."""
    with transaction() as session:
        for id_ in session.scalars(text("SELECT id FROM orders")).all():
            moved = {"id": id_, "back": LONG_AGO + timedelta(hours=chance.randrange(1, 900))}
            later = {"later": timedelta(hours=chance.randrange(0, 72))}
            for statement in (
                "UPDATE orders SET created_at = created_at - :back, "
                "updated_at = updated_at - :back + :later WHERE id = :id",
                "UPDATE saga_log SET at = at - :back, undone_at = undone_at - :back + :later "
                "WHERE order_id = :id",
                "UPDATE attempts SET began_at = began_at - :back + :later, "
                "previous_ended_at = previous_ended_at - :back + :later WHERE order_id = :id",
            ):
                needed = {k: v for k, v in {**moved, **later}.items() if f":{k}" in statement}
                session.execute(text(statement), needed)


def lively_shop(chance: Random, setting: Setting) -> None:
    """Put orders of two currencies into every kind of ending, some tried again, on many days."""
    for book_id in ("odd", "prime"):
        add_book(book_id, 1_000, {"odd": 3_33, "prime": 7_01}[book_id])
    for number in range(ORDERS):
        order_id = f"o-{number:02}"
        titles = chance.sample(TITLES, chance.randint(1, 3))
        content: dict[str, Any] = {
            "items": {id_: chance.randint(1, 3) for id_ in titles},
            "redeem": chance.random() < 0.4,
            "user_id": chance.choice([EDUARDO_SANTANA, JOHN_DOE]),
            "payment_method": chance.choice(METHODS),
        }
        for _ in range(chance.choice([1, 1, 2, 3])):
            setting("currency", chance.choice(["USD", "EUR"]))
            set_price("odd", chance.randint(1, 5_00))
            place(order_id, **content)
            end_somehow(chance, order_id)
    scatter(chance)


@pytest.mark.parametrize("seed", range(2))
def test_the_report_agrees_with_the_ledger_whatever_has_happened(
    seed: int, database: str, setting: Setting
) -> None:
    granted = {user_id: points(user_id) for user_id in (EDUARDO_SANTANA, JOHN_DOE)}
    lively_shop(Random(seed), setting)  # noqa: S311  (a seed's story repeats)
    with snapshot() as session:
        assert disagreements(session) == []
    of_customers = Counter[str]()
    for row in report("customer"):
        kept = row.amounts["points_redeemed"] - row.amounts["points_restored"]
        of_customers[row.key] += kept
    assert of_customers == {id_: granted[id_] - points(id_) for id_ in granted}
    whole = report("day", Period(None, None, ZONE))
    assert {name for row in whole for name in MOVES if row.amounts[name]} == {*MOVES}
    assert {row.currency for row in whole} == {"EUR", "USD"}
    for day in {row.key: date.fromisoformat(row.key) for row in whole}.values():
        of_day = report("day", days(day, day + timedelta(days=1)))
        assert of_day == [row for row in whole if row.key == day.isoformat()]


def all_reports() -> dict[object, object]:
    """What every report and the export say of all time, of some days, and of the last weeks."""
    day = (utc_now() - LONG_AGO).date() - timedelta(days=17)
    found: dict[object, object] = {}
    with snapshot() as session:
        for period in (EVER, days(day, day + timedelta(days=9)), Period(day, None, ZONE)):
            found.update({(by, period): list(sales(session, by, period)) for by in get_args(By)})
            attempts = sorted(read_attempts(session, period), key=lambda a: (a.order_id, a.attempt))
            found["export", period] = [tuple(attempt) for attempt in attempts]
    return found


def ended_orders() -> int:
    with snapshot() as session:
        return len(session.exec(select(Order.id).where(col(Order.status).in_(ENDED))).all())


def test_a_report_is_the_same_while_orders_are_archived_and_afterwards(
    database: str, setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lively_shop(Random(2), setting)  # noqa: S311  (a seed's story repeats)
    expected, ended = all_reports(), ended_orders()
    delete_page, pages = archive._delete, iter(range(2))

    def interrupted(of: Archive, page: Sequence[OrderText]) -> None:
        if next(pages, None) is None:
            raise KeyboardInterrupt
        delete_page(of, page)

    with monkeypatch.context() as patch:
        patch.setattr(archive, "ORDERS_AT_ONCE", 4)
        patch.setattr(archive, "_delete", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(archive.archive_orders(str(tmp_path), LONG_AGO / 2))
    assert 0 < ended_orders() < ended
    assert all_reports() == expected
    list(archive.archive_orders(str(tmp_path), LONG_AGO / 2))
    assert ended_orders() == 0
    assert all_reports() == expected


def moved(order_id: str, **moments: datetime) -> None:
    """Set when the charge of an order's first attempt was captured, and when it was refunded."""
    with transaction() as session:
        record = session.get_one(SagaRecord, (order_id, 1, "bill_customer"))
        for name, moment in moments.items():
            setattr(record, name, moment)


@pytest.mark.usefixtures("database")
def test_money_counts_on_the_day_in_the_shops_zone_on_which_it_moved() -> None:
    placed("o-1", "prepare_order")
    end_run("o-1")
    accepted = datetime(2026, 10, 24, 12, tzinfo=UTC)
    set_order("o-1", created_at=accepted, updated_at=datetime(2026, 10, 25, 23, 30, tzinfo=UTC))
    # The day of 25 hours: in Berlin it lasts from 22:00 to 23:00 UTC of the next day.
    first, last = (
        datetime(2026, 10, 24, 22, tzinfo=UTC),
        datetime(2026, 10, 25, 22, 59, 59, 999_999, tzinfo=UTC),
    )
    moved("o-1", at=first, undone_at=last)
    (accepted_day, day, ended_day) = report("day", Period(None, None, ZONE))
    assert (accepted_day.key, accepted_day.amounts["orders"]) == ("2026-10-24", 1)
    assert (day.key, day.amounts["captured_cents"], day.net_cents) == ("2026-10-25", 20_00, 0)
    assert (ended_day.key, ended_day.why) == ("2026-10-26", {"CheckoutFailed": 1})
    assert report("day", days(date(2026, 10, 25), date(2026, 10, 26))) == [day]
    # The order's end and its refund come from the clocks of two machines.
    set_order("o-1", updated_at=first - timedelta(seconds=1))
    (of_day,) = report("day", days(date(2026, 10, 25), date(2026, 10, 26)))
    assert of_day == day
    moved("o-1", at=first - timedelta(microseconds=1), undone_at=last + timedelta(microseconds=1))
    assert report("day", days(date(2026, 10, 25), date(2026, 10, 26))) == []


@pytest.mark.usefixtures("database")
def test_an_attempt_that_the_orders_row_has_forgotten_counts_as_it_ended(setting: Setting) -> None:
    placed("o-1", "prepare_order")
    end_run("o-1")
    setting("currency", "EUR")
    placed("o-1", "prepare_order")
    end_run("o-1", OrderCancelled("not wanted any more"))
    setting("currency", "USD")
    placed("o-1", "dispatch_order")
    euro, dollar = report()
    assert (euro.why, euro.amounts["refunded_cents"], euro.net_cents) == (
        {"OrderCancelled": 1},
        20_00,
        0,
    )
    assert (dollar.why, dollar.amounts["captured_cents"]) == ({"CheckoutFailed": 1}, 40_00)
    assert dollar.net_cents == 20_00
    with snapshot() as session:
        attempts = [(a.attempt, a.status, a.error) for a in read_attempts(session, EVER)]
    assert attempts == [
        (1, "compensated", "CheckoutFailed"),
        (2, "compensated", "OrderCancelled"),
        (3, "dispatched", None),
    ]


@pytest.mark.usefixtures("database")
def test_the_cent_that_is_left_over_goes_to_the_largest_remainder() -> None:
    add_book("three", 10, 3)
    add_book("two", 10, 2)
    add_book("one", 10, 1)
    placed("o-1", "dispatch_order", items={"three": 1, "two": 1, "one": 1})
    with transaction() as session:
        # Of 10 cents 3/6, 2/6 and 1/6: 5, 3.33 and 1.67.
        statement = "UPDATE saga_log SET result = jsonb_set(CAST(result AS JSONB), "
        statement += "'{amount_cents}', '10') WHERE step = 'bill_customer'"
        session.execute(text(statement))
    shares = {row.key: row.amounts["captured_cents"] for row in report("title")}
    assert shares == {"three": 5, "two": 3, "one": 2}
    set_price("two", 7)  # a later price is nothing to an order that has its own
    assert {row.key: row.amounts["captured_cents"] for row in report("title")} == shares
    assert {row.key: row.title for row in report("title")}["two"] == "Book two"


@pytest.mark.usefixtures("database")
def test_an_attempt_from_before_errors_were_kept_counts_as_well() -> None:
    place("o-1")
    end_run("o-1")
    placed("o-1", "prepare_order")
    end_run("o-1")
    placed("o-1", "dispatch_order")
    with transaction() as session:
        columns = ("status", "error", "currency", "ended_at")
        nothing = ", ".join(f"previous_{name} = NULL" for name in columns)
        session.execute(text(f"UPDATE attempts SET {nothing}"))  # noqa: S608  (the names above)
    (row,) = report()
    assert row.why == {"unknown": 2}
    assert (row.amounts["captured_cents"], row.amounts["refunded_cents"]) == (40_00, 20_00)
    with transaction() as session:
        session.execute(text("DELETE FROM attempts"))
    assert report() == [row]
    assert {each.attempt for each in story("o-1").events} == {1, 2, 3}
    with snapshot() as session:
        ends = [each.status for each in read_attempts(session, EVER)]
    assert ends == ["rejected", "compensated", "dispatched"]
