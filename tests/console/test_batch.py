"""Batches on the command line: orders recorded ahead, carried out here, and what failed."""

import csv
import io
import json
from pathlib import Path

import pytest

from orders.batches import begin_batch
from seed.catalogue import EDUARDO_SANTANA, STRIPED_PAJAMAS, TEN_X_RULE
from store.errors import NoCourierAvailable
from store.messages import QUANTITY_RULE
from tests.flows.runs import Runs
from tests.shop import end_run, order_row, place, placed, status

from .conftest import Call

ORDER = {"orderId": "o-1", "userId": EDUARDO_SANTANA, "bookId": TEN_X_RULE, "quantity": 1}


def test_one_order_is_recorded_ahead_once(database: str, checkout: Call) -> None:
    assert checkout("batch", "submit", json.dumps(ORDER)).out == "submitted\n"
    assert checkout("batch", "submit", json.dumps(ORDER)).out == "known already; nothing changed\n"
    assert status("o-1") == "submitted"
    other = checkout("batch", "submit", json.dumps({**ORDER, "quantity": 2}))
    assert (other.status, other.out) == (1, "")
    assert "orderId: o-1 belongs to an order with other content" in other.err
    wrong = checkout("batch", "submit", json.dumps({**ORDER, "quantity": 0}), "--json")
    assert (wrong.status, wrong.out) == (1, "")
    assert "quantity: Input should be greater than" in wrong.err


def test_the_lines_of_a_file_are_counted_and_a_wrong_one_is_named(
    database: str, checkout: Call, tmp_path: Path
) -> None:
    source = tmp_path / "orders.csv"
    good = f"{EDUARDO_SANTANA},{TEN_X_RULE}"
    source.write_text(f"orderId,userId,bookId,quantity\no-1,{good},1\no-2,{good},x\n")
    said = checkout("batch", "submit", str(source))
    assert said.status == 1
    assert said.out.splitlines()[:2] == [
        "1 new, 0 known, 1 lines rejected",
        f"  line 3: quantity: {QUANTITY_RULE}",
    ]
    again = checkout("batch", "submit", str(source), "--json")
    assert (again.status, again.data["new"], again.data["known"]) == (1, 0, 1)
    assert again.data["rejected_lines"] == 1
    assert again.data["rejects"] == [{"line": 3, "field": "quantity", "reason": QUANTITY_RULE}]
    missing = checkout("batch", "submit", str(tmp_path / "none.csv"))
    assert (missing.status, missing.out) == (1, "")
    assert "none.csv cannot be read" in missing.err


def test_a_batch_is_carried_out_here_and_its_failures_are_listed(
    runs: Runs, checkout: Call, tmp_path: Path
) -> None:
    lines = [json.dumps({**ORDER, "orderId": f"o-{n}", "quantity": 501}) for n in (1, 2)]
    source = tmp_path / "orders.jsonl"
    source.write_text("\n".join(lines))
    said = checkout("batch", "run", str(source), "--tolerated-failures", "0.5", "--json")
    assert (said.status, said.data["state"]) == (1, "Failed")
    assert "2 orders: 2 rejected; more than 50% failed" in said.data["message"]
    source.write_text("")
    empty = checkout("batch", "run", str(source), "--json")
    assert (empty.status, empty.data["report"]["orders"]) == (0, 0)


def test_a_file_with_a_line_for_each_title_is_submitted_and_carried_out_as_such(
    runs: Runs, checkout: Call, tmp_path: Path
) -> None:
    source = tmp_path / "orders.csv"
    lines = [f"o-1,{EDUARDO_SANTANA},{book},501\n" for book in (TEN_X_RULE, STRIPED_PAJAMAS)]
    source.write_text("orderId,userId,bookId,quantity\n" + "".join(lines))
    refused = checkout("batch", "submit", str(source))
    assert (refused.status, refused.out) == (1, "")
    assert "--line-items" in refused.err
    assert checkout("batch", "submit", str(source), "--line-items").out.startswith("1 new")
    said = checkout("batch", "run", str(source), "--line-items", "--json")
    assert "1 orders: 1 rejected; more than 25% failed" in said.data["message"]
    assert order_row("o-1").copies == 1_002


def test_a_batch_of_a_file_without_an_order_fails(
    runs: Runs, checkout: Call, tmp_path: Path
) -> None:
    source = tmp_path / "orders.jsonl"
    source.write_text("not an order\nnor this\n")
    said = checkout("batch", "run", str(source), "--json")
    assert (said.status, said.data["state"]) == (1, "Failed")
    assert "has no order that can be taken" in said.data["message"]


@pytest.mark.usefixtures("database")
def test_the_failed_orders_of_a_run_are_listed_as_csv_or_data(
    checkout: Call, tmp_path: Path
) -> None:
    run_id = "0b5ab1c5-0000-4000-8000-000000000001"
    begin_batch(run_id, None)
    placed("o-1", "bill_customer", run_id=run_id)
    end_run("o-1", NoCourierAvailable("- snow, and ice"))
    place("o-2", run_id=run_id)
    rows = [
        ["orderId", "status", "error", "message"],
        # A spreadsheet would take what a person wrote for a formula.
        ["o-1", "compensated", "NoCourierAvailable", "'- snow, and ice"],
    ]
    assert list(csv.reader(io.StringIO(checkout("batch", "failed", run_id).out))) == rows
    # Standard output is still there for the next one.
    assert checkout("batch", "failed", run_id, "--json").data == [
        {
            "order_id": "o-1",
            "status": "compensated",
            "error": "NoCourierAvailable",
            "message": "- snow, and ice",
        }
    ]
    file = tmp_path / "failed.csv"
    assert checkout("batch", "failed", run_id, "--to", str(file)).out == ""
    assert list(csv.reader(io.StringIO(file.read_text()))) == rows


@pytest.mark.parametrize("command", [("failed",), ("failed", "--json"), ("run", "--failed-of")])
def test_the_id_of_no_batch_is_refused(
    database: str, checkout: Call, command: tuple[str, ...]
) -> None:
    # An order, and its run, are no batch.
    place("o-1", run_id="0b5ab1c5-0000-4000-8000-000000000001")
    for wrong in ("o-1", "0b5ab1c5-0000-4000-8000-000000000001"):
        said = checkout("batch", *command, wrong)
        assert (said.status, said.out) == (1, "")
        assert f"no batch was carried out in a run {wrong}" in said.err
