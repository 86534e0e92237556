"""What people read about an order: its receipt, its timeline, what its error says is given back."""

import re
from collections.abc import Callable
from datetime import timedelta
from zoneinfo import ZoneInfo

import pytest

from orders.batches import begin_batch
from reports.notices import announce_failed_compensation, announce_wait, remind
from reports.receipts import explain, receipt
from reports.story import story
from reports.timeline import timeline
from seed.catalogue import STRIPED_PAJAMAS, TEN_X_RULE
from store.database import reading, transaction
from store.errors import BookHasNoPrice, BookNotFound, CheckoutFailed, OrderInProgress
from store.messages import NO_COURIER, CourierAnswer
from store.models import Notification, utc_now
from tasks.couriers import record_answer
from tests.shop import (
    add_customer,
    assign,
    carry_on,
    end_run,
    failed,
    give_back,
    notices,
    order_row,
    place,
    placed,
    remove_customer,
    saga_records,
    set_order,
)


def test_a_receipt_says_what_was_bought_and_how_it_was_paid(database: str) -> None:
    placed("o-1", "dispatch_order", items={TEN_X_RULE: 5, STRIPED_PAJAMAS: 4}, redeem=True)
    slip = receipt("o-1")
    assert (slip.order_id, slip.attempt, slip.status) == ("o-1", 1, "dispatched")
    assert {(line.title, line.quantity, line.unit_price_cents) for line in slip.lines} == {
        ("The 10X Rule", 5, 20_00),
        ("The Boy in the Striped Pajamas", 4, 75_00),
    }
    assert (slip.total_cents, slip.points_redeemed, slip.billed_cents) == (400_00, 300, 100_00)
    assert (slip.currency, slip.courier) == ("USD", "city-vans")


def test_a_timeline_shows_the_order_its_steps_and_what_was_given_back(database: str) -> None:
    placed("o-1", "redeem_points", 50, redeem=True)
    end_run("o-1")
    lines = timeline("o-1").splitlines()
    assert lines[0] == "### Order `o-1`: compensated"
    assert "| The Boy in the Striped Pajamas | 50 | 75.00 USD |" not in lines
    assert "| The 10X Rule | 50 | 20.00 USD |" in lines
    (copies,) = (line for line in lines if "| check_inventory |" in line)
    taken, given_back = copies.split("|")[3:5]
    assert taken == " 50\u00a0copies "
    assert re.fullmatch(r" 50\u00a0copies, \d\d:\d\d:\d\d ", given_back)
    assert any("calculate_total: total 1000.00 USD |  |  |" in line for line in lines)


def test_a_timeline_has_all_that_happened_in_the_order_of_time_and_of_the_shops_zone(
    database: str, setting: Callable[[str, object], None]
) -> None:
    setting("timezone", "Asia/Tokyo")
    placed("o-1", "prepare_order", 50, redeem=True)
    announce_wait(order_row("o-1"), "http://prefect/run")
    waiting = timeline("o-1")
    until = order_row("o-1").wait_until
    assert until is not None
    local = until.astimezone(ZoneInfo("Asia/Tokyo"))
    assert f"waits for a courier until {local.day} {local:%b %Y, %H:%M} JST" in waiting
    assert (
        "Couriers with room for its 50 copies: city-vans (200 copies free), night-rail" in waiting
    )
    answer = CourierAnswer(outcome=NO_COURIER, reason="snow | ice", answered_by="Ada")
    record_answer("o-1", answer)
    give_back("o-1")
    placed("o-1", "prepare_order", 50, redeem=True)
    rows = [line.split(" | ") for line in timeline("o-1").splitlines() if line.startswith("| ")]
    happened = [cells[1] for cells in rows if len(cells) == 4]
    reserved = saga_records("o-1", 1)["check_inventory"]
    assert reserved.undone_at is not None
    row = next(cells for cells in rows if cells[1] == "check_inventory")
    taken, given_back = (
        f"{at.astimezone(ZoneInfo('Asia/Tokyo')):%H:%M:%S}"
        for at in (reserved.at, reserved.undone_at)
    )
    assert row[0] == f"| {taken}"
    assert given_back in row[3]
    told = ["prepare_order", "notice to the shop: waiting"]
    answered = "answer: no courier available, by Ada, snow \\"
    places = [happened.index(what) for what in told]
    assert places == sorted(places)
    assert any(cells[1].startswith(answered) for cells in rows)
    assert "times in Asia/Tokyo" in timeline("o-1")
    assert timeline("o-1").count("#### Attempt ") == 2
    assert not re.search(r"\d{4}-\d\d-\d\dT", timeline("o-1"))
    assert TEN_X_RULE not in timeline("o-1")


def test_a_timeline_shows_a_long_unbroken_id_without_its_middle(database: str) -> None:
    digits, with_dashes = "0123456789abcdef" * 4, f"{'0123456-' * 7}last"
    for order_id in (digits, with_dashes):
        placed(order_id, "prepare_order", 1)
    assert digits not in timeline(digits)
    assert timeline(digits).startswith("### Order `0123456789abcdef…89abcdef`: waiting\n")
    assert timeline(with_dashes).startswith(f"### Order `{with_dashes}`: waiting\n")


def test_a_timeline_names_a_book_that_there_is_not_by_its_id(database: str) -> None:
    place("o-1", book_id="unknown")
    assert "| unknown | 1 | not known yet |" in timeline("o-1").splitlines()


def test_the_notice_of_a_failed_compensation_says_of_which_attempt_it_is(database: str) -> None:
    placed("o-1", "bill_customer", 50, redeem=True)
    end_run("o-1")
    failed("o-1", "bill_customer")
    announce_failed_compensation(order_row("o-1"))
    with reading() as session:
        notice = session.get_one(Notification, "o-1:2:compensation-failed")
    assert notice.data["attempt"] == 2
    assert notice.body.startswith("Attempt 2 of order o-1 failed (CheckoutFailed), and so did")
    assert [e.attempt for e in story("o-1").events if e.kind == "notification"] == [2]
    give_back("o-1")


def test_the_shop_is_reminded_once_of_each_attempt_whose_wait_is_nearly_over(
    database: str,
) -> None:
    for order_id, minutes in (("soon", 20), ("later", 40)):
        placed(order_id, "prepare_order")
        set_order(order_id, wait_until=utc_now() + timedelta(minutes=minutes))
    placed("decided", "prepare_order")
    assign("decided")
    forms = {order_id: f"http://ui/{order_id}" for order_id in ("soon", "later", "decided")}
    remind(forms)
    assert [key for key in notices() if key.endswith("reminder")] == ["soon:1:reminder"]
    assert _body("soon:1:reminder").endswith(
        "\n\nAnswer here, with the button “Resume”: http://ui/soon"
    )
    with transaction() as session:
        session.delete(session.get_one(Notification, "soon:1:reminder"))
    remind(forms)
    assert [key for key in notices() if key.endswith("reminder")] == []


def test_a_reminder_of_an_order_in_a_batch_says_that_the_answer_counts_for_others_too(
    database: str,
) -> None:
    begin_batch("nightly", None)
    placed("o-1", "prepare_order", run_id="nightly")
    set_order("o-1", wait_until=utc_now() + timedelta(minutes=20))
    remind({"o-1": "http://ui/nightly"})
    assert "counts for all orders of its batch that still wait" in _body("o-1:1:reminder")


def _body(key: str) -> str:
    with reading() as session:
        return session.get_one(Notification, key).body


def test_an_unfinished_order_has_no_receipt(database: str) -> None:
    placed("o-1", "bill_customer")
    with pytest.raises(OrderInProgress, match="o-1 is started"):
        receipt("o-1")


def test_a_failed_order_has_its_reason_instead_of_a_receipt(database: str) -> None:
    place("o-1", book_id="unknown")
    with pytest.raises(BookNotFound):
        carry_on(["o-1"], "check_inventory")
    with pytest.raises(BookNotFound, match=r"^no book has the id unknown$"):
        receipt("o-1")


@pytest.mark.parametrize(
    ("up_to", "given_back"),
    [
        (None, "Nothing was taken."),
        ("check_inventory", "To be given back: 50 copies."),
        ("redeem_points", "To be given back: 50 copies, 300 points."),
        ("prepare_order", "To be given back: 700.00 USD, 50 copies, 300 points."),
    ],
)
def test_an_error_says_what_is_to_be_given_back_before_it_is(
    database: str, up_to: str | None, given_back: str
) -> None:
    place("o-1", 50, redeem=True)
    if up_to:
        carry_on(["o-1"], up_to)
    error = explain("o-1", BookHasNoPrice("it has no price"))
    assert type(error) is BookHasNoPrice
    assert str(error) == f"it has no price. {given_back}"


def test_an_order_that_another_hand_has_compensated_is_not_said_to_have_taken_nothing(
    database: str,
) -> None:
    placed("o-1", "prepare_order", 50, redeem=True)
    end_run("o-1", CheckoutFailed("its run was lost"))
    error = explain("o-1", CheckoutFailed("its run was lost"))
    assert str(error) == "its run was lost. Given back: 700.00 USD, 50 copies, 300 points."


@pytest.mark.parametrize(
    ("undo", "said"),
    [
        ("bill_customer", "Given back: 50 copies, 300 points. To be given back: 700.00 USD."),
        ("check_inventory", "Given back: 700.00 USD, 300 points. To be given back: 50 copies."),
    ],
)
def test_what_could_not_be_given_back_is_not_said_to_be(
    database: str, undo: str, said: str
) -> None:
    failed("o-1", undo)
    assert str(explain("o-1", CheckoutFailed("its run was lost"))) == f"its run was lost. {said}"
    give_back("o-1")


def test_points_of_a_customer_who_is_gone_are_not_said_to_be_given_back(database: str) -> None:
    placed("o-1", "prepare_order", 5, user_id=add_customer("leaves", 50), redeem=True)
    remove_customer("leaves")
    end_run("o-1")
    error = explain("o-1", CheckoutFailed("its run was lost"))
    assert str(error) == "its run was lost. Given back: 50.00 USD, 5 copies."


def test_an_error_of_several_lines_is_told_in_one(database: str) -> None:
    placed("o-1", "check_inventory")
    error = explain("o-1", CheckoutFailed("ValueError: one\n  two\n\nthree"))
    assert str(error) == "ValueError: one two three. To be given back: 1 copies."
