"""What `checkout` does with orders that ended long ago."""

import subprocess
from pathlib import Path

import orjson
import pytest

from tests.console.conftest import Call
from tests.shop import LONG_AGO, dead_letters, end_at, end_run, place, placed

OLD = ("archive", "--older-than", "365d")


@pytest.fixture
def archived(database: str, checkout: Call, tmp_path: Path) -> Path:
    """The file of two orders, one dispatched and one rejected."""
    placed("sold", "dispatch_order", 2)
    place("refused")
    end_run("refused")
    end_at(LONG_AGO, "sold", "refused")
    assert checkout(*OLD, "--dry-run").out == "2024-05: 2 orders\n"
    said = checkout(*OLD, "--to", str(tmp_path))
    file = tmp_path / "orders-2024-05.jsonl.gz"
    assert (said.status, said.out) == (0, f"2024-05: 2 orders are in {file}\n")
    assert checkout(*OLD, "--to", str(tmp_path)).out == "There is nothing to archive.\n"
    return file


def test_show_names_the_file_of_an_archived_order_and_how_to_read_it(
    archived: Path, checkout: Call
) -> None:
    said = checkout("show", "sold")
    assert said.status == 0
    assert said.out.startswith("Order sold: archived\n")
    told = checkout("show", "sold", "--json").data
    assert (told["order_id"], told["status"]) == ("sold", None)
    assert told["archive"]["archive"] == str(archived)
    read = subprocess.run(
        ["/bin/sh", "-c", told["archive"]["read"]], check=True, capture_output=True
    )
    order = orjson.loads(read.stdout)
    assert (order["order"]["status"], order["lines"][0]["quantity"]) == ("dispatched", 2)


@pytest.mark.parametrize(
    "command",
    [
        ("cancel", "sold", "--yes"),
        ("compensations", "retry", "refused", "bill_customer"),
        ("compensations", "settle", "sold", "bill_customer", "--by", "Ada", "--reason", "x"),
        ("batch", "submit", '{"userId": "01G4E1AZW2Q1X3QQEYBACQXMFH", "bookId": "B", '
         '"quantity": 2, "orderId": "sold"}'),
    ],
    ids=lambda command: " ".join(command[:2]),
)  # fmt: skip
def test_a_command_on_an_archived_order_is_refused(
    archived: Path,
    deployment: object,
    checkout: Call,
    command: tuple[str, ...],
) -> None:
    said = checkout(*command)
    assert said.status == 1
    assert "ended long ago and is archived" in " ".join(said.err.split())


def test_verify_finds_a_file_that_is_not_what_was_archived(archived: Path, checkout: Call) -> None:
    assert checkout("archive", "verify").out == f"{archived}: as archived, 2 orders\n"
    archived.write_bytes(archived.read_bytes()[:-1])
    said = checkout("archive", "verify", str(archived), "--json")
    assert (said.status, said.data[0]["left_out"]) == (1, 0)
    assert "was changed since it was archived" in said.data[0]["problem"]
    assert dead_letters() == []


def test_archive_needs_a_limit_and_a_place(database: str, checkout: Call) -> None:
    assert (checkout("archive").status, checkout(*OLD).status) == (2, 2)
