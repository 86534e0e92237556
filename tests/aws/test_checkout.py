"""The checkout's own steps and its dispatcher, over SQS and SNS."""

import json
from collections.abc import Callable

import pytest

from store.errors import NoCourierAvailable, QueueUnavailable, TopicRefused, TopicUnavailable
from store.messages import ASSIGNED, OrderMessage
from store.partners import order_queue
from store.queue import MAX_RECEIVES
from store.saga import fail_orders
from store.settings import settings
from tasks import dispatch
from tasks.dispatch import dispatch_order
from tests.aws.cloud import (
    Answer,
    Cloud,
    Faults,
    after_it_was_done,
    sns_batch,
    sns_error,
    sqs_error,
)
from tests.aws.dispatcher import Dispatcher
from tests.shop import (
    STEPS,
    assigned_copies,
    carry_on,
    decisions,
    give_back,
    order_row,
    place,
    placed,
    queued,
    saga,
    set_capacities,
    status,
)
from tests.shop import notices as notices_in_table

CITY_VANS = [("courier assigned", "city-vans", True)]
"""The decision that the dispatcher comes to in the shop's first state."""


class Chosen(dict[str, str]):
    """The settings by which SQS and SNS are chosen."""

    @property
    def queue_url(self) -> str:
        return self["STORE_QUEUE_URL"]

    @property
    def dead_letter_url(self) -> str:
        return self["STORE_DEAD_LETTER_URL"]

    @property
    def subscribed_url(self) -> str:
        return self["subscribed"]


@pytest.fixture
def chosen(database: str, use_aws: Callable[[], dict[str, str]]) -> Chosen:
    settings_of_aws = Chosen(use_aws())
    settings.cache_clear()
    return settings_of_aws


def message(order_id: str, attempt: int = 1, copies: int = 1) -> str:
    return OrderMessage(order_id=order_id, attempt=attempt, copies=copies).model_dump_json()


def notices(cloud: Cloud, chosen: Chosen) -> list[str]:
    """The keys of the notices that a subscriber got, repetitions and all."""
    published = cloud.published(chosen.subscribed_url)
    return sorted(notice["MessageAttributes"]["key"]["Value"] for notice in published)


def test_an_order_goes_by_sqs_to_a_courier_and_by_sns_to_the_shop(
    cloud: Cloud, chosen: Chosen
) -> None:
    placed("order-1", "prepare_order", quantity=3)
    assert cloud.bodies(chosen.queue_url) == [message("order-1", copies=3)]

    dispatcher = Dispatcher()
    dispatcher.take_in(1)
    dispatcher.look_after()
    assert decisions("order-1") == CITY_VANS
    assert [answer["outcome"] for answer in dispatcher.resumed] == [ASSIGNED]
    assert dispatcher.bodies() == [message("order-1", copies=3)], "kept until the order moved on"

    carry_on(["order-1"], after="find_couriers")
    assert status("order-1") == "dispatched"
    assert assigned_copies() == {}
    dispatcher.look_after()
    assert (dispatcher.report.deleted, dispatcher.bodies()) == (1, [])
    assert cloud.count(chosen.queue_url) == cloud.count(chosen.dead_letter_url) == 0

    (notice,) = cloud.published(chosen.subscribed_url)
    assert notice["Subject"] == "Order order-1 is on its way"
    assert notice["MessageAttributes"]["orderId"]["Value"] == "order-1"
    assert json.loads(notice["Message"]) == {
        "event": "dispatched",
        "key": "order-1:1:dispatched",
        "orderId": "order-1",
        "attempt": 1,
        "courier": "city-vans",
        "copies": 3,
        "totalCents": 60_00,
        "pointsRedeemed": 0,
        "chargedCents": 60_00,
        "currency": "USD",
    }
    assert queued() == notices_in_table() == [], "the tables are not used as well"


def test_nothing_personal_is_sent(cloud: Cloud, chosen: Chosen) -> None:
    placed("order-1", "dispatch_order")
    sent = cloud.bodies(chosen.queue_url) + cloud.bodies(chosen.subscribed_url)
    assert len(sent) == 2
    for personal in ("Eduardo", "Santana", order_row("order-1").user_id, "pm_card"):
        assert personal not in "".join(sent)


def test_a_group_of_orders_is_sent_in_batches_and_once(cloud: Cloud, chosen: Chosen) -> None:
    ids = [place(f"order-{number:02}") for number in range(23)]
    carry_on(ids, "prepare_order")
    STEPS["prepare_order"](ids)
    assert cloud.bodies(chosen.queue_url) == [message(id_) for id_ in ids]


def test_a_message_that_comes_twice_decides_once(cloud: Cloud, chosen: Chosen) -> None:
    placed("order-1", "prepare_order")
    order_queue().send([message("order-1")])
    first, second = Dispatcher(), Dispatcher()
    first.take_in(2)
    second.in_hand = dict([first.in_hand.popitem()])
    first.look_after()
    second.look_after()
    assert decisions("order-1") == CITY_VANS
    assert first.resumed == second.resumed, "both wake the run with the one decision"
    carry_on(["order-1"], after="find_couriers")
    first.look_after()
    second.look_after()
    assert cloud.count(chosen.queue_url) == 0
    assert notices(cloud, chosen) == ["order-1:1:dispatched"]


def test_messages_out_of_order_change_nothing(cloud: Cloud, chosen: Chosen) -> None:
    placed("order-1", "prepare_order")
    fail_orders(["order-1"], NoCourierAvailable("nobody"))
    give_back("order-1")
    placed("order-1", "prepare_order")
    assert order_row("order-1").attempt == 2
    assert cloud.bodies(chosen.queue_url) == [message("order-1", 1), message("order-1", 2)]

    newer_first = Dispatcher()
    newer_first.take_in(2)
    of_attempt = {held.message.attempt: id_ for id_, held in newer_first.in_hand.items()}
    older = newer_first.in_hand.pop(of_attempt[1])
    newer_first.look_after()
    assert decisions("order-1") == CITY_VANS
    newer_first.in_hand[older.received.id] = older
    newer_first.look_after()
    assert newer_first.bodies() == [message("order-1", 2)], "the older one is settled"
    assert decisions("order-1") == CITY_VANS
    carry_on(["order-1"], after="find_couriers")
    newer_first.look_after()
    assert cloud.count(chosen.queue_url) == 0


def test_a_dispatcher_that_dies_leaves_its_messages_to_the_next(
    cloud: Cloud, chosen: Chosen
) -> None:
    placed("order-1", "prepare_order")
    before_deciding = Dispatcher()
    before_deciding.take_in(1)
    before_deciding.die()
    before_resuming = Dispatcher()
    before_resuming.take_in(1)
    before_resuming.look_after()
    before_resuming.die()
    last = Dispatcher()
    last.take_in(1)
    last.look_after()
    assert decisions("order-1") == CITY_VANS
    assert last.resumed == before_resuming.resumed
    carry_on(["order-1"], after="find_couriers")
    last.look_after()
    assert cloud.count(chosen.queue_url) == cloud.count(chosen.dead_letter_url) == 0


def test_an_order_that_waits_for_a_free_courier_is_no_dead_letter(
    cloud: Cloud, chosen: Chosen
) -> None:
    set_capacities(bike=1)
    placed("order-1", "find_couriers")
    placed("order-2", "prepare_order")
    dispatcher = Dispatcher()
    for shift in range(1, MAX_RECEIVES + 3):
        dispatcher.take_in(2 * shift)
        dispatcher.look_after()
        assert decisions("order-2") == []
        order_queue().hand_back([held.received for held in dispatcher.in_hand.values()])
        dispatcher.in_hand.clear()
    assert cloud.bodies(chosen.dead_letter_url) == []
    carry_on(["order-1"], after="find_couriers")
    last = Dispatcher()
    last.take_in(2)
    last.look_after()
    carry_on(["order-2"], after="find_couriers")
    assert status("order-2") == "dispatched"


@pytest.mark.parametrize(
    ("poison", "reason"),
    [
        ("not even JSON", "cannot be read: 1 errors"),
        (json.dumps({"version": 2, "order_id": "order-1", "attempt": 1, "copies": 1}), "cannot"),
        (message("nobody-knows"), "the order does not exist"),
    ],
)
def test_a_poison_message_is_put_aside_and_stops_nobody(
    cloud: Cloud, chosen: Chosen, poison: str, reason: str
) -> None:
    order_queue().send([poison])
    placed("order-1", "prepare_order")
    dispatcher = Dispatcher()
    dispatcher.take_in(2)
    dispatcher.look_after()
    assert decisions("order-1") == CITY_VANS
    (letter,) = cloud.look_into(chosen.dead_letter_url)
    assert letter["Body"] == poison
    assert letter["MessageAttributes"]["reason"]["StringValue"].startswith(reason)

    assert order_queue().redrive() == 1
    again = Dispatcher()
    again.take_in(1)
    again.look_after()
    assert again.report.dead_letters == 1
    assert cloud.bodies(chosen.dead_letter_url) == [poison]
    carry_on(["order-1"], after="find_couriers")


def test_a_dead_letter_whose_cause_is_mended_is_redriven(cloud: Cloud, chosen: Chosen) -> None:
    order_queue().send([message("order-1")])
    dispatcher = Dispatcher()
    dispatcher.take_in(1)
    dispatcher.look_after()
    assert cloud.bodies(chosen.dead_letter_url) == [message("order-1")]
    assert cloud.count(chosen.queue_url) == 0
    placed("order-1", "bill_customer")
    carry_on(["order-1"], "prepare_order", after="bill_customer")
    assert order_queue().redrive() == 1
    assert cloud.count(chosen.dead_letter_url) == 0
    dispatcher.take_in(3)
    dispatcher.look_after()
    assert decisions("order-1") == CITY_VANS
    carry_on(["order-1"], after="find_couriers")
    dispatcher.look_after()
    assert cloud.count(chosen.queue_url) == 0


@pytest.mark.usefixtures("no_delays")
def test_an_order_asks_again_when_sqs_is_back(
    cloud: Cloud, chosen: Chosen, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    place("order-1")
    faults.answer("SendMessageBatch", *[sqs_error(503, "ServiceUnavailable")] * 3)
    monkeypatch.setattr(dispatch, "is_last_try", lambda: False)
    with pytest.raises(QueueUnavailable, match="order-1"):
        carry_on(["order-1"], "prepare_order")
    assert saga("order-1")["prepare_order"] == "intended"
    assert cloud.count(chosen.queue_url) == 0
    carry_on(["order-1"], "prepare_order")
    assert saga("order-1")["prepare_order"] == "done"
    assert cloud.bodies(chosen.queue_url) == [message("order-1")]


@pytest.mark.usefixtures("no_delays")
def test_only_the_orders_that_sqs_did_not_take_are_missing(
    cloud: Cloud, chosen: Chosen, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "is_last_try", lambda: False)
    ids = [place(f"order-{number:02}") for number in range(15)]
    faults.answer("SendMessageBatch", lambda _: None, then=sqs_error(503, "ServiceUnavailable"))
    with pytest.raises(QueueUnavailable, match=r"5 of 15 .*order-10"):
        carry_on(ids, "prepare_order")
    assert cloud.bodies(chosen.queue_url) == [message(id_) for id_ in ids[:10]]


@pytest.mark.usefixtures("no_delays")
def test_a_parcel_goes_on_when_sns_is_back(cloud: Cloud, chosen: Chosen, faults: Faults) -> None:
    placed("order-1", "find_couriers")
    faults.answer("PublishBatch", *[sns_error(503, "ServiceUnavailable")] * 3)
    with pytest.raises(TopicUnavailable, match="order-1:1:dispatched"):
        carry_on(["order-1"], after="find_couriers")
    assert status("order-1") == "dispatching", "never given back after the pivot"
    assert notices(cloud, chosen) == []
    carry_on(["order-1"], after="find_couriers")
    assert status("order-1") == "dispatched"
    assert notices(cloud, chosen) == ["order-1:1:dispatched"]


@pytest.mark.usefixtures("no_delays")
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (sns_batch([0, 2], {1: ("InvalidParameter", True)}), TopicRefused),
        (sns_batch([0, 2], {1: ("InternalError", False)}), TopicUnavailable),
    ],
)
def test_the_parcels_whose_notice_the_topic_took_are_handed_over_once(
    cloud: Cloud, chosen: Chosen, faults: Faults, answer: Answer, error: type[Exception]
) -> None:
    ids = [place(f"order-{number}") for number in range(3)]
    carry_on(ids, "find_couriers")
    again = sns_batch([], {1: ("InternalError", False)})
    faults.answer("PublishBatch", answer, *[again] * (0 if error is TopicRefused else 3))
    with pytest.raises(error, match=r"1 of 3 .* Not taken: order-1:1:dispatched"):
        dispatch_order.fn(ids)
    assert [status(id_) for id_ in ids] == ["dispatched", "dispatching", "dispatched"]
    assert assigned_copies() == {"city-vans": 1}
    assert sorted(dispatch_order.fn(ids)) == ids
    # The answers were the test's, so what a subscriber got was published by the last call alone.
    assert notices(cloud, chosen) == ["order-1:1:dispatched"]


@pytest.mark.usefixtures("no_delays")
def test_a_notice_whose_answer_is_lost_comes_twice_under_one_key(
    cloud: Cloud, chosen: Chosen, faults: Faults
) -> None:
    placed("order-1", "find_couriers")
    faults.answer("PublishBatch", after_it_was_done(sns_error(500, "InternalError")))
    carry_on(["order-1"], after="find_couriers")
    assert status("order-1") == "dispatched"
    assert notices(cloud, chosen) == ["order-1:1:dispatched"] * 2


@pytest.mark.usefixtures("no_delays")
def test_a_message_whose_deletion_fails_is_settled_by_the_next_dispatcher(
    cloud: Cloud, chosen: Chosen, faults: Faults
) -> None:
    placed("order-1", "prepare_order")
    dispatcher = Dispatcher()
    dispatcher.take_in(1)
    dispatcher.look_after()
    carry_on(["order-1"], after="find_couriers")
    received = [held.received for held in dispatcher.in_hand.values()]
    faults.answer("DeleteMessageBatch", *[sqs_error(503, "ServiceUnavailable")] * 3)
    with pytest.raises(QueueUnavailable):
        dispatcher.look_after()
    order_queue().hide(received, seconds=0)
    second = Dispatcher()
    second.take_in(1)
    second.look_after()
    assert (second.report.deleted, second.resumed) == (1, [])
    assert cloud.count(chosen.queue_url) == 0
