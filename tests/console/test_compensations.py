"""The compensation queue on the command line: listed, tried now, settled, and shown afterwards."""

import re
from typing import get_args
from uuid import uuid4

import pytest
from prefect.states import Running

from console.compensations import Step
from flows.checkout import store_checkout
from flows.compensation import UNDO
from tests.flows.runs import Runs
from tests.shop import (
    an_order,
    failed,
    kept_cents,
    ledger,
    placed,
    points,
    saga,
    saga_records,
    status,
    stock,
    undos_fail,
)

from .conftest import Call


def test_an_undo_is_named_by_itself_or_by_its_step() -> None:
    assert set(get_args(Step)) == {*UNDO, *(undo.name for undo in UNDO.values())}


def test_what_could_not_be_given_back_is_listed_with_what_is_at_stake(
    database: str, checkout: Call
) -> None:
    failed("o-1", "bill_customer", "check_inventory", "redeem_points")
    listed = checkout("compensations", "--json").data
    assert [(u["order_id"], u["undo"], u["at_stake"], u["tries"], u["error"]) for u in listed] == [
        ("o-1", "refund_customer", "700.00 USD", 1, "ZeroDivisionError: it is broken"),
        ("o-1", "restore_quantity", "50 of “The 10X Rule”", 1, "ZeroDivisionError: it is broken"),
        ("o-1", "restore_points", "300 points", 1, "ZeroDivisionError: it is broken"),
    ]
    assert {u["amount_cents"] for u in listed} == {700_00, 0}
    assert all(u["next_try_at"] is not None for u in listed)
    table = checkout("compensations").out
    for shown in ("refund_customer", "700.00 USD", "ZeroDivisionError: it is broken"):
        assert shown in table
    assert re.search(r"in \d+ s", table)


def test_undos_of_more_orders_than_are_listed_are_told(database: str, checkout: Call) -> None:
    failed("o-1", "bill_customer", "check_inventory")
    assert checkout("compensations", "--limit", "1").err == ""
    failed("o-2", "bill_customer")
    listed = checkout("compensations", "--limit", "1", "--json")
    assert [undo["order_id"] for undo in listed.data] == ["o-1", "o-1"]
    assert listed.err == "There are more than these 1; --limit N lists N.\n"


def test_what_failed_is_tried_again_at_once_alone_or_all_of_it(runs: Runs, checkout: Call) -> None:
    run = runs.client.create_flow_run(store_checkout, parameters={"order": an_order("o-1")})
    runs.client.set_flow_run_state(run.id, Running(), force=True)
    failed("o-1", "bill_customer", "check_inventory", "redeem_points", run_id=str(run.id))

    with undos_fail("check_inventory"):
        again = checkout("compensations", "retry", "o-1", "restore_quantity")
    assert (again.status, again.out) == (1, "")
    assert "check_inventory of order o-1 could not be undone: ZeroDivisionError" in again.err
    assert "Traceback" not in again.err
    assert saga_records("o-1")["check_inventory"].undo_tries == 2
    assert saga_records("o-1")["bill_customer"].undo_tries == 1

    one = checkout("compensations", "retry", "o-1", "restore_quantity", "--json").data
    assert (one["status"], stock(), points(), kept_cents()) == (
        "compensation_failed",
        500,
        0,
        700_00,
    )
    assert [undo["undo"] for undo in one["left"]] == ["refund_customer", "restore_points"]
    rest = checkout("compensations", "retry", "o-1")
    assert (rest.status, rest.out) == (0, "Given back; order o-1 is compensated.\n")
    assert (stock(), points(), kept_cents()) == (500, 300, 0)
    state = runs.client.read_flow_run(run.id).state
    assert state is not None
    assert state.is_failed()

    for arguments, why in (
        (("o-1",), "order o-1 is compensated; nothing is left to be tried"),
        (("o-1", "bill_customer"), "bill_customer of order o-1 was given back by itself"),
        (("nobodys",), "There is no order nobodys"),
    ):
        refused = checkout("compensations", "retry", *arguments)
        assert (refused.status, refused.out) == (1, "")
        assert why in refused.err


def test_what_a_person_settles_ends_the_order_and_is_shown(runs: Runs, checkout: Call) -> None:
    failed("o-1", "bill_customer", "check_inventory", "redeem_points")
    by = ("--by", "Ada", "--reason", "bank transfer of 1 May")
    money = checkout("compensations", "settle", "o-1", "refund_customer", *by, "--json").data
    assert (money["status"], money["settled"]["at_stake"]) == ("compensation_failed", "700.00 USD")
    assert [undo["undo"] for undo in money["left"]] == ["restore_quantity", "restore_points"]
    copies = checkout("compensations", "settle", "o-1", "check_inventory", *by, "--put-back")
    assert copies.out == (
        "Settled: restore_quantity of order o-1, 50 of “The 10X Rule”. "
        "It is compensation_failed.\nLeft: restore_points, 300 points\n"
    )
    assert (
        "It is compensated." in checkout("compensations", "settle", "o-1", "redeem_points", *by).out
    )
    assert (stock(), points()) == (500, 0)
    assert ledger("o-1") == [("o-1:1", "captured", 700_00)]
    assert checkout("compensations", "--json").data == []

    timeline = checkout("show", "o-1", "--json").data["timeline"]
    settled = [event for event in timeline if event["kind"] == "settled"]
    assert [event["what"] for event in settled] == [
        "bill_customer settled by Ada",
        "check_inventory settled by Ada",
        "redeem_points settled by Ada",
    ]
    assert {event["facts"]["result"]["reason"] for event in settled} == {"bank transfer of 1 May"}

    twice = checkout("compensations", "settle", "o-1", "refund_customer", *by)
    assert (twice.status, twice.out) == (1, "")
    assert "bill_customer of order o-1 was settled by Ada" in twice.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["o-1", "refund_customer", "--by", "Ada"], "--reason"),
        (["o-1", "refund_customer", "--by", "Ada", "--reason", " "], "--reason is empty"),
        (["o-1", "refund_customer", "--by", "", "--reason", "x"], "--by is empty"),
        (["o-1", "refund", "--by", "Ada", "--reason", "x"], "restore_quantity"),
        (
            ["o-1", "refund_customer", "--by", "Ada", "--reason", "x", "--put-back"],
            "--put-back: refund_customer gives back what is not kept here",
        ),
    ],
)
def test_a_settlement_without_who_why_and_what_is_wrong_usage(
    database: str, checkout: Call, arguments: list[str], said: str
) -> None:
    answer = checkout("compensations", "settle", *arguments)
    assert (answer.status, answer.out) == (2, "")
    assert said in answer.err


def test_an_order_that_goes_on_has_nothing_to_be_tried_or_settled(
    runs: Runs, checkout: Call
) -> None:
    placed("o-1", "prepare_order", run_id=str(uuid4()))
    by = ("--by", "Ada", "--reason", "x")
    for command in (
        ("retry", "o-1"),
        ("retry", "o-1", "bill_customer"),
        ("settle", "o-1", "bill_customer", *by),
    ):
        said = checkout("compensations", *command)
        assert (said.status, said.out) == (1, "")
        assert "order o-1 is waiting" in said.err
    assert (status("o-1"), saga("o-1")["bill_customer"]) == ("waiting", "done")
