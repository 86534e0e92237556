"""What is taken of a file of orders: each order whole, or not at all and named line by line."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from orders.files import LINES_OF_AN_ORDER, Entry, read_orders
from orders.intake import ORDERS_AT_ONCE, load_orders
from orders.sources import opened
from seed.catalogue import EDUARDO_SANTANA, JOHN_DOE, STRIPED_PAJAMAS, TEN_X_RULE
from store.errors import UnreadableSource
from tests.shop import order_row

CASES = Path(__file__).parent / "order_files"
HEADER = "orderId,userId,bookId,quantity,redeem\n"


def row(id_: object, book: str = TEN_X_RULE, quantity: object = 1, user: str = JOHN_DOE) -> str:
    return f"{id_},{user},{book},{quantity},false\n"


def json_row(id_: str, **changes: Any) -> str:
    given = {"orderId": id_, "userId": JOHN_DOE, "bookId": TEN_X_RULE, "quantity": 1} | changes
    return json.dumps(given) + "\n"


def read(text: str | bytes, name: str = "o.csv", *, line_items: bool = False) -> list[Entry]:
    content = text.encode() if isinstance(text, str) else text
    return list(read_orders(io.BytesIO(content), name, line_items=line_items))


def taken(entries: list[Entry]) -> dict[str, dict[str, int]]:
    """Return the copies of each book, by order."""
    return {
        str(entry.order.order_id): {line.book_id: line.quantity for line in entry.order.lines()}
        for entry in entries
        if entry.order
    }


def contents(entries: list[Entry]) -> dict[str, str]:
    """Return all that each order asks for."""
    return {
        str(entry.order.order_id): json.dumps(entry.order.content())
        for entry in entries
        if entry.order
    }


def rejected(entries: list[Entry]) -> dict[int, tuple[str, str]]:
    return {each.line: (each.field, each.reason) for entry in entries for each in entry.rejects}


@pytest.mark.parametrize("second", [row(1, quantity=2), row(1), "1,,,two\n"])
@pytest.mark.parametrize("between", [0, 3, 2 * ORDERS_AT_ONCE])
def test_an_id_that_comes_twice_rejects_all_of_its_lines_by_name(second: str, between: int) -> None:
    others = "".join(row(f"other-{number}") for number in range(between))
    entries = read(HEADER + row(1) + others + second)
    found = rejected(entries)
    assert set(found) == {2, 3 + between}
    assert "1" not in taken(entries)
    assert len(taken(entries)) == between
    assert found[2][0] == "orderId"
    assert f"is in line {3 + between} too" in found[2][1]
    assert "line_items" in found[2][1]
    if "two" not in second:
        assert "is in line 2 too" in found[3 + between][1]


def test_an_id_that_comes_twice_in_json_lines_is_found_in_either_spelling() -> None:
    second = json.dumps({"order_id": "1", "user_id": JOHN_DOE, "book_id": "b", "quantity": 1})
    assert set(rejected(read(json_row("1") + second + "\n", "o.jsonl"))) == {1, 2}


def test_lines_that_follow_each_other_are_one_order_where_the_file_is_told_to_be_so() -> None:
    entries = read((CASES / "line_items.csv").read_bytes(), line_items=True)
    assert taken(entries) == {
        "1001": {TEN_X_RULE: 1, STRIPED_PAJAMAS: 2},
        "1002": {STRIPED_PAJAMAS: 2},
    }
    assert [entry.lines for entry in entries] == [(2, 3), (4, 5)]


def test_a_file_with_a_line_for_each_title_says_how_to_load_it_where_it_is_not_told_so() -> None:
    found = rejected(read((CASES / "line_items.csv").read_bytes()))
    assert set(found) == {2, 3, 4, 5}
    assert all("--line-items" in reason for _, reason in found.values())


def test_what_the_whole_order_says_may_stand_in_one_of_its_lines() -> None:
    header = "orderId,userId,bookId,quantity,redeem,paymentMethod\n"
    text = f"{header}1,{JOHN_DOE},b-1,1,true,pm_card_visa\n1,,b-2,2,,\n"
    (entry,) = read(text, line_items=True)
    assert entry.order
    assert (entry.order.user_id, entry.order.redeem) == (JOHN_DOE, True)
    assert entry.order.payment_method == "pm_card_visa"


@pytest.mark.parametrize(
    ("lines", "field", "reason"),
    [
        (row(1) + row(1, "b-2", user=EDUARDO_SANTANA), "userId", "differs from a line above"),
        (row(1) + row(1, "b-2").replace("false", "true"), "redeem", "differs from a line above"),
        (row(1) + row(1, "b-2", "two"), "quantity", "must be a whole number"),
        (row(1) + row(1, "b-2", 0), "quantity", "greater than or equal to 1"),
        (row(1, quantity=60_000) + row(1, quantity=60_000), "items.0.quantity", "100000"),
        ("".join(row(1, f"b-{n}") for n in range(101)), "items", "at most 100 items"),
    ],
)
def test_lines_that_contradict_each_other_or_are_wrong_reject_the_whole_order(
    lines: str, field: str, reason: str
) -> None:
    entries = read(HEADER + row("before") + lines + row("after"), line_items=True)
    assert set(taken(entries)) == {"before", "after"}
    found = rejected(entries)
    assert set(found) == set(range(3, 3 + lines.count("\n")))
    assert any(each[0] == field and reason in each[1] for each in found.values())


def test_lines_of_one_order_that_are_apart_reject_all_of_it() -> None:
    entries = read(HEADER + row(1) + row(1, "b-2") + row(2) + row(1, "b-3"), line_items=True)
    assert set(taken(entries)) == {"2"}
    assert set(rejected(entries)) == {2, 3, 5}


def test_an_order_of_more_lines_than_are_held_at_once_is_rejected_as_a_whole() -> None:
    count = LINES_OF_AN_ORDER + 1
    entries = read(HEADER + "".join(row(1) for _ in range(count)), line_items=True)
    assert (taken(entries), len(rejected(entries))) == ({}, count)


@pytest.mark.parametrize(
    "unreadable", ['"1,broken\n', ",u,b,1,false\n", b"\xff\n".decode("latin1")]
)
def test_a_line_that_may_belong_to_the_orders_beside_it_rejects_them(unreadable: str) -> None:
    text = HEADER + row(1) + row(2) + unreadable + row(3) + row(4)
    entries = read(text.encode("latin1"), line_items=True)
    # One without an orderId is refused when it is submitted.
    assert set(taken(entries)) - {"None"} == {"1", "4"}
    assert set(rejected(entries)) | {4} == {3, 4, 5}
    alone = read(text.encode("latin1"))
    assert set(taken(alone)) - {"None"} == {"1", "2", "3", "4"}


@pytest.mark.parametrize("user", ["", JOHN_DOE])
def test_an_order_whose_next_line_leaves_its_id_out_is_rejected(user: str) -> None:
    text = HEADER + row(1) + row(2) + row("", STRIPED_PAJAMAS, user=user) + row(3)
    entries = read(text)
    assert set(taken(entries)) - {"None"} == {"1", "3"}
    found = rejected(entries)[3]
    assert found == (
        "orderId",
        "line 4 below it has no orderId and may belong to this order; give each line its orderId, "
        "and load the file with line_items (--line-items)",
    )


WHOLE = {
    "redeem last": (HEADER + row("1001", quantity=120) + row("1002", quantity=35), "o.csv"),
    "quantity last": (
        f"orderId,userId,bookId,quantity\n1001,{JOHN_DOE},b-10,120\n1002,{JOHN_DOE},b-20,35\n",
        "o.csv",
    ),
    "id last": (
        f"bookId,quantity,userId,orderId\r\nb-10,120,{JOHN_DOE},1001\r\nb-2,3,{JOHN_DOE},1002\r\n",
        "o.csv",
    ),
    "an optional last cell": (
        f"orderId,userId,bookId,quantity,paymentMethod\n1001,{JOHN_DOE},b-10,120,pm_1\n"
        f"1002,{JOHN_DOE},b-20,35,\n",
        "o.csv",
    ),
    "each cell quoted": (
        "orderId,userId,bookId,quantity,paymentMethod\n"
        '"1001","u","b-10","120","pm_1"\n"1002","u","b-20","35","pm_2"\n',
        "o.csv",
    ),
    "items quoted": (
        'orderId,userId,items\n1001,u,"[{""bookId"": ""b"", ""quantity"": 120}]"\n'
        '1002,u,"[{""bookId"": ""b"", ""quantity"": 35}]"\n',
        "o.csv",
    ),
    "JSON lines": (json_row("1001", quantity=120) + json_row("1002", quantity=35), "o.jsonl"),
}


@pytest.mark.parametrize(("text", "name"), WHOLE.values(), ids=WHOLE)
def test_wherever_a_file_is_cut_no_half_of_an_order_is_taken(text: str, name: str) -> None:
    whole = contents(read(text, name))
    assert len(whole) == 2
    for end in range(1, len(text)):
        cut = text[:end]
        try:
            entries = read(cut, name)
        except UnreadableSource:
            continue
        assert contents(entries).items() <= whole.items(), cut
        lines = [number for number, line in enumerate(cut.splitlines(), 1) if line.strip(", ")]
        named = [line for entry in entries for line in entry.lines]
        assert named == lines[name == "o.csv" :], cut


def test_wherever_a_file_with_a_line_for_each_title_is_cut_no_half_of_an_order_is_taken() -> None:
    text = (CASES / "line_items.csv").read_text()
    whole = contents(read(text, line_items=True))
    for end in range(len(HEADER), len(text)):
        # At the end of a line nothing shows that another one is to follow.
        if text[end - 1] != "\n":
            assert contents(read(text[:end], line_items=True)).items() <= whole.items(), text[:end]


def test_the_last_line_without_a_line_end_is_taken_where_it_shows_its_end() -> None:
    assert set(taken(read(HEADER + row(1) + row(2).rstrip()))) == {"1", "2"}
    header = "orderId,userId,bookId,quantity\n"
    assert set(taken(read(f'{header}1,u,b,"12"'))) == {"1"}
    (reason,) = rejected(read(f"{header}1,u,b,12")).values()
    assert "end it with one" in reason[1]


@pytest.mark.parametrize("column", [0, 1, 2])
def test_an_id_that_a_spreadsheet_has_rounded_is_rejected_with_the_remedy(column: int) -> None:
    cells = ["1", JOHN_DOE, TEN_X_RULE, "1", "false"]
    cells[column] = "1.23457E+15"
    (found,) = rejected(read(HEADER + ",".join(cells) + "\n")).values()
    assert "rounded by a spreadsheet" in found[1]


@pytest.mark.parametrize("name", ["blank_rows.csv", "ragged.csv"])
def test_what_spreadsheets_leave_empty_is_passed_over(database: str, name: str) -> None:
    with opened(str(CASES / name)) as copy:
        entries = list(read_orders(copy, name, line_items=False))
    assert rejected(entries) == {}
    assert len(taken(entries)) == {"blank_rows.csv": 2, "ragged.csv": 20}[name]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["o.csv", "o.jsonl"])
def test_a_file_is_read_in_the_encoding_that_its_mark_tells(
    database: str, tmp_path: Path, encoding: str, name: str
) -> None:
    text = HEADER + row(1) + row(2) if name == "o.csv" else json_row("1") + json_row("2")
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / name).write_bytes((mark + text.replace("\n", "\r\n")).encode(encoding))
    with opened(str(tmp_path / name)) as copy:
        assert set(taken(list(read_orders(copy, name, line_items=False)))) == {"1", "2"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ((HEADER + row(1)).encode("utf-16-le"), "without a byte order mark; save it as UTF-8"),
        ((HEADER + row(1)).encode("utf-16")[:-1], "it is not UTF-16-LE; save it as UTF-8"),
    ],
)
def test_an_encoding_that_cannot_be_told_refuses_the_file_with_the_remedy(
    database: str, tmp_path: Path, content: bytes, expected: str
) -> None:
    (tmp_path / "o.csv").write_bytes(content)
    with pytest.raises(UnreadableSource, match=expected), opened(str(tmp_path / "o.csv")):
        pass


def test_a_reason_counts_the_other_problems_that_there_are_and_quotes_no_form() -> None:
    text = HEADER + row("a b") + row("c d", quantity=0) + row("2") + row("e", quantity=0)
    found = rejected(read(text))
    assert found[2][1].endswith("begin with a letter or digit")
    assert found[3][1].endswith("(and 1 more)")
    assert found[5] == ("quantity", "Input should be greater than or equal to 1")
    assert "A-Z" not in str(found)


@pytest.mark.parametrize(
    "line",
    [
        json_row("2").strip()[:-1] + ', "quantity": 2}',
        "[" * 60_000,
        "NaN",
        '{"quantity": ' + "9" * 5_000 + "}",
    ],
)
def test_json_that_cannot_be_one_order_is_rejected_as_its_line(line: str) -> None:
    entries = read(line + "\n" + json_row("1"), "o.jsonl")
    assert (set(rejected(entries)), set(taken(entries))) == ({1}, {"1"})


def test_an_order_in_several_lines_is_recorded_once_and_known_the_second_time(
    database: str, tmp_path: Path
) -> None:
    path = tmp_path / "o.csv"
    path.write_bytes((CASES / "line_items.csv").read_bytes())
    first = load_orders.fn(str(path), line_items=True)
    again = load_orders.fn(str(path), line_items=True)
    assert (first.new, first.known, first.rejected) == (2, 0, 0)
    assert (again.new, again.known, again.rejected) == (0, 2, 0)
    assert (order_row("1001").copies, order_row("1002").copies) == (3, 2)


def test_a_refused_order_in_several_lines_rejects_each_of_them(
    database: str, tmp_path: Path
) -> None:
    path = tmp_path / "o.csv"
    path.write_text(HEADER + row(1, user="nobody") + row(1, "b-2", user="nobody") + row(2))
    intake = load_orders.fn(str(path), line_items=True)
    assert [(each.line, each.field) for each in intake.rejects] == [(2, "userId"), (3, "userId")]
    assert (intake.new, intake.refused) == (1, 1)


@pytest.mark.parametrize("name", ["o.csv", "o.jsonl"])
def test_a_file_of_which_each_line_is_wrong_is_unreadable_and_names_the_first(
    database: str, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_text(HEADER + row("a b") + row("c d"))
    with pytest.raises(
        UnreadableSource, match=r"lines that are wrong: \d\. Line \d: .*rejects\.csv"
    ):
        load_orders.fn(str(path))
    assert Path(f"{path}.rejects.csv").read_text().startswith("line,field,reason\n")


@pytest.mark.parametrize("rows", [1, 2_000])
def test_a_file_of_an_old_macs_line_ends_is_refused_with_the_remedy(rows: int) -> None:
    with pytest.raises(UnreadableSource, match="do not end with line feeds; save the file as CSV"):
        read((HEADER + row(1) * rows).replace("\n", "\r"))


def test_a_header_is_refused_without_being_quoted(database: str, tmp_path: Path) -> None:
    path = tmp_path / "o.csv"
    path.write_text("Jane Doe,jane@example.com,quantity\n")
    with pytest.raises(UnreadableSource, match="unknown: column 1, 2 of 3") as refused:
        load_orders.fn(str(path))
    assert "ane" not in str(refused.value)
