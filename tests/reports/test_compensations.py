"""The compensation queue: what is at stake is exact, and the books balance after a settlement."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import delete
from sqlmodel import col

from flows.recovery import Move, next_move
from orders.settlement import settle
from orders.unfinished import as_unfinished
from reports.compensations import failed_undos, next_try_at, open_undos
from seed.catalogue import EDUARDO_SANTANA, STRIPED_PAJAMAS, TEN_X_RULE
from store.database import reading, transaction
from store.embedded_gateway import EmbeddedGateway
from store.errors import CheckoutFailed, CompensationFailed, NothingToUndo, OrderNotFound
from store.models import Book, Customer, LedgerEntry
from store.saga import conclude_compensation
from tasks.billing import refund_customer
from tests.books_balance import assert_books_balance, imbalances
from tests.shop import (
    STEPS,
    add_book,
    add_customer,
    at_once,
    carry_on,
    end_run,
    failed,
    give_back,
    ledger,
    order_row,
    place,
    placed,
    points,
    saga_records,
    set_order,
    shop,
    status,
    stock,
    undos_fail,
)

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC)


def initial() -> tuple[int, int]:
    """All copies of the example's book that ever came in, all points its customer ever got."""
    with reading() as session:
        return (
            session.get_one(Book, TEN_X_RULE).initial_quantity,
            session.get_one(Customer, EDUARDO_SANTANA).initial_points,
        )


MONEY = ("bill_customer", "700.00 USD")
COPIES = ("check_inventory", "50 of “The 10X Rule”")
POINTS = ("redeem_points", "300 points")


@pytest.mark.parametrize(
    ("up_to", "expected"),
    [
        (None, []),
        ("calculate_total", [COPIES]),
        ("redeem_points", [COPIES, POINTS]),
        ("bill_customer", [MONEY, COPIES, POINTS]),
        ("prepare_order", [MONEY, COPIES, POINTS]),
    ],
)
def test_what_a_cancellation_would_give_back_is_what_it_then_gives_back(
    database: str, up_to: str | None, expected: list[tuple[str, str]]
) -> None:
    before = shop()
    place("o-1", 50, redeem=True)
    if up_to:
        carry_on(["o-1"], up_to)
    taken = shop()
    undos = open_undos("o-1")
    assert [(undo.step, undo.at_stake) for undo in undos] == expected
    assert shop() == taken
    end_run("o-1")
    assert open_undos("o-1") == []
    after = shop()
    assert sum(undo.amount_cents for undo in undos) == taken.kept_cents - after.kept_cents
    assert (after.stock, after.points) == (before.stock, before.points)


def test_a_charge_without_an_answer_is_shown_as_in_doubt(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed("o-1", "redeem_points", items={TEN_X_RULE: 5, STRIPED_PAJAMAS: 1}, redeem=False)
    with monkeypatch.context() as patch:
        patch.setattr(EmbeddedGateway, "capture", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            STEPS["bill_customer"](["o-1"])
    money, copies = open_undos("o-1")
    assert (money.amount_cents, money.in_doubt) == (175_00, True)
    assert money.at_stake == "175.00 USD, if it was captured"
    assert {(each.book_id, each.title, each.quantity) for each in copies.copies} == {
        (TEN_X_RULE, "The 10X Rule", 5),
        (STRIPED_PAJAMAS, "The Boy in the Striped Pajamas", 1),
    }
    end_run("o-1")


def test_an_order_that_is_not_there_holds_nothing_and_says_so(database: str) -> None:
    with pytest.raises(OrderNotFound, match="There is no order o-1, or its run has not begun yet"):
        open_undos("o-1")


def test_the_queue_has_each_failed_undo_and_when_recovery_tries_it_again(database: str) -> None:
    failed("o-1", "bill_customer", "redeem_points")
    placed("o-2", "prepare_order", 1)
    with undos_fail("bill_customer"), pytest.raises(CompensationFailed):
        give_back("o-1")
    undos = failed_undos(limit=10)
    assert [(undo.order_id, undo.step, undo.tries) for undo in undos] == [
        ("o-1", "bill_customer", 2)
    ]
    (money,) = undos
    assert (money.at_stake, money.error) == ("700.00 USD", "ZeroDivisionError: it is broken")
    assert money.next_try_at == order_row("o-1").updated_at + timedelta(minutes=2)
    seen = as_unfinished(order_row("o-1"))
    assert next_move(seen, None, money.next_try_at) == Move.LEAVE
    assert next_move(seen, None, money.next_try_at + timedelta(seconds=1)) == Move.COMPENSATE
    give_back("o-1")
    assert failed_undos(limit=10) == []
    end_run("o-2")


@pytest.mark.parametrize(
    ("tries", "minutes"), [(0, 1), (1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (1_000_000, 60)]
)
def test_a_failed_undo_is_tried_again_after_a_minute_at_first_and_an_hour_at_most(
    tries: int, minutes: int
) -> None:
    assert next_try_at(tries, NOON) == NOON + timedelta(minutes=minutes)


def test_the_tries_of_what_was_given_back_keep_nothing_waiting(database: str) -> None:
    failed("o-1", "bill_customer")
    for _ in range(3):
        with undos_fail("bill_customer"), pytest.raises(CompensationFailed):
            give_back("o-1")
    set_order("o-1", status="compensating")
    assert as_unfinished(order_row("o-1")).undo_tries == 4
    refund_customer.fn(["o-1"])
    assert as_unfinished(order_row("o-1")).undo_tries == 0
    give_back("o-1")


def test_an_undo_that_is_being_tried_has_no_next_time(database: str) -> None:
    failed("o-1", "bill_customer")
    set_order("o-1", status="compensating")
    (undo,) = failed_undos(limit=10)
    assert undo.next_try_at is None
    give_back("o-1")


def test_the_queue_begins_with_the_orders_that_wait_longest_and_has_as_many_as_asked_for(
    database: str,
) -> None:
    for order_id in ("o-3", "o-1", "o-2"):
        placed(order_id, "bill_customer", 1)
        with undos_fail("bill_customer", "check_inventory"), pytest.raises(CompensationFailed):
            end_run(order_id)
    assert [(undo.order_id, undo.step) for undo in failed_undos(limit=2)] == [
        ("o-3", "bill_customer"),
        ("o-3", "check_inventory"),
        ("o-1", "bill_customer"),
        ("o-1", "check_inventory"),
    ]
    give_back("o-1", "o-2", "o-3")


SETTLED: list[tuple[str, bool, dict[str, Any], tuple[int, int], tuple[int, int]]] = [
    # The step, whether put back, what is recorded, then stock and points now and initially.
    ("bill_customer", False, {"amount_cents": 700_00}, (500, 300), (500, 300)),
    (
        "check_inventory",
        False,
        {"copies": {}, "written_off": {TEN_X_RULE: 50}},
        (450, 300),
        (450, 300),
    ),
    ("check_inventory", True, {"copies": {TEN_X_RULE: 50}}, (500, 300), (500, 300)),
    ("redeem_points", False, {"points": 0, "written_off": 300}, (500, 0), (500, 0)),
    ("redeem_points", True, {"points": 300}, (500, 300), (500, 300)),
]


@pytest.mark.parametrize(("step", "put_back", "recorded", "now", "at_first"), SETTLED)
def test_what_a_person_settles_is_recorded_with_who_and_why_and_the_books_balance(
    database: str,
    step: str,
    put_back: bool,
    recorded: dict[str, Any],
    now: tuple[int, int],
    at_first: tuple[int, int],
) -> None:
    failed("o-1", step)
    money = ledger("o-1")
    settle("o-1", step, by="Ada", reason="by bank transfer", put_back=put_back)
    assert_books_balance()
    record = saga_records("o-1")[step]
    assert (record.state, record.undo_error, record.undo_tries) == ("undone", None, 1)
    assert record.undo_result == {
        **recorded,
        "settled_by": "Ada",
        "reason": "by bank transfer",
        "failed_with": "ZeroDivisionError: it is broken",
    }
    assert ledger("o-1") == money
    assert (stock(), points()) == now
    assert initial() == at_first
    assert conclude_compensation(["o-1"]) == {"o-1": "compensated"}

    # Nothing of it is done once more, and a new attempt takes all that it needs anew.
    give_back("o-1")
    assert ledger("o-1") == money
    placed("o-1", "dispatch_order", 50, redeem=True)
    assert order_row("o-1").attempt == 2


def _done(order_id: str) -> None:
    failed(order_id, "bill_customer")
    give_back(order_id)


def _settled(order_id: str) -> None:
    failed(order_id, "bill_customer")
    settle(order_id, "bill_customer", by="Ada", reason="by bank transfer")
    conclude_compensation([order_id])


def _waiting(order_id: str) -> None:
    placed(order_id, "prepare_order")


def _not_tried(order_id: str) -> None:
    placed(order_id, "prepare_order")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.shop.give_back", lambda _: None)
        end_run(order_id, CheckoutFailed("its process died"))


def _never_billed(order_id: str) -> None:
    placed(order_id, "calculate_total")
    with undos_fail("check_inventory"), pytest.raises(CompensationFailed):
        end_run(order_id)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_done, r"^bill_customer of order o-1 was given back by itself at .* UTC; it is not to be"),
        (_settled, r"^bill_customer of order o-1 was settled by Ada at"),
        (_waiting, r"^order o-1 is waiting, so nothing of it is to be given back; `checkout cance"),
        (_not_tried, r"^giving back bill_customer of order o-1 has not failed; it is under way"),
        (_never_billed, r"^order o-1, which is compensation_failed, has not taken anything in bil"),
    ],
)
def test_only_an_undo_that_has_failed_is_settled(
    database: str, make: Callable[[str], None], why: str
) -> None:
    make("o-1")
    before = shop(), saga_records("o-1")["check_inventory"].state
    with pytest.raises(NothingToUndo, match=why):
        settle("o-1", "bill_customer", by="Bob", reason="by cheque")
    assert (shop(), saga_records("o-1")["check_inventory"].state) == before


def test_nothing_is_put_back_to_a_book_or_a_customer_that_is_gone(database: str) -> None:
    bought = {"book_id": add_book("gone", 1), "user_id": add_customer("gone", 5), "redeem": True}
    placed("o-1", "prepare_order", 1, **bought)
    with undos_fail("check_inventory", "redeem_points"), pytest.raises(CompensationFailed):
        end_run("o-1")
    with transaction() as session:
        session.delete(session.get_one(Book, "gone"))
        session.delete(session.get_one(Customer, "gone"))
    for step, what in (("check_inventory", "book"), ("redeem_points", "customer")):
        with pytest.raises(NothingToUndo, match=f"{what} gone is gone; settle it without --put-ba"):
            settle("o-1", step, by="Ada", reason="found", put_back=True)
        settle("o-1", step, by="Ada", reason="lost")
        assert (saga_records("o-1")[step].undo_result or {})["written_off"]


def test_of_a_person_and_recovery_at_the_same_moment_one_puts_the_copies_back(
    database: str,
) -> None:
    failed("o-1", "check_inventory")

    def by_hand() -> None:
        settle("o-1", "check_inventory", by="Ada", reason="counted", put_back=True)

    settled, _ = at_once([by_hand, lambda: give_back("o-1")])
    record = saga_records("o-1")["check_inventory"]
    assert record.undo_result is not None
    assert ("settled_by" in record.undo_result) == (settled is None)
    assert settled is None or isinstance(settled, NothingToUndo)
    conclude_compensation(["o-1"])
    assert (status("o-1"), stock()) == ("compensated", 500)


def test_money_that_is_refunded_while_a_person_gives_it_back_is_found_by_the_books(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed("o-1", "bill_customer")
    refund = EmbeddedGateway.refund

    def overtaken(gateway: EmbeddedGateway, charges: Any) -> Any:
        answers = refund(gateway, charges)
        settle("o-1", "bill_customer", by="Ada", reason="by bank transfer")
        return answers

    monkeypatch.setattr(EmbeddedGateway, "refund", overtaken)
    assert give_back("o-1") == {"o-1": "compensated"}
    assert "charge o-1:1 was given back by hand, and refunded as well" in imbalances()
    with transaction() as session:
        session.execute(delete(LedgerEntry).where(col(LedgerEntry.kind) == "refund"))
