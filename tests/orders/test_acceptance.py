"""An order is taken once, belongs to one run, and may be tried again when nothing came of it."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from orders.acceptance import (
    accept_order,
    begin_attempt,
    claim_failed_orders,
    failed_orders_without_customer,
    known_order,
)
from orders.intake import claim_orders, load_orders, submit_orders
from orders.lookup import find_orders, read_order
from orders.ownership import orders_of_run
from orders.unfinished import as_unfinished
from seed.catalogue import EDUARDO_SANTANA, STRIPED_PAJAMAS, TEN_X_RULE
from store.database import reading, transaction
from store.errors import (
    BookNotFound,
    BookOutOfStock,
    OrderIdConflict,
    OrderInProgress,
    PaymentRefused,
    UnknownTestMethod,
    UserNotFound,
)
from store.messages import CheckoutOrder
from store.models import Attempt, Book, OrderStatus, utc_now
from tests.shop import (
    add_book,
    add_customer,
    an_order,
    at_once,
    carry_on,
    end_run,
    give_back,
    kept_cents,
    ledger,
    order_row,
    place,
    placed,
    points,
    remove_customer,
    saga,
    set_capacities,
    set_order,
    set_payment_method,
    shop,
    status,
    stock,
)

RUN = "0b5ab1c5-0000-4000-8000-000000000001"
OTHER_RUN = "0b5ab1c5-0000-4000-8000-000000000002"
ASKED = "0b5ab1c5-0000-4000-8000-00000000000a"
ASKED_AGAIN = "0b5ab1c5-0000-4000-8000-00000000000b"


def test_the_run_that_brings_a_new_order_owns_it(database: str) -> None:
    accepted = accept_order(an_order("o-1", 50, redeem=True), RUN)
    assert (accepted.id, accepted.owned) == ("o-1", True)
    order = order_row("o-1")
    assert (order.status, order.run_id, order.attempt) == ("started", RUN, 1)
    assert (order.copies, order.redeem, order.payment_method) == (50, True, "pm_card_visa")
    assert orders_of_run(RUN) == {"o-1": 1}


def test_an_order_without_an_order_id_is_known_by_its_run(database: str) -> None:
    assert accept_order(an_order(), RUN).id == RUN


@pytest.mark.parametrize("redeem", [True, False])
def test_an_unknown_user_is_refused_and_nothing_is_recorded(database: str, redeem: bool) -> None:
    before = shop()
    with pytest.raises(UserNotFound, match=r"^userId: no customer has the id nobody$"):
        accept_order(an_order("o-1", user_id="nobody", redeem=redeem), RUN)
    assert shop() == before
    assert orders_of_run(RUN) == {}


@pytest.mark.parametrize("method", ["pm_ledger_fail_x", "pm_ledger_fail_-1"])
@pytest.mark.parametrize("whose", ["the order's", "the customer's"])
def test_an_unknown_test_method_is_refused_as_input_in_each_way_that_an_order_comes_in(
    database: str, method: str, whose: str, tmp_path: Path
) -> None:
    order = an_order("o-1", payment_method=method if whose == "the order's" else None)
    if whose == "the customer's":
        set_payment_method(EDUARDO_SANTANA, method)
    before = shop()
    what = f"^paymentMethod: .*no test method {method}; give pm_ledger_fail_N"
    with pytest.raises(UnknownTestMethod, match=what):
        accept_order(order, RUN)
    with pytest.raises(UnknownTestMethod, match=what):
        known_order(order)
    good = an_order("o-2", payment_method="pm_card_visa")
    (refused, taken) = submit_orders([order, good])
    assert (type(refused), taken) == (UnknownTestMethod, True)
    file = tmp_path / "orders.jsonl"
    lines = (each.model_dump_json(by_alias=True) for each in (order, good))
    file.write_text("".join(f"{line}\n" for line in lines))
    (reject,) = load_orders.fn(str(file)).rejects
    assert (reject.line, reject.field) == (1, "paymentMethod")
    assert f"no test method {method}" in reject.reason
    assert shop() == before
    assert find_orders(limit=10) == [read_order("o-2")]


def test_a_failed_order_begins_no_attempt_with_an_unknown_test_method(database: str) -> None:
    placed("o-1", "bill_customer")
    end_run("o-1")
    set_payment_method(EDUARDO_SANTANA, "pm_ledger_fail_x")
    with pytest.raises(UnknownTestMethod, match=f"that of customer {EDUARDO_SANTANA}"):
        begin_attempt(an_order("o-1"), OTHER_RUN, ASKED)
    assert (status("o-1"), order_row("o-1").attempt) == ("compensated", 1)


def test_an_unknown_test_method_of_an_order_that_is_recorded_ends_it_uncharged(
    database: str,
) -> None:
    placed("o-1", "calculate_total")
    set_order("o-1", payment_method="pm_ledger_fail_x")
    with pytest.raises(PaymentRefused, match="no test method pm_ledger_fail_x"):
        carry_on(["o-1"], "bill_customer", after="calculate_total")
    assert end_run("o-1") == "compensated"
    assert kept_cents() == 0


def test_a_run_that_starts_over_finds_its_own_order_as_it_stands(database: str) -> None:
    place("o-1", run_id=RUN)
    carry_on(["o-1"], "bill_customer")
    assert accept_order(an_order("o-1"), RUN).owned
    assert status("o-1") == "started"
    assert saga("o-1") == {
        "check_inventory": "done",
        "calculate_total": "done",
        "bill_customer": "done",
    }


@pytest.mark.parametrize("run_id", [RUN, OTHER_RUN])
def test_an_order_that_is_known_is_found_although_its_customer_is_gone(
    database: str, run_id: str
) -> None:
    add_customer("leaves")
    placed("o-1", "bill_customer", user_id="leaves", run_id=RUN)
    remove_customer("leaves")
    found = accept_order(an_order("o-1", user_id="leaves"), run_id)
    assert (found.id, found.owned, found.started_over) == ("o-1", run_id == RUN, True)


def test_a_submitted_order_moves_when_a_run_takes_it_up(database: str) -> None:
    submit_orders([an_order("o-1")])
    set_order("o-1", updated_at=utc_now() - timedelta(hours=1))
    before = utc_now()
    assert accept_order(an_order("o-1"), RUN).owned
    assert status("o-1") == "started"
    assert as_unfinished(order_row("o-1")).moved_at >= before


def test_a_second_run_with_the_same_order_does_not_own_it(database: str) -> None:
    place("o-1", run_id=RUN)
    second = accept_order(an_order("o-1"), OTHER_RUN)
    assert (second.id, second.owned) == ("o-1", False)
    assert orders_of_run(OTHER_RUN) == {}


def test_the_same_order_in_another_spelling_is_the_same_order(database: str) -> None:
    place("o-1", items={TEN_X_RULE: 1, STRIPED_PAJAMAS: 2})
    turned = an_order("o-1", items={STRIPED_PAJAMAS: 2, TEN_X_RULE: 1})
    assert not accept_order(turned, OTHER_RUN).owned


@pytest.mark.parametrize(
    "other",
    [
        an_order("o-1", 2),
        an_order("o-1", redeem=True),
        an_order("o-1", book_id=STRIPED_PAJAMAS),
        an_order("o-1", user_id="01G4E1AZW2HHR3C1FTZBYRZXXC"),
        an_order("o-1", items={TEN_X_RULE: 1, STRIPED_PAJAMAS: 1}),
        an_order("o-1", payment_method="pm_card_mastercard"),
    ],
    ids=["quantity", "redeem", "book", "customer", "cart", "payment method"],
)
def test_the_same_order_id_with_other_content_is_refused(
    database: str, other: CheckoutOrder
) -> None:
    place("o-1", run_id=RUN)
    before = shop()
    with pytest.raises(OrderIdConflict, match=r"^orderId: o-1 belongs to an order with other"):
        accept_order(other, OTHER_RUN)
    assert shop() == before
    assert order_row("o-1").run_id == RUN


def test_an_order_that_is_being_compensated_is_not_begun_again(database: str) -> None:
    placed("o-1", "bill_customer")
    set_order("o-1", status=OrderStatus.COMPENSATING, error="CheckoutFailed", message="")
    found = accept_order(an_order("o-1"), OTHER_RUN)
    assert (found.failed, found.owned) == (True, False)
    with pytest.raises(OrderInProgress, match="o-1 is compensating; try again"):
        begin_attempt(an_order("o-1"), OTHER_RUN, ASKED)
    assert order_row("o-1").attempt == 1
    give_back("o-1")


def test_a_compensated_order_begins_a_new_attempt_with_new_keys(database: str) -> None:
    placed("o-1", "bill_customer", 50, redeem=True)
    assert end_run("o-1") == "compensated"
    assert (stock(), points(), kept_cents()) == (500, 300, 0)

    assert accept_order(an_order("o-1", 50, redeem=True), OTHER_RUN).failed
    assert begin_attempt(an_order("o-1", 50, redeem=True), OTHER_RUN, ASKED).owned
    order = order_row("o-1")
    assert (order.attempt, order.status, order.run_id) == (2, "started", OTHER_RUN)
    assert (order.total_cents, order.due_cents, order.points_redeemed) == (None, None, 0)
    assert (order.error, order.message, order.courier_id) == (None, None, None)
    assert saga("o-1") == {}
    carry_on(["o-1"])

    assert status("o-1") == "dispatched"
    assert set(saga("o-1", attempt=1).values()) == {"done", "undone"}
    assert ledger() == [
        ("o-1:1", "captured", 700_00),
        ("o-1:1:refund", "refunded", 700_00),
        ("o-1:2", "captured", 700_00),
    ]
    assert (stock(), points(), kept_cents()) == (450, 0, 700_00)


def test_a_rejected_order_begins_a_new_attempt_when_copies_have_come(database: str) -> None:
    place("o-1", 501)
    with pytest.raises(BookOutOfStock):
        carry_on(["o-1"], "check_inventory")
    assert status("o-1") == "rejected"
    placed("o-2", "check_inventory", 100)
    assert begin_attempt(an_order("o-1", 501), OTHER_RUN, ASKED).owned
    with pytest.raises(BookOutOfStock, match="501 asked for, 400 in stock"):
        carry_on(["o-1"], "check_inventory")
    assert order_row("o-1").attempt == 2
    assert ledger() == []


def test_a_dispatched_order_is_never_begun_again(database: str) -> None:
    placed("o-1", "dispatch_order")
    before = shop()
    found = accept_order(an_order("o-1"), OTHER_RUN)
    assert (found.owned, found.failed) == (False, False)
    assert not begin_attempt(an_order("o-1"), OTHER_RUN, ASKED).owned
    carry_on(["o-1"])
    assert shop() == before
    assert order_row("o-1").attempt == 1


def test_the_same_order_brought_by_eight_runs_at_once_is_one_order(database: str) -> None:
    order = an_order("o-1", 2)
    accepted = at_once([partial(accept_order, order, f"run-{n}") for n in range(8)])
    owners = [answer.owned for answer in accepted if not isinstance(answer, Exception)]
    assert sorted(owners) == [False] * 7 + [True]
    carry_on(["o-1"])
    assert (stock(), kept_cents()) == (498, 40_00)


def test_a_compensated_order_brought_by_eight_runs_at_once_has_one_new_attempt(
    database: str,
) -> None:
    placed("o-1", "bill_customer")
    end_run("o-1")
    order = an_order("o-1")
    accepted = at_once(
        [partial(begin_attempt, order, f"run-{n}", f"asked by {n}") for n in range(8)]
    )
    owners = [answer.owned for answer in accepted if not isinstance(answer, Exception)]
    assert sorted(owners) == [False] * 7 + [True]
    assert order_row("o-1").attempt == 2


def test_what_was_asked_once_begins_one_attempt_however_late_its_processes_come(
    database: str,
) -> None:
    placed("o-1", "bill_customer")
    end_run("o-1")
    order = an_order("o-1")
    assert begin_attempt(order, RUN, ASKED).owned
    carry_on(["o-1"], "bill_customer")
    end_run("o-1")
    late = begin_attempt(order, RUN, ASKED)
    assert (late.owned, late.failed) == (True, True)
    assert (order_row("o-1").attempt, status("o-1")) == (2, "compensated")
    assert not begin_attempt(order, RUN, ASKED_AGAIN).failed
    assert order_row("o-1").attempt == 3

    carry_on(["o-1"], "bill_customer")
    end_run("o-1")
    assert begin_attempt(order, RUN, ASKED).failed
    assert order_row("o-1").attempt == 3


def test_failed_orders_are_begun_again_once_and_with_new_keys(database: str) -> None:
    submit_orders([an_order("fails", 2), an_order("too-many", 501), an_order("goes", 1)])
    ids = claim_orders("first", 10)
    carry_on(ids, "bill_customer")
    end_run("fails")
    assert (status("fails"), status("too-many")) == ("compensated", "rejected")
    assert claim_failed_orders("second", "first", 10) == ["fails", "too-many"]
    assert claim_failed_orders("second", "first", 10) == []
    again = order_row("fails")
    assert (again.status, again.attempt, again.run_id, again.error, again.due_cents) == (
        "started",
        2,
        "second",
        None,
        None,
    )
    carry_on(["fails", "goes"])
    assert (status("fails"), status("goes")) == ("dispatched", "dispatched")
    assert [key for key, state, _ in ledger("fails") if state == "captured"] == [
        "fails:1",
        "fails:2",
    ]


def test_a_failed_order_is_begun_again_in_the_shops_present_currency(
    database: str, setting: Callable[[str, object], None]
) -> None:
    submit_orders([an_order("o-1")])
    carry_on(claim_orders("first", 1), "bill_customer")
    end_run("o-1")
    setting("currency", "EUR")
    ended = order_row("o-1")
    assert claim_failed_orders("second", "first", 10) == ["o-1"]
    assert order_row("o-1").currency == "EUR"
    with reading() as session:
        request = session.get_one(Attempt, ("o-1", "second"))
    # The row of the order has nothing of its earlier attempt any more.
    assert (request.previous_status, request.previous_error) == ("compensated", "CheckoutFailed")
    assert request.previous_currency == "USD"
    assert request.previous_ended_at == ended.updated_at


@pytest.mark.parametrize("method", [None, "pm_card_visa"], ids=["their own", "the order's"])
def test_a_failed_order_whose_customer_is_gone_begins_no_attempt_and_stays_as_it_is(
    database: str, method: str | None
) -> None:
    order = an_order("o-1", user_id=add_customer("leaves"), payment_method=method)
    submit_orders([order, an_order("o-2")])
    ids = claim_orders("first", 10)
    carry_on(ids, "bill_customer")
    for id_ in ids:
        end_run(id_)
    remove_customer("leaves")
    before = order_row("o-1")
    with pytest.raises(UserNotFound, match=r"^userId: no customer has the id leaves$"):
        begin_attempt(order, RUN, ASKED)
    assert claim_failed_orders("second", "first", 10) == ["o-2"]
    assert claim_failed_orders("second", "first", 10) == []
    assert failed_orders_without_customer("first") == ["o-1"]
    assert order_row("o-1") == before
    add_customer("leaves")
    assert claim_failed_orders("second", "first", 10) == ["o-1"]
    assert failed_orders_without_customer("first") == []


def test_a_failed_order_whose_book_is_gone_is_rejected_before_anything_is_taken(
    database: str,
) -> None:
    add_book("withdrawn", 5)
    placed("o-1", "bill_customer", book_id="withdrawn")
    end_run("o-1")
    with transaction() as session:
        session.delete(session.get_one(Book, "withdrawn"))
    before = shop()
    assert begin_attempt(an_order("o-1", book_id="withdrawn"), OTHER_RUN, ASKED).owned
    with pytest.raises(BookNotFound, match="no book has the id withdrawn"):
        carry_on(["o-1"], "bill_customer")
    assert status("o-1") == "rejected"
    assert shop() == before


def test_a_failed_order_whose_courier_is_gone_goes_with_another(database: str) -> None:
    placed("o-1", "prepare_order")
    end_run("o-1")
    set_capacities(newcomer=10)
    place("o-1")
    carry_on(["o-1"])
    assert (status("o-1"), order_row("o-1").courier_id) == ("dispatched", "newcomer")


def test_an_order_whose_courier_is_gone_before_it_hands_over_is_dispatched(database: str) -> None:
    placed("o-1", "find_couriers")
    set_capacities(newcomer=10)
    carry_on(["o-1"], after="find_couriers")
    assert (status("o-1"), order_row("o-1").courier_id) == ("dispatched", "city-vans")


@pytest.mark.parametrize("way", ["batch", "run"])
def test_a_submitted_order_is_begun_in_the_shops_present_currency(
    database: str, setting: Callable[[str, object], None], way: str
) -> None:
    submit_orders([an_order("o-1")])
    setting("currency", "EUR")
    if way == "batch":
        assert claim_orders("first", 1) == ["o-1"]
    else:
        assert accept_order(an_order("o-1"), RUN).owned
    assert order_row("o-1").currency == "EUR"


def test_another_order_under_the_same_id_begins_no_attempt(database: str) -> None:
    placed("o-1", "bill_customer")
    end_run("o-1")
    before = shop()
    with pytest.raises(OrderIdConflict, match=r"^orderId: o-1 belongs to an order with other"):
        begin_attempt(an_order("o-1", 2), OTHER_RUN, ASKED)
    assert shop() == before


def test_an_order_read_is_the_order_as_it_stands(database: str) -> None:
    place("o-1", run_id=RUN)
    assert (read_order("o-1").user_id, read_order("o-1").status) == (EDUARDO_SANTANA, "started")
