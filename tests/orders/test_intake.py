"""Orders from outside: submitted one by one and from files, and claimed by runs."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from sqlmodel import select

from orders.acceptance import accept_order
from orders.batches import begin_batch
from orders.intake import ORDERS_AT_ONCE, Intake, claim_orders, load_orders, submit_orders
from orders.lookup import count_orders
from orders.rows import LINE_BYTES
from seed.catalogue import EDUARDO_SANTANA, STRIPED_PAJAMAS, TEN_X_RULE
from store.database import reading, transaction
from store.errors import OrderIdConflict, RefusedOrder, UnreadableSource, UserNotFound
from store.messages import QUANTITY_RULE
from store.models import Batch, Book, OrderLine, OrderStatus, utc_now
from store.wrong_input import FIELD_LENGTH
from tests.shop import (
    add_book,
    add_customer,
    an_order,
    at_once,
    carry_on,
    order_row,
    remove_customer,
    shop,
    status,
)

HEADER = "orderId,userId,bookId,quantity,redeem\n"


def line(order_id: str, quantity: object = 1) -> str:
    return f"{order_id},{EDUARDO_SANTANA},{TEN_X_RULE},{quantity},false\n"


def json_line(order_id: str | None, **changes: object) -> str:
    order = {"orderId": order_id, "userId": EDUARDO_SANTANA, "bookId": TEN_X_RULE, "quantity": 1}
    return json.dumps({k: v for k, v in (order | changes).items() if v is not None}) + "\n"


def load(path: Path, text: str | bytes) -> Intake:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_orders.fn(str(path))


def counts(intake: Intake) -> tuple[int, int, int]:
    return intake.new, intake.known, intake.rejected


def test_an_order_that_is_submitted_twice_is_recorded_once(database: str) -> None:
    before = shop()
    order = an_order("o-1", 3)
    assert submit_orders([order, order]) == [True, False]
    assert submit_orders([order]) == [False]
    assert (status("o-1"), order_row("o-1").run_id, order_row("o-1").copies) == (
        "submitted",
        None,
        3,
    )
    assert shop() == before


def test_what_is_refused_changes_nothing_and_keeps_no_other_from_being_taken(database: str) -> None:
    submit_orders([an_order("taken", 1)])
    answers = submit_orders(
        [
            an_order("taken", 2),
            an_order("nobody", 1, user_id="nobody"),
            an_order(None, 1),
            an_order("good", 1),
            an_order("good", 2),
        ]
    )
    assert [type(answer) for answer in answers] == [
        OrderIdConflict,
        UserNotFound,
        RefusedOrder,
        bool,
        OrderIdConflict,
    ]
    assert "orderId: missing" in str(answers[2])
    assert count_orders(OrderStatus.SUBMITTED) == 2
    assert order_row("taken").copies == 1


@pytest.mark.parametrize("front_end", [None, "web"])
def test_an_order_is_known_whatever_has_become_of_what_it_names(
    database: str, front_end: str | None
) -> None:
    user_id, book_id = add_customer("leaves"), add_book("sold-out", 1)
    order = an_order("o-1", user_id=user_id, book_id=book_id)
    other = an_order("o-1", 2, user_id=user_id, book_id=book_id)
    submit_orders([order], front_end)
    remove_customer(user_id)
    with transaction() as session:
        session.delete(session.get_one(Book, book_id))
    again = submit_orders([order, other], front_end)
    assert (again[0], type(again[1])) == (False, OrderIdConflict)
    (new,) = submit_orders([an_order("o-2", user_id=user_id)], front_end)
    assert isinstance(new, UserNotFound)


def test_an_order_has_its_own_lines_whatever_was_refused_under_its_id(database: str) -> None:
    answers = submit_orders(
        [
            an_order("o-1", 7, user_id="nobody"),
            an_order("o-1", items={STRIPED_PAJAMAS: 2}),
            an_order("o-1", 5),
        ]
    )
    assert [type(answer) for answer in answers] == [UserNotFound, bool, OrderIdConflict]
    assert order_row("o-1").copies == 2
    with reading() as session:
        (line,) = session.exec(select(OrderLine).where(OrderLine.order_id == "o-1"))
        assert (line.book_id, line.quantity) == (STRIPED_PAJAMAS, 2)


def test_a_submitted_order_may_be_carried_out_by_a_single_run(database: str) -> None:
    order = an_order("o-1", 1)
    submit_orders([order])
    assert accept_order(order, "run").owned
    assert claim_orders("batch", 10) == []
    carry_on(["o-1"])
    assert status("o-1") == "dispatched"


def test_each_order_is_claimed_by_one_run_the_oldest_first(database: str) -> None:
    for number in range(5):
        submit_orders([an_order(f"o-{number}")])
    assert sorted(claim_orders("first", 3)) == ["o-0", "o-1", "o-2"]
    assert sorted(claim_orders("second", 3)) == ["o-3", "o-4"]
    assert claim_orders("third", 3) == []
    assert (status("o-0"), order_row("o-0").run_id) == ("started", "first")


def test_runs_that_claim_at_once_share_the_orders(database: str) -> None:
    submit_orders([an_order(f"o-{number:03d}") for number in range(200)])
    run_ids = [str(uuid4()) for _ in range(4)]

    def claim_all(run_id: str) -> list[str]:
        claimed: list[str] = []
        while more := claim_orders(run_id, 7):
            claimed += more
        return claimed

    shares = at_once([lambda run_id=id_: claim_all(run_id) for id_ in run_ids])  # type: ignore[misc]
    claimed = [id_ for share in shares if isinstance(share, list) for id_ in share]
    # A run that finds all that is left locked by others ends early; nothing is claimed twice.
    assert len(claimed) == len(set(claimed))
    claimed += claim_all("last")
    assert sorted(claimed) == [f"o-{number:03d}" for number in range(200)]


def test_a_file_of_lines_good_and_bad_is_taken_as_far_as_it_goes(
    database: str, tmp_path: Path
) -> None:
    path = tmp_path / "orders.csv"
    intake = load(
        path,
        HEADER
        + line("o-1", 2)
        + line("o-2", "two")
        + "\n"
        + "o-3,nobody,"
        + TEN_X_RULE
        + ",1,false\n"
        + "o-4,too,few\n"
        + line("o-1", 3)
        + line("o-1", 2)
        + f'"o-5,{EDUARDO_SANTANA},{TEN_X_RULE},1,false\n'
        + f"o-6,{EDUARDO_SANTANA},{TEN_X_RULE},1,perhaps\n"
        + line("o-7", 0)
        + line("", 1)
        + f"o-8,{'x' * LINE_BYTES}\n"
        + line("last").rstrip(),
    )
    assert counts(intake) == (1, 0, 11)
    found = {reject.line: (reject.field, reject.reason) for reject in intake.rejects}
    assert found[3] == ("quantity", QUANTITY_RULE)
    assert found[5] == ("userId", "no customer has the id nobody")
    assert found[6] == ("", "quantity missing: give bookId and quantity, or items")
    assert found[2][0] == found[7][0] == found[8][0] == "orderId"
    assert "quotation mark" in found[9][1]
    assert found[10] == ("redeem", "must be true or false")
    assert found[11][0] == "quantity"
    assert found[12][0] == "orderId"
    assert found[13] == ("", f"longer than {LINE_BYTES} bytes")
    assert intake.rejects_file == f"{path}.rejects.csv"
    rejects = Path(intake.rejects_file).read_text().splitlines()
    assert rejects[:2] == ["line,field,reason", f'2,orderId,"{found[2][1]}"']
    assert len(rejects) == 12
    assert claim_orders("run", 10) == ["last"]


def test_the_same_file_twice_changes_nothing(database: str, tmp_path: Path) -> None:
    text = "".join(json_line(f"o-{number}") for number in range(ORDERS_AT_ONCE + 5))
    assert counts(load(tmp_path / "o.jsonl", text)) == (ORDERS_AT_ONCE + 5, 0, 0)
    claim_orders("run", 3)
    before = shop()
    assert counts(load(tmp_path / "o.jsonl", text)) == (0, ORDERS_AT_ONCE + 5, 0)
    assert (shop(), count_orders(OrderStatus.SUBMITTED)) == (before, ORDERS_AT_ONCE + 2)


def test_a_batch_that_reads_its_file_keeps_its_heartbeat(database: str, tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    path.write_text("not an order\n")
    run_id = str(uuid4())
    begin_batch(run_id, str(path))
    long_ago = utc_now() - timedelta(hours=1)
    with transaction() as session:
        session.get_one(Batch, run_id).moved_at = long_ago
    with pytest.raises(UnreadableSource):
        load_orders.fn(str(path), run_id)
    with reading() as session:
        assert session.get_one(Batch, run_id).moved_at > long_ago


def test_json_lines_take_the_single_checkouts_input(database: str, tmp_path: Path) -> None:
    cart = json_line("cart", bookId=None, quantity=None, items=[{"bookId": "b", "quantity": 2}])
    intake = load(
        tmp_path / "o.jsonl",
        b"\xef\xbb\xbf"
        + (json_line("o-1") + cart + json_line("o-2", quantity="1")).encode()
        + b"\xff\xfe\n"
        + (json_line("o-3", colour="red") + "[]\n").encode(),
    )
    assert counts(intake) == (2, 0, 4)
    assert [(each.line, each.field) for each in intake.rejects] == [
        (3, "quantity"),
        (4, ""),
        (5, "colour"),
        (6, ""),
    ]
    # A reject says what is wrong, not what was written.
    assert "red" not in str(intake.rejects)


def test_a_rejected_lines_field_is_quoted_in_short(database: str, tmp_path: Path) -> None:
    text = json_line("o-1", **{"x" * 60_000: 1}) + json_line("o-2")
    (reject,) = load(tmp_path / "o.jsonl", text).rejects
    assert (len(reject.field), reject.reason) == (FIELD_LENGTH, "is not a known field")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("orders.xlsx", "", "no file of a known format"),
        ("orders.pickle", "", "no file of a known format"),
        ("orders.csv", "", "header must name"),
        ("orders.csv", "orderId;userId;bookId\n", "separated by commas"),
        ("orders.csv", "orderId,colour\n", "header must name"),
        ("orders.csv", "orderId,orderId\n", "each once"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_whole(
    database: str, tmp_path: Path, name: str, text: str, expected: str
) -> None:
    with pytest.raises(UnreadableSource, match=expected):
        load(tmp_path / name, text)


def test_only_the_folder_of_orders_is_read_where_it_is_set(
    database: str, tmp_path: Path, setting: Callable[[str, object], None]
) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    setting("orders_folder", inside)
    (inside / "o.jsonl").write_text(json_line("o-1"))
    (tmp_path / "secret.jsonl").write_text(json_line("o-2"))
    (inside / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    assert load_orders.fn("o.jsonl").new == 1
    for outside in ("../secret.jsonl", str(tmp_path / "secret.jsonl"), "link.jsonl"):
        with pytest.raises(UnreadableSource, match="STORE_ORDERS_FOLDER"):
            load_orders.fn(outside)
    with pytest.raises(UnreadableSource, match="cannot be read"):
        load_orders.fn("missing.jsonl")


def test_orders_that_another_run_is_claiming_are_passed_over(database: str) -> None:
    from sqlmodel import col, select

    from store.models import Order

    submit_orders([an_order("locked"), an_order("free")])
    with transaction() as session:
        session.exec(select(Order).where(col(Order.id) == "locked").with_for_update()).one()
        assert claim_orders("run", 10) == ["free"]
