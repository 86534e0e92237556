"""Many at once: what there is is given out once, nobody waits for ever, nothing is locked up."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

import pytest
from sqlalchemy import text

from flows.compensation import UNDO
from orders.batches import begin_batch, change_batch_owner
from orders.ownership import count_continuation
from orders.waits import prolong_waits
from reports.notices import remind
from seed.catalogue import COURIERS, STRIPED_PAJAMAS, TEN_X_RULE
from store.database import reading, transaction
from store.errors import BookOutOfStock, CheckoutFailed
from store.models import utc_now
from store.saga import fail_orders
from store.saga_log import lock_orders
from tasks.dispatch import send_again
from tests.shop import (
    STEPS,
    add_book,
    add_customer,
    assigned_copies,
    at_once,
    carry_on,
    end_run,
    give_back,
    kept_cents,
    ledger,
    notices,
    order_row,
    place,
    points,
    status,
    statuses,
    stock,
)


def run_all(calls: Sequence[Callable[[], object]], *expected: type[Exception]) -> list[object]:
    """Call all at once; only the expected errors may come back."""
    answers = at_once(calls)
    unexpected = [
        answer
        for answer in answers
        if isinstance(answer, Exception) and not isinstance(answer, expected)
    ]
    assert not unexpected
    return [answer for answer in answers if not isinstance(answer, Exception)]


def test_64_checkouts_of_the_last_ten_copies_reserve_exactly_ten(database: str) -> None:
    add_book("rare", 10)
    orders = [place(f"o-{n:02}", book_id="rare") for n in range(64)]
    served = run_all([partial(STEPS["check_inventory"], [id_]) for id_ in orders], BookOutOfStock)
    assert len(served) == 10
    assert stock("rare") == 0
    states = [status(id_) for id_ in orders]
    assert (states.count("started"), states.count("rejected")) == (10, 54)


def test_whole_checkouts_at_once_end_with_right_books(database: str) -> None:
    add_book("rare", 10, 30_00)
    add_customer("keen", 100)

    def check_out(order_id: str) -> str:
        place(order_id, 2, book_id="rare", user_id="keen", redeem=True)
        carry_on([order_id])
        return order_id

    sold = run_all(
        [partial(check_out, f"o-{n:02}") for n in range(16)],
        BookOutOfStock,
    )
    assert len(sold) == 5
    assert (stock("rare"), points("keen"), kept_cents()) == (0, 0, 200_00)
    assert len(notices()) == 5
    assert assigned_copies() == {}


def test_one_customers_points_redeemed_by_16_orders_at_once_are_spent_once(database: str) -> None:
    add_customer("keen", 100)
    orders = [place(f"o-{n:02}", user_id="keen", redeem=True) for n in range(16)]
    carry_on(orders, "calculate_total")
    run_all([partial(STEPS["redeem_points"], [id_]) for id_ in orders])
    assert points("keen") == 0
    assert sum(order_row(id_).points_redeemed for id_ in orders) == 100
    assert sum(order_row(id_).due_cents or 0 for id_ in orders) == 16 * 20_00 - 100_00


@pytest.mark.parametrize("step", list(STEPS))
def test_the_same_step_of_one_order_run_by_eight_at_once_is_done_once(
    database: str, step: str
) -> None:
    place("o-1", 50, redeem=True)
    before = list(STEPS)[: list(STEPS).index(step)]
    if before:
        carry_on(["o-1"], before[-1])
    run_all([lambda: STEPS[step](["o-1"]) for _ in range(8)])
    carry_on(["o-1"])
    assert status("o-1") == "dispatched"
    assert (stock(), points(), ledger()) == (450, 0, [("o-1:1", "captured", 700_00)])
    assert notices() == ["o-1:1:dispatched"]


def test_overlapping_groups_in_opposite_order_do_not_deadlock(database: str) -> None:
    books = [TEN_X_RULE, STRIPED_PAJAMAS]
    orders = [place(f"o-{n:02}", book_id=books[n % 2], redeem=True) for n in range(24)]
    groups = [orders[:16], orders[8:], orders[::2], orders]
    for step in STEPS:
        run_all(
            [partial(STEPS[step], group) for group in groups]
            + [partial(STEPS[step], group[::-1]) for group in groups]
        )
    assert statuses(orders) == {"dispatched"}
    assert (stock(TEN_X_RULE), stock(STRIPED_PAJAMAS)) == (488, 388)
    assert points() == 0
    assert kept_cents() == 12 * 95_00 - 300_00
    assert len(notices()) == 24


def test_overlapping_groups_are_given_back_at_once_by_many(database: str) -> None:
    orders = [place(f"o-{n:02}", redeem=True) for n in range(12)]
    carry_on(orders, "prepare_order")
    fail_orders(orders, CheckoutFailed("all of them"))

    def undo_all(group: list[str]) -> None:
        for undo in UNDO.values():
            undo.fn(group)

    run_all(
        [partial(undo_all, group) for group in (orders, orders[::-1], orders[:8], orders[4:][::-1])]
    )
    assert set(give_back(*orders).values()) == {"compensated"}
    assert (stock(), points(), kept_cents()) == (500, 300, 0)


def test_a_step_and_the_orders_end_at_once_leave_nothing_taken(database: str) -> None:
    orders = [place(f"o-{n:02}", redeem=True) for n in range(12)]

    def go(order_id: str) -> None:
        carry_on([order_id], "prepare_order")

    def stop(order_id: str) -> None:
        fail_orders([order_id], CheckoutFailed("stopped"))

    run_all(
        [partial(act, id_) for act in (go, stop) for id_ in orders],
        CheckoutFailed,
    )
    for order_id in orders:
        assert end_run(order_id) in ("rejected", "compensated")
    assert (stock(), points(), kept_cents()) == (500, 300, 0)


def test_couriers_are_never_given_more_than_they_carry(database: str) -> None:
    orders = [place(f"o-{n:02}", 20) for n in range(24)]
    carry_on(orders, "prepare_order")
    run_all([partial(STEPS["find_couriers"], [id_]) for id_ in orders])
    states = [status(id_) for id_ in orders]
    assert assigned_copies() == {c["id"]: c["capacity_copies"] for c in COURIERS}
    assert (states.count("dispatching"), states.count("waiting")) == (19, 5)


def count(_: list[str]) -> None:
    assert count_continuation("run", 0)


def hand_over(_: list[str]) -> None:
    begin_batch("run", None)
    change_batch_owner("run", "another run")


def prolong(_: list[str]) -> None:
    prolong_waits(utc_now() + timedelta(days=1))


def remind_of(orders: list[str]) -> None:
    remind(dict.fromkeys(orders, ""))


@pytest.mark.parametrize("act", [count, hand_over, prolong, remind_of, send_again])
def test_orders_are_locked_by_their_ids_whatever_order_they_are_found_in(
    database: str, act: Callable[[list[str]], object], setting: Callable[[str, object], None]
) -> None:
    setting("reminder_seconds", 24 * 3600)
    # The database finds the second one first, in its table as in its index of a run's orders.
    orders = [place("o-2", run_id="run"), place("o-1", run_id="run")]
    carry_on(["o-2"], "bill_customer" if act in (count, hand_over) else "prepare_order")
    carry_on(["o-1"], "prepare_order")
    with ThreadPoolExecutor(1) as rival, transaction() as session:
        lock_orders(session, ["o-1"])
        acting = rival.submit(act, orders)
        while not _somebody_waits_for_a_lock():
            assert not acting.done()
            time.sleep(0.01)
        # If the rival had this one already, the database would end one of the two.
        assert list(lock_orders(session, ["o-2"])) == ["o-2"]
        session.commit()
        acting.result(timeout=30)


def _somebody_waits_for_a_lock() -> bool:
    waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND "
    with reading() as session:
        return session.scalar(text(f"{waiting} wait_event_type = 'Lock'")) is not None
