"""The table of compensation: each step fails before its effect, within it, after it; and each undo.

The order is the original's example: 50 copies of The 10X Rule at 20.00, 300 points redeemed,
700.00 billed. Whatever happens, it is then either given up or carried on, and both ways the books
are right to the copy, the point and the cent.
"""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tasks
from flows import compensation
from store.embedded_gateway import EmbeddedGateway
from store.errors import CheckoutFailed, CompensationFailed
from store.saga import Forward, fail_orders, record_undo_failure
from store.table_queue import TableQueue
from store.table_topic import TableTopic
from tasks.steps import UNDOS
from tests.books_balance import assert_books_balance
from tests.shop import (
    STEPS,
    carry_on,
    end_run,
    give_back,
    kept_cents,
    ledger,
    notices,
    order_row,
    place,
    placed,
    points,
    queued,
    saga,
    saga_records,
    shop,
    status,
    stock,
)

NOTHING_TO_UNDO = {
    "calculate_total": "it takes nothing",
    "prepare_order": "a message about an order that has moved on is ignored",
    "dispatch_order": "it comes after the pivot: a parcel under way is not called back",
}
UNDO_OF = {
    "bill_customer": "refund_customer",
    "check_inventory": "restore_quantity",
    "redeem_points": "restore_points",
}


Inject = Callable[[pytest.MonkeyPatch], None]


class Fault(Exception):
    """What is injected."""


def fails_before(patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """The call never arrives."""

    def never(*_: Any, **__: Any) -> Any:
        raise Fault(f"{name} was not reached")

    patch.setattr(owner, name, never)


def fails_after(patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """The call takes effect and its answer is lost."""
    call = getattr(owner, name)

    def deaf(*arguments: Any, **options: Any) -> Any:
        call(*arguments, **options)
        raise Fault(f"the answer of {name} was lost")

    patch.setattr(owner, name, deaf)


def before_it(owner: Any, name: str) -> Inject:
    return lambda patch: fails_before(patch, owner, name)


def after_it(owner: Any, name: str) -> Inject:
    return lambda patch: fails_after(patch, owner, name)


WRITTEN = after_it(Forward, "_write")
"""The effect and its record are written and not committed: neither may stay."""
COMMITTED = before_it(Forward, "going_on")
"""The step is committed, and its task dies before it says so."""

RESERVED = {"check_inventory": "undone"}
PRICED = {**RESERVED, "calculate_total": "done"}
REDEEMED = {**PRICED, "redeem_points": "undone"}
BILLED = {**REDEEMED, "bill_customer": "undone"}
CAPTURED = [("o-1:1", "captured", 700_00)]
REFUNDED = [*CAPTURED, ("o-1:1:refund", "refunded", 700_00)]
VOID = [("o-1:1", "void", 700_00)]

STEP_FAULTS = [
    # The step, what fails, and after giving up: status, saga log, ledger, messages.
    ("check_inventory", before_it(tasks.inventory, "forward"), "rejected", {}, [], []),
    ("check_inventory", before_it(tasks.inventory, "increase"), "rejected", {}, [], []),
    ("check_inventory", WRITTEN, "rejected", {}, [], []),
    ("check_inventory", COMMITTED, "compensated", RESERVED, [], []),
    ("calculate_total", before_it(tasks.pricing, "forward"), "compensated", RESERVED, [], []),
    ("calculate_total", WRITTEN, "compensated", RESERVED, [], []),
    ("calculate_total", COMMITTED, "compensated", PRICED, [], []),
    ("redeem_points", before_it(tasks.points, "forward"), "compensated", PRICED, [], []),
    ("redeem_points", before_it(tasks.points, "increase"), "compensated", PRICED, [], []),
    ("redeem_points", WRITTEN, "compensated", PRICED, [], []),
    ("redeem_points", COMMITTED, "compensated", REDEEMED, [], []),
    ("bill_customer", before_it(tasks.billing, "forward"), "compensated", REDEEMED, [], []),
    ("bill_customer", WRITTEN, "compensated", REDEEMED, [], []),
    ("bill_customer", before_it(EmbeddedGateway, "capture"), "compensated", BILLED, VOID, []),
    ("bill_customer", after_it(EmbeddedGateway, "capture"), "compensated", BILLED, REFUNDED, []),
    ("bill_customer", before_it(Forward, "done"), "compensated", BILLED, REFUNDED, []),
    ("bill_customer", COMMITTED, "compensated", BILLED, REFUNDED, []),
    ("prepare_order", before_it(tasks.dispatch, "forward"), "compensated", BILLED, REFUNDED, []),
    (
        "prepare_order",
        before_it(TableQueue, "send"),
        "compensated",
        {**BILLED, "prepare_order": "intended"},
        REFUNDED,
        [],
    ),
    (
        "prepare_order",
        after_it(TableQueue, "send"),
        "compensated",
        {**BILLED, "prepare_order": "intended"},
        REFUNDED,
        ["o-1"],
    ),
    (
        "prepare_order",
        COMMITTED,
        "compensated",
        {**BILLED, "prepare_order": "done"},
        REFUNDED,
        ["o-1"],
    ),
    (
        "find_couriers",
        before_it(tasks.couriers, "_decide"),
        "compensated",
        {**BILLED, "prepare_order": "done"},
        REFUNDED,
        ["o-1"],
    ),
    (
        "find_couriers",
        after_it(tasks.couriers, "_decide"),
        "compensated",
        {**BILLED, "prepare_order": "done"},
        REFUNDED,
        ["o-1"],
    ),
]
AFTER_THE_PIVOT = [
    before_it(tasks.dispatch, "forward"),
    before_it(TableTopic, "publish"),
    after_it(TableTopic, "publish"),
    before_it(tasks.dispatch, "increase"),
    WRITTEN,
    COMMITTED,
]


def with_fault(step: str, fault: Inject) -> None:
    """Carry the example order on up to ``step``, which fails; after the fault all is well."""
    place("o-1", 50, redeem=True)
    before = list(STEPS)[: list(STEPS).index(step)]
    if before:
        carry_on(["o-1"], before[-1])
    with pytest.MonkeyPatch.context() as patch:
        fault(patch)
        with pytest.raises(Fault):
            STEPS[step](["o-1"])
    assert_books_balance()


@pytest.mark.parametrize(("step", "fault", "ending", "log", "money", "messages"), STEP_FAULTS)
def test_an_order_given_up_after_a_fault_gives_back_exactly_what_it_took(
    database: str,
    step: str,
    fault: Inject,
    ending: str,
    log: dict[str, str],
    money: list[tuple[str, str, int]],
    messages: list[str],
) -> None:
    placed("bystander", "bill_customer", 7)
    bystander = (saga("bystander"), ledger("bystander"), status("bystander"))
    with_fault(step, fault)

    assert end_run("o-1", CheckoutFailed("a fault")) == ending
    assert saga("o-1") == log
    assert ledger("o-1") == money
    assert (stock(), points(), kept_cents()) == (493, 300, 140_00)
    assert (queued(), notices()) == (messages, [])
    assert (order_row("o-1").error, order_row("o-1").message) == ("CheckoutFailed", "a fault")
    assert (saga("bystander"), ledger("bystander"), status("bystander")) == bystander

    after = shop()
    assert end_run("o-1", CheckoutFailed("once more")) == ending
    assert give_back("o-1") == {}
    assert (shop(), order_row("o-1").message) == (after, "a fault")


@pytest.mark.parametrize(("step", "fault"), [row[:2] for row in STEP_FAULTS])
def test_an_order_that_goes_on_after_a_fault_takes_everything_once(
    database: str, step: str, fault: Inject
) -> None:
    with_fault(step, fault)
    carry_on(["o-1"])
    assert status("o-1") == "dispatched"
    assert (stock(), points(), ledger()) == (450, 0, CAPTURED)
    assert notices() == ["o-1:1:dispatched"]
    assert set(queued()) == {"o-1"}
    assert set(saga("o-1").values()) == {"done"}


@pytest.mark.parametrize("fault", AFTER_THE_PIVOT)
@pytest.mark.parametrize("given_up", [True, False])
def test_after_the_pivot_every_fault_leads_forward(
    database: str, fault: Inject, given_up: bool
) -> None:
    with_fault("dispatch_order", fault)
    if given_up:
        assert end_run("o-1") in ("dispatching", "dispatched")
        assert give_back("o-1") == {}
    carry_on(["o-1"])
    assert status("o-1") == "dispatched"
    assert order_row("o-1").error is None
    assert (stock(), points(), ledger()) == (450, 0, CAPTURED)
    assert notices() == ["o-1:1:dispatched"]


UNDO_FAULTS = [
    # The step whose undo fails, what fails, the step's state, stock, points and money then.
    ("bill_customer", before_it(tasks.billing, "backward"), "done", 500, 300, 700_00),
    ("bill_customer", before_it(EmbeddedGateway, "refund"), "done", 500, 300, 700_00),
    ("bill_customer", after_it(EmbeddedGateway, "refund"), "done", 500, 300, 0),
    ("check_inventory", before_it(tasks.inventory, "backward"), "done", 450, 300, 0),
    ("check_inventory", before_it(tasks.inventory, "increase"), "done", 450, 300, 0),
    ("check_inventory", after_it(tasks.inventory, "increase"), "done", 450, 300, 0),
    ("redeem_points", before_it(tasks.points, "backward"), "done", 500, 0, 0),
    ("redeem_points", after_it(tasks.points, "increase"), "done", 500, 0, 0),
]


@pytest.mark.parametrize(("step", "fault", "state", "copies", "spent", "money"), UNDO_FAULTS)
def test_an_undo_that_fails_leaves_a_failed_compensation_and_the_others_done(
    database: str,
    step: str,
    fault: Inject,
    state: str,
    copies: int,
    spent: int,
    money: int,
) -> None:
    placed("o-1", "prepare_order", 50, redeem=True)
    with pytest.MonkeyPatch.context() as patch:
        fault(patch)
        with pytest.raises(CompensationFailed, match="not everything could be given back for o-1"):
            end_run("o-1")
    assert status("o-1") == "compensation_failed"
    assert {s: saga("o-1")[s] for s in UNDOS} == {
        s: state if s == step else "undone" for s in UNDOS
    }
    assert (stock(), points(), kept_cents()) == (copies, spent, money)
    record = saga_records("o-1")[step]
    assert record.undo_tries == 1
    assert record.undo_error is not None
    assert record.undo_error.startswith("Fault: ")

    assert give_back("o-1") == {"o-1": "compensated"}
    assert (stock(), points(), ledger()) == (500, 300, REFUNDED)
    assert saga("o-1") == {**BILLED, "prepare_order": "done"}
    record = saga_records("o-1")[step]
    assert (record.undo_tries, record.undo_error) == (1, None)
    assert give_back("o-1") == {}


@pytest.mark.parametrize("step", list(UNDO_OF))
def test_an_undo_whose_answer_is_lost_after_its_commit_is_done(database: str, step: str) -> None:
    placed("o-1", "prepare_order", 50, redeem=True)
    undo = compensation.UNDO[step]
    work = undo.fn
    with pytest.MonkeyPatch.context() as patch:

        def deaf(order_ids: list[str]) -> list[str]:
            work(order_ids)
            raise Fault("the answer was lost")

        patch.setattr(undo, "fn", deaf)
        assert end_run("o-1") == "compensated"
    assert (stock(), points(), ledger()) == (500, 300, REFUNDED)


def test_money_is_given_back_first_then_copies_then_points(database: str) -> None:
    placed("o-1", "prepare_order", 50, redeem=True)
    end_run("o-1")
    records = saga_records("o-1")
    undone_at = [records[step].undone_at for step in UNDOS]
    assert None not in undone_at
    assert undone_at == sorted(undone_at, key=str)
    assert tuple(UNDOS) == ("bill_customer", "check_inventory", "redeem_points")


def test_only_the_failed_orders_of_a_group_are_given_back(database: str) -> None:
    group = ["o-1", "o-2", "o-3"]
    for order_id in group:
        place(order_id, 10)
    carry_on(group, "bill_customer")
    assert end_run("o-2") == "compensated"
    assert give_back(*group) == {}
    carry_on(["o-1", "o-3"], after="bill_customer")
    assert [status(id_) for id_ in group] == ["dispatched", "compensated", "dispatched"]
    assert (stock(), kept_cents()) == (480, 400_00)


def test_an_undo_that_fails_for_one_group_is_tried_again_for_all_of_it(database: str) -> None:
    group = ["o-1", "o-2"]
    for order_id in group:
        place(order_id, 10)
    carry_on(group, "bill_customer")
    fail_orders(group, CheckoutFailed("both"))
    with pytest.MonkeyPatch.context() as patch:
        fails_before(patch, EmbeddedGateway, "refund")
        with pytest.raises(CompensationFailed, match="for o-1, o-2; it is tried again"):
            give_back(*group)
    assert [saga_records(id_)["bill_customer"].undo_tries for id_ in group] == [1, 1]
    assert give_back(*group) == {"o-1": "compensated", "o-2": "compensated"}
    assert kept_cents() == 0


def test_what_is_kept_of_an_error_is_short(database: str) -> None:
    placed("o-1", "bill_customer")
    fail_orders(["o-1"], CheckoutFailed("x" * 10_000))
    record_undo_failure("bill_customer", ["o-1"], "y" * 10_000)
    assert order_row("o-1").message == "x" * 499 + "…"
    assert saga_records("o-1")["bill_customer"].undo_error == "y" * 499 + "…"
    give_back("o-1")


def test_what_was_found_about_an_attempt_does_not_end_the_next_one(database: str) -> None:
    placed("o-1", "bill_customer", 10)
    found = {"o-1": 1}
    end_run("o-1")
    placed("o-1", "bill_customer", 10)
    assert fail_orders(["o-1"], CheckoutFailed("its run ended too often"), found) == []
    assert status("o-1") == "started"
    assert fail_orders(["o-1"], CheckoutFailed("its run ended too often"), {"o-1": 2}) == ["o-1"]
    give_back("o-1")


def steps_with_a_record() -> set[str]:
    """The steps that the tasks record in the saga log, read from their source."""
    found = set()
    for path in Path(str(tasks.__file__)).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == "forward"
                and isinstance(node.args[0], ast.Constant)
            ):
                found.add(str(node.args[0].value))
    return found


def test_every_step_has_an_undo_or_a_reason_for_none_and_stands_in_the_table() -> None:
    steps = steps_with_a_record()
    assert steps == set(compensation.UNDO) | set(NOTHING_TO_UNDO)
    assert not set(compensation.UNDO) & set(NOTHING_TO_UNDO)
    assert steps | {"find_couriers"} == set(STEPS)
    assert {row[0] for row in STEP_FAULTS} == set(STEPS) - {"dispatch_order"}
    assert {row[0] for row in UNDO_FAULTS} == set(compensation.UNDO)
    assert {step: undo.name for step, undo in compensation.UNDO.items()} == UNDO_OF


def test_every_undo_stands_beside_its_step() -> None:
    for step, undo in UNDO_OF.items():
        owner = next(m for m in (tasks.billing, tasks.inventory, tasks.points) if hasattr(m, step))
        assert hasattr(owner, undo)
