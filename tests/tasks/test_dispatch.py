"""One decision counts for an order, whoever makes it and when; after it the order goes forward."""

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial

import pytest

from orders.decisions import decisions_of
from orders.waits import expire_waits
from seed.catalogue import STRIPED_PAJAMAS, TEN_X_RULE
from store.database import reading, transaction
from store.errors import CheckoutFailed, CourierWaitExpired, InvalidDecision, NoCourierAvailable
from store.messages import ASSIGNED, NO_COURIER, CourierAnswer, OrderMessage
from store.models import Book, Decision, Notification, utc_now
from store.notifications import Notice
from store.table_queue import TableQueue
from store.table_topic import TableTopic
from tasks.couriers import answer_all, find_couriers, record_answer
from tasks.dispatch import dispatch_order, prepare_order, send_again
from tests.shop import (
    add_book,
    assign,
    assigned_copies,
    at_once,
    carry_on,
    decisions,
    end_run,
    failed,
    give_back,
    messages_about,
    notices,
    order_row,
    place,
    placed,
    queued,
    saga,
    set_capacities,
    set_order,
    shop,
    status,
    statuses,
    stock,
)


def decide(*order_ids: str) -> list[str]:
    return find_couriers.fn(messages_about(order_ids))


def refusal(reason: str = "all are ill") -> CourierAnswer:
    return CourierAnswer(outcome=NO_COURIER, reason=reason, answered_by="Ada")


def test_an_order_waits_from_the_moment_its_message_is_out(database: str) -> None:
    placed("o-1", "bill_customer", 3)
    before = utc_now()
    assert prepare_order.fn(["o-1"]) == ["o-1"]
    order = order_row("o-1")
    assert order.status == "waiting"
    assert order.wait_until is not None
    assert timedelta(hours=4) <= order.wait_until - before < timedelta(hours=4, minutes=2)
    assert queued() == ["o-1"]


def test_a_run_that_starts_again_does_not_ask_again_nor_wait_longer(database: str) -> None:
    placed("o-1", "prepare_order")
    wait_until = order_row("o-1").wait_until
    assert prepare_order.fn(["o-1"]) == ["o-1"]
    assert order_row("o-1").wait_until == wait_until
    assert queued() == ["o-1"]


@pytest.mark.parametrize("begun_again", [False, True])
def test_a_process_left_over_does_not_record_a_message_that_it_has_not_sent(
    database: str, monkeypatch: pytest.MonkeyPatch, begun_again: bool
) -> None:
    place("o-1")
    if begun_again:
        carry_on(["o-1"], "bill_customer")
    send = TableQueue.send

    def slow(queue: TableQueue, bodies: Sequence[str]) -> None:
        send(queue, bodies)
        patch.undo()
        if not begun_again:
            carry_on(["o-1"], "bill_customer")
        else:
            end_run("o-1")
            placed("o-1", "bill_customer")
            # The new attempt's own process dies between its intent and its message.
            with monkeypatch.context() as dying:
                dying.setattr(TableQueue, "send", lambda *_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    prepare_order.fn(["o-1"])

    with monkeypatch.context() as patch:
        patch.setattr(TableQueue, "send", slow)
        prepare_order.fn(["o-1"])
    assert saga("o-1").get("prepare_order") != "done"
    assert prepare_order.fn(["o-1"]) == ["o-1"]
    assert (status("o-1"), saga("o-1")["prepare_order"]) == ("waiting", "done")
    assert len(queued()) == order_row("o-1").attempt


def test_the_freest_courier_takes_the_order(database: str) -> None:
    placed("o-1", "prepare_order", 3)
    assert decide("o-1") == ["o-1"]
    assert (status("o-1"), order_row("o-1").courier_id) == ("dispatching", "city-vans")
    assert decisions("o-1") == [(ASSIGNED, "city-vans", True)]
    assert assigned_copies() == {"city-vans": 3}


def test_the_orders_of_a_group_are_spread_over_the_couriers(database: str) -> None:
    set_capacities(small=10, large=15)
    group = ["o-1", "o-2", "o-3", "o-4"]
    for order_id, quantity in zip(group, (8, 8, 6, 2), strict=True):
        place(order_id, quantity)
    carry_on(group, "prepare_order")
    assert decide(*group) == ["o-1", "o-2", "o-3", "o-4"]
    assert [order_row(id_).courier_id for id_ in group] == ["large", "small", "large", "small"]
    assert assigned_copies() == {"large": 14, "small": 10}


def test_an_order_waits_while_all_couriers_are_busy_and_is_taken_when_one_is_free(
    database: str,
) -> None:
    set_capacities(only=10)
    placed("o-1", "find_couriers", 8)
    placed("o-2", "prepare_order", 3)
    assert decide("o-2") == []
    assert (status("o-2"), decisions("o-2")) == ("waiting", [])
    dispatch_order.fn(["o-1"])
    assert decide("o-2") == ["o-2"]


def test_a_small_order_passes_a_large_one_that_has_to_wait(database: str) -> None:
    set_capacities(only=10)
    for order_id, quantity in (("o-1", 6), ("o-2", 7), ("o-3", 4)):
        placed(order_id, "prepare_order", quantity)
    assert decide("o-1", "o-2", "o-3") == ["o-1", "o-3"]


def test_an_order_that_no_courier_can_carry_gets_none(database: str) -> None:
    placed("o-1", "prepare_order", 200)
    set_capacities(smaller=199)
    assert decide("o-1") == ["o-1"]
    order = order_row("o-1")
    assert (order.status, order.error) == ("compensating", "NoCourierAvailable")
    assert order.message == "no courier carries 200 copies at once"
    assert decisions("o-1") == [(NO_COURIER, None, True)]
    assert end_run("o-1") == "compensated"
    assert stock() == 500


@pytest.mark.parametrize("left", [{}, {"city_vans": 0}], ids=["none", "none with capacity"])
def test_a_charged_order_waits_while_the_shop_has_no_courier_at_all(
    database: str, left: dict[str, int]
) -> None:
    placed("o-1", "prepare_order")
    set_capacities(**left)
    assert decide("o-1") == []
    assert (status("o-1"), decisions("o-1")) == ("waiting", [])
    set_capacities(newcomer=1)
    assert decide("o-1") == ["o-1"]
    assert status("o-1") == "dispatching"


def test_an_answer_that_names_a_courier_of_a_shop_without_any_is_told_how_to_add_one(
    database: str,
) -> None:
    placed("o-1", "prepare_order")
    set_capacities()
    with pytest.raises(InvalidDecision, match=r"the shop has none; `python -m seed --courier"):
        assign("o-1")


@pytest.mark.parametrize("state", ["started", "dispatching", "dispatched", "compensated"])
def test_an_order_that_does_not_wait_is_passed_over(database: str, state: str) -> None:
    last_step = {
        "started": "bill_customer",
        "dispatching": "find_couriers",
        "dispatched": "dispatch_order",
        "compensated": "prepare_order",
    }
    placed("o-1", last_step[state])
    if state == "compensated":
        end_run("o-1")
    before = shop()
    assert decide("o-1") == []
    assert (status("o-1"), shop()) == (state, before)


def test_a_message_of_an_older_attempt_decides_nothing(database: str) -> None:
    placed("o-1", "prepare_order")
    old = messages_about(["o-1"])
    end_run("o-1")
    placed("o-1", "prepare_order")
    assert find_couriers.fn(old) == []
    assert (status("o-1"), order_row("o-1").attempt) == ("waiting", 2)


def test_a_message_in_a_group_twice_or_about_no_order_is_decided_once(database: str) -> None:
    set_capacities(first=10, second=9)
    placed("o-1", "prepare_order", 3)
    message = messages_about(["o-1"])[0]
    unknown = OrderMessage(order_id="unknown", attempt=1, copies=1)
    assert find_couriers.fn([message, unknown, message]) == ["o-1"]
    assert assigned_copies() == {"first": 3}


def test_a_dispatcher_knows_where_the_order_of_each_message_stands(database: str) -> None:
    placed("waits", "prepare_order")
    placed("decided", "find_couriers")
    placed("gone", "dispatch_order")
    placed("refused", "prepare_order", 3)
    record_answer("refused", refusal())
    placed("again", "prepare_order")
    old = messages_about(["again"])[0]
    end_run("again")
    place("again")
    unknown = OrderMessage(order_id="unknown", attempt=1, copies=1)
    messages = messages_about(["waits", "decided", "gone", "refused"])
    known = decisions_of([*messages, old, unknown])

    assert {m.order_id: (s.exists, s.is_open, s.is_done) for m, s in known.items()} == {
        "waits": (True, True, False),
        "decided": (True, False, False),
        "gone": (True, False, True),
        "refused": (True, False, False),
        "again": (True, False, True),
        "unknown": (False, False, False),
    }
    decided = known[messages[1]]
    assert decided.run_id == order_row("decided").run_id
    assert decided.answer == CourierAnswer(
        outcome=ASSIGNED, courier="city-vans", answered_by="dispatch_orders"
    )
    assert known[messages[3]].answer == refusal()
    end_run("refused")


def test_a_message_about_an_order_that_could_not_be_given_back_is_settled(database: str) -> None:
    failed("o-1", "bill_customer")
    (known,) = decisions_of(messages_about(["o-1"])).values()
    assert (status("o-1"), known.is_done) == ("compensation_failed", True)
    give_back("o-1")


def test_a_persons_answer_decides_the_order(database: str) -> None:
    placed("o-1", "prepare_order", 3)
    decision = assign("o-1", "swift-bikes")
    assert (decision.courier_id, decision.decided_by, decision.accepted) == (
        "swift-bikes",
        "Ada",
        True,
    )
    assert (status("o-1"), assigned_copies()) == ("dispatching", {"swift-bikes": 3})


def test_a_persons_refusal_ends_the_order_with_its_reason(database: str) -> None:
    placed("o-1", "prepare_order")
    record_answer("o-1", refusal("all are ill"))
    assert (order_row("o-1").error, order_row("o-1").message) == (
        "NoCourierAvailable",
        "all are ill",
    )
    assert end_run("o-1") == "compensated"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (CourierAnswer(outcome=ASSIGNED), "^courier: give the courier's id for “courier assigned”"),
        (
            CourierAnswer(outcome=ASSIGNED, courier="nobody"),
            "^courier: nobody has the id “nobody”; there are city-vans, night-rail, swift-bikes$",
        ),
        (
            CourierAnswer(outcome=ASSIGNED, courier="swift-bikes"),
            "^courier: swift-bikes has room for 60 copies, the order has 61; choose another one$",
        ),
        (
            CourierAnswer(outcome=NO_COURIER, courier="city-vans"),
            "^courier: leave it empty for “no courier available”, or choose “courier assigned”$",
        ),
    ],
)
def test_an_answer_without_sense_is_refused_and_the_order_waits_on(
    database: str, answer: CourierAnswer, text: str
) -> None:
    placed("o-1", "prepare_order", 61)
    before = shop()
    with pytest.raises(InvalidDecision, match=text):
        record_answer("o-1", answer)
    assert (status("o-1"), decisions("o-1"), shop()) == ("waiting", [], before)
    assign("o-1")
    assert status("o-1") == "dispatching"


def test_an_answer_for_several_orders_is_refused_in_their_words(database: str) -> None:
    placed("o-1", "prepare_order", 101)
    placed("o-2", "prepare_order", 100)
    answer = CourierAnswer(outcome=ASSIGNED, courier="city-vans", answered_by="Ada")
    with pytest.raises(InvalidDecision, match="for 200 copies, the 2 orders have 201; choose"):
        answer_all(["o-1", "o-2"], answer)
    assert statuses(["o-1", "o-2"]) == {"waiting"}


def test_a_courier_whose_room_is_taken_meanwhile_is_refused(database: str) -> None:
    set_capacities(only=10)
    placed("o-1", "prepare_order", 6)
    placed("o-2", "prepare_order", 5)
    assign("o-1", "only")
    with pytest.raises(InvalidDecision, match="only has room for 4 copies, the order has 5"):
        assign("o-2", "only")


def test_a_second_answer_is_kept_and_changes_nothing(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    placed("o-1", "prepare_order", 3)
    assign("o-1", "city-vans")
    with caplog.at_level(logging.WARNING, "store.dispatch"):
        counting = assign("o-1", "swift-bikes")
    assert (counting.courier_id, counting.accepted) == ("city-vans", True)
    assert decisions("o-1") == [
        (ASSIGNED, "city-vans", True),
        (ASSIGNED, "swift-bikes", False),
    ]
    assert assigned_copies() == {"city-vans": 3}
    assert "late answer for order o-1, which is dispatching" in caplog.text


def test_the_same_answer_given_twice_is_one_answer(database: str) -> None:
    placed("o-1", "prepare_order", 3)
    first = assign("o-1")
    assert assign("o-1").id == first.id
    assert decisions("o-1") == [(ASSIGNED, "city-vans", True)]


@pytest.mark.parametrize("ending", ["compensated", "dispatched"])
def test_an_answer_after_the_orders_end_is_kept_and_holds_no_capacity(
    database: str, ending: str
) -> None:
    placed("o-1", "prepare_order", 3)
    if ending == "dispatched":
        carry_on(["o-1"], after="prepare_order")
    else:
        end_run("o-1")
    late = assign("o-1", "swift-bikes")
    assert late.accepted is (ending == "dispatched")
    assert decisions("o-1")[-1] == (ASSIGNED, "swift-bikes", False)
    assert (status("o-1"), assigned_copies()) == (ending, {})


def test_a_wait_that_is_over_ends_the_order(database: str) -> None:
    placed("o-1", "prepare_order")
    set_order("o-1", wait_until=utc_now() - timedelta(seconds=1))
    expire_waits(["o-1"])
    order = order_row("o-1")
    assert (order.status, order.error) == ("compensating", "CourierWaitExpired")
    assert order.message is not None
    assert order.message.startswith("no courier answered until 20")
    assert end_run("o-1") == "compensated"


def test_a_wait_that_is_not_over_goes_on(database: str) -> None:
    placed("o-1", "prepare_order")
    expire_waits(["o-1"])
    assert status("o-1") == "waiting"


def test_a_decision_of_the_last_moment_beats_the_time_out(database: str) -> None:
    placed("o-1", "prepare_order")
    set_order("o-1", wait_until=utc_now() - timedelta(seconds=1))
    assign("o-1")
    expire_waits(["o-1"])
    assert status("o-1") == "dispatching"


def test_a_time_out_beats_a_later_decision(database: str) -> None:
    placed("o-1", "prepare_order", 3)
    set_order("o-1", wait_until=utc_now() - timedelta(seconds=1))
    expire_waits(["o-1"])
    assert assign("o-1").accepted is False
    assert (order_row("o-1").error, assigned_copies()) == ("CourierWaitExpired", {})
    assert end_run("o-1") == "compensated"


def test_of_a_decision_and_a_time_out_at_once_exactly_one_wins(database: str) -> None:
    group = [f"o-{n}" for n in range(8)]
    for order_id in group:
        place(order_id, 2)
    carry_on(group, "prepare_order")
    for order_id in group:
        set_order(order_id, wait_until=utc_now() - timedelta(seconds=1))
    rivals: list[Callable[[], object]] = [
        *(partial(expire_waits, [id_]) for id_ in group),
        *(partial(assign, id_) for id_ in group),
    ]
    at_once(rivals)
    ended = {id_: status(id_) for id_ in group}
    assert set(ended.values()) <= {"dispatching", "compensating"}
    going = [id_ for id_ in group if ended[id_] == "dispatching"]
    assert assigned_copies().get("city-vans", 0) == 2 * len(going)
    for order_id in set(group) - set(going):
        assert decisions(order_id) == [(ASSIGNED, "city-vans", False)]
        end_run(order_id)


def test_messages_sent_again_are_about_waiting_orders_only(database: str) -> None:
    placed("o-1", "prepare_order")
    placed("o-2", "find_couriers")
    send_again(["o-1", "o-2"])
    assert queued() == ["o-1", "o-1", "o-2"]
    assert decide("o-1") == ["o-1"]


def test_the_parcel_is_handed_over_announced_and_frees_its_courier(database: str) -> None:
    placed("o-1", "find_couriers", items={TEN_X_RULE: 2, STRIPED_PAJAMAS: 3}, redeem=True)
    assert dispatch_order.fn(["o-1"]) == ["o-1"]
    assert (status("o-1"), assigned_copies(), notices()) == (
        "dispatched",
        {},
        ["o-1:1:dispatched"],
    )
    with reading() as session:
        notice = session.get_one(Notification, "o-1:1:dispatched")
    assert notice.subject == "Order o-1 is on its way"
    assert set(notice.body.splitlines()[2:4]) == {
        "2 of “The 10X Rule”",
        "3 of “The Boy in the Striped Pajamas”",
    }
    assert notice.body.endswith("Total: 265.00 USD\nPaid with points: 265\nCharged: 0.00 USD")
    assert notice.data == {
        "event": "dispatched",
        "orderId": "o-1",
        "attempt": 1,
        "courier": "city-vans",
        "copies": 5,
        "totalCents": 265_00,
        "pointsRedeemed": 265,
        "chargedCents": 0,
        "currency": "USD",
    }


def test_a_title_that_left_the_catalogue_is_announced_by_its_id(database: str) -> None:
    placed("o-1", "find_couriers", items={TEN_X_RULE: 2, add_book("gone", 3): 3})
    with transaction() as session:
        session.delete(session.get_one(Book, "gone"))
    dispatch_order.fn(["o-1"])
    with reading() as session:
        notice = session.get_one(Notification, "o-1:1:dispatched")
    assert set(notice.body.splitlines()[2:4]) == {"2 of “The 10X Rule”", "3 of “gone”"}


def test_a_parcel_is_handed_over_once_however_often_it_runs(database: str) -> None:
    placed("o-1", "find_couriers", 3)
    placed("o-2", "find_couriers", 4)
    for _ in range(3):
        assert dispatch_order.fn(["o-1"]) == ["o-1"]
    assert notices() == ["o-1:1:dispatched"]
    assert assigned_copies() == {"city-vans": 4}


def test_a_process_left_over_does_not_hand_over_what_it_has_not_announced(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed("o-1", "prepare_order")
    placed("o-2", "find_couriers")
    publish = TableTopic.publish

    def slow(topic: TableTopic, notices: Sequence[Notice]) -> None:
        publish(topic, notices)
        patch.undo()
        # While it is announced the other order gets its courier; its process dies at the topic.
        assign("o-1")
        with monkeypatch.context() as dying:
            dying.setattr(TableTopic, "publish", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                dispatch_order.fn(["o-1"])

    with monkeypatch.context() as patch:
        patch.setattr(TableTopic, "publish", slow)
        assert dispatch_order.fn(["o-1", "o-2"]) == ["o-2"]
    assert (status("o-1"), notices()) == ("dispatching", ["o-2:1:dispatched"])
    assert dispatch_order.fn(["o-1"]) == ["o-1"]
    assert (notices(), assigned_copies()) == (["o-1:1:dispatched", "o-2:1:dispatched"], {})


def test_an_order_without_a_courier_is_not_handed_over(database: str) -> None:
    placed("o-1", "prepare_order")
    placed("o-2", "find_couriers")
    assert dispatch_order.fn(["o-1", "o-2"]) == ["o-2"]
    assert (status("o-1"), notices()) == ("waiting", ["o-2:1:dispatched"])


@pytest.mark.parametrize("state", ["find_couriers", "dispatch_order"])
def test_after_the_pivot_no_failure_gives_anything_back(database: str, state: str) -> None:
    placed("o-1", state, 3)
    before = (shop(), status("o-1"), saga("o-1"))
    end_run("o-1", CheckoutFailed("the topic is gone"))
    assert (shop(), status("o-1"), saga("o-1")) == before


def test_each_of_the_waits_errors_is_the_orders_own(database: str) -> None:
    placed("o-1", "prepare_order")
    record_answer("o-1", refusal())
    with pytest.raises(NoCourierAvailable, match=r"^all are ill$"):
        dispatch_order.fn(["o-1"])
    end_run("o-1")
    placed("o-2", "prepare_order")
    set_order("o-2", wait_until=utc_now() - timedelta(seconds=1))
    expire_waits(["o-2"])
    with pytest.raises(CourierWaitExpired, match=r"^no courier answered until "):
        dispatch_order.fn(["o-2"])
    end_run("o-2")


def test_two_dispatchers_on_the_same_messages_decide_once(database: str) -> None:
    group = [f"o-{n}" for n in range(10)]
    for order_id in group:
        place(order_id, 3)
    carry_on(group, "prepare_order")
    messages = messages_about(group)
    decided = at_once(
        [
            lambda: find_couriers.fn(messages),
            lambda: find_couriers.fn(list(reversed(messages))),
            lambda: find_couriers.fn(messages[5:]),
        ]
    )
    counted = [id_ for ids in decided if not isinstance(ids, Exception) for id_ in ids]
    assert sorted(counted) == group
    assert sum(assigned_copies().values()) == 30
    assert all(len(decisions(id_)) == 1 for id_ in group)


def test_a_decision_is_dated_in_utc(database: str) -> None:
    placed("o-1", "prepare_order")
    before = utc_now()
    assign("o-1")
    with reading() as session:
        decision = session.get_one(Decision, assign("o-1").id)
    assert before <= decision.decided_at <= utc_now()
    assert decision.decided_at.utcoffset() == timedelta(0)
