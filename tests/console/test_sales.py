"""`checkout report` and `checkout export`: the same rows as a table, CSV, JSON and Parquet."""

import csv
import io
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args

import pytest
from pyarrow import parquet

from console import sales
from console.sales import EXPORTED
from reports.sales import By
from seed.catalogue import EDUARDO_SANTANA, TEN_X_RULE
from store.database import transaction
from store.models import Book, SagaRecord, utc_now
from terminal.rows import FORMULA, print_csv, write_parquet
from tests.console.conftest import Call
from tests.shop import add_book, end_run, place, placed, set_order

Setting = Callable[[str, object], None]
FORMULA_TITLE = '=HYPERLINK("https://example.org")'


@pytest.fixture
def small_shop(database: str, setting: Setting) -> None:
    """One order dispatched, one compensated and begun again, one billed in euros."""
    add_book("odd", 10, 3_33)
    with transaction() as session:
        session.get_one(Book, "odd").title = FORMULA_TITLE
    placed("o-1", "dispatch_order", 2)
    placed("o-2", "prepare_order", items={TEN_X_RULE: 1, "odd": 2})
    end_run("o-2")
    place("o-2", items={TEN_X_RULE: 1, "odd": 2})
    setting("currency", "EUR")
    placed("o-3", "bill_customer")


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.usefixtures("small_shop")
@pytest.mark.parametrize("by", get_args(By))
def test_a_report_is_the_same_as_csv_json_and_parquet(
    by: By, checkout: Call, tmp_path: Path
) -> None:
    rows = checkout("report", "--by", by, "--json").data
    assert {row["currency"] for row in rows} == {"EUR", "USD"}
    assert sum(row["net_cents"] for row in rows if row["currency"] == "USD") == 40_00
    assert sum(row["refunded_cents"] for row in rows) == 26_66
    assert all(row["net_cents"] == row["captured_cents"] - row["refunded_cents"] for row in rows)
    flat = [
        {**row, "why": ", ".join(f"{error} {n}" for error, n in row["why"].items())} for row in rows
    ]
    file = tmp_path / "sales.parquet"
    said = checkout("report", "--by", by, "--parquet", str(file))
    assert (said.status, said.out) == (0, f"{len(rows)} rows written to {file}.\n")
    assert parquet.read_table(file).to_pylist() == flat
    assert [path.name for path in tmp_path.iterdir()] == ["sales.parquet"]
    # A spreadsheet would carry the title out.
    defused = [{n: f"'{v}" if v == FORMULA_TITLE else str(v) for n, v in r.items()} for r in flat]
    assert read_csv(checkout("report", "--by", by, "--csv").out) == defused


@pytest.mark.usefixtures("small_shop")
def test_a_report_in_a_terminal_has_the_money_in_whole_units_and_its_sums(checkout: Call) -> None:
    with transaction() as session:
        session.get_one(SagaRecord, ("o-3", 1, "bill_customer")).state = "intended"
    said = checkout("report", "--by", "error", "--columns", "error,currency,refunded,net,why")
    with transaction() as session:
        session.get_one(SagaRecord, ("o-3", 1, "bill_customer")).state = "done"
    cells = [line.strip("│ ").split("│") for line in said.out.splitlines() if "USD" in line]
    assert [[cell.strip() for cell in line] for line in cells] == [
        ["USD", "0.00", "40.00"],
        ["CheckoutFailed", "USD", "26.66", "0.00", "CheckoutFailed 1"],
        ["total", "USD", "26.66", "40.00"],
    ]
    assert said.err.startswith("20.00 EUR of charges are in doubt: ")


@pytest.mark.usefixtures("small_shop")
def test_an_export_has_a_row_for_each_attempt_without_names(
    checkout: Call, setting: Setting, tmp_path: Path
) -> None:
    setting("timezone", "Asia/Tokyo")
    begun = datetime(2026, 11, 14, 20, 5, 9, tzinfo=UTC)
    set_order("o-2", created_at=begun)
    period = ("--from", "2026-11-15", "--to", "2026-11-16")
    first, again = checkout("export", *period, "--json").data
    assert list(first) == list(EXPORTED)
    assert (first["attempt"], first["status"], first["error"]) == (
        *(1, "compensated"),
        "CheckoutFailed",
    )
    assert (first["captured_cents"], first["refunded_cents"]) == (26_66, 26_66)
    assert (again["attempt"], again["status"], again["captured_cents"]) == (2, "started", 0)
    assert first["accepted_at"] == again["accepted_at"] == "2026-11-15T05:05:09+09:00"
    assert first["books"] == f"{TEN_X_RULE} x 1, odd x 2"
    of_csv = checkout("export", *period)
    assert [row["accepted_at"] for row in read_csv(of_csv.out)] == ["2026-11-15 05:05:09"] * 2
    assert of_csv.out == checkout("export", *period, "--csv").out
    assert EDUARDO_SANTANA in of_csv.out
    assert "Eduardo" not in of_csv.out
    file = tmp_path / "orders.parquet"
    assert checkout("export", *period, "--parquet", str(file)).status == 0
    assert [row["accepted_at"] for row in parquet.read_table(file).to_pylist()] == [begun, begun]
    assert checkout("export", "--from", "2026-11-16", "--to", "2026-11-17", "--json").data == []


@pytest.mark.usefixtures("database")
def test_left_out_the_period_is_this_month_so_far(checkout: Call) -> None:
    placed("o-1", "dispatch_order")
    placed("o-2", "dispatch_order")
    set_order("o-2", created_at=utc_now().replace(day=1) - timedelta(days=1))
    assert [row["order_id"] for row in checkout("export", "--json").data] == ["o-1"]
    assert sum(row["orders"] for row in checkout("report", "--json").data) == 1


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("report --from 1.11.2026", "--from: '1.11.2026' is no day from 1970-01-01 to 9999-01-01"),
        ("report --from 0001-01-01", "give one such as 2026-11-01"),
        ("export --to 9999-12-31", "--to: '9999-12-31' is no day from"),
        ("export --to 2026-02-30", "--to: '2026-02-30' is no day"),
        (
            "report --from 2026-11-02 --to 2026-11-02",
            "--to 2026-11-02: give a day after",
        ),
        ("export --csv --parquet x", "--csv and --parquet: give one of them."),
    ],
)
def test_wrong_usage_is_refused_with_its_remedy(checkout: Call, words: str, remedy: str) -> None:
    said = checkout(*words.split())
    assert (said.status, said.out) == (2, "")
    assert remedy in said.err


@pytest.mark.usefixtures("database")
def test_without_the_library_of_parquet_nothing_is_written(
    checkout: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sales, "find_spec", lambda _: None)
    for command in ("report", "export"):
        said = checkout(command, "--parquet", str(tmp_path / "x.parquet"))
        assert (said.status, said.out) == (1, "")
        assert "install store-checkout[parquet]" in said.err
    assert list(tmp_path.iterdir()) == []


def test_no_text_is_a_formula_in_a_spreadsheet(capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"{sign}1" for sign in FORMULA]
    print_csv({"text": str, "number": int}, ({"text": text, "number": -1} for text in texts))
    out = capsys.readouterr().out
    assert [row["text"] for row in csv.DictReader(io.StringIO(out, newline=""))] == [
        f"'{text}" for text in texts
    ]
    assert out.count(",-1\r\n") == len(texts)


def test_a_parquet_file_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "sales.parquet"
    assert write_parquet(file, {"number": int}, [{"number": 1}]) == 1
    before = file.read_bytes()

    def fails() -> Iterator[dict[str, int]]:
        yield {"number": 2}
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_parquet(file, {"number": int}, fails())
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
