"""The story of an order: everything the database knows of it, over all attempts, and no names."""

import json
from collections.abc import Callable
from dataclasses import asdict

import pytest

from orders.settlement import settle
from reports.story import story
from reports.timeline import timeline
from seed.catalogue import EDUARDO_SANTANA
from store.database import transaction
from store.embedded_gateway import EmbeddedGateway
from store.errors import CompensationFailed, NoCourierAvailable, OrderNotFound
from store.messages import ASSIGNED, NO_COURIER, CourierAnswer
from store.models import QueuedMessage, utc_now
from store.table_queue import TableQueue
from tasks.couriers import record_answer
from tests.shop import assign, carry_on, end_run, give_back, place, placed


def told(order_id: str, *kinds: str) -> list[tuple[int | None, str, str]]:
    """The events of these kinds in their order: attempt, what, and the details."""
    events = sorted(story(order_id).events, key=lambda event: event.at)
    return [(e.attempt, e.what, e.detail) for e in events if e.kind in kinds]


def no_courier(order_id: str) -> None:
    answer = CourierAnswer(outcome=NO_COURIER, reason="snow", answered_by="Ada")
    record_answer(order_id, answer)
    give_back(order_id)


def test_a_second_attempt_is_told_behind_the_first(database: str) -> None:
    placed("o-1", "prepare_order", 50, redeem=True)
    no_courier("o-1")
    assign("o-1", "night-rail")
    placed("o-1", "prepare_order", 50, redeem=True)
    assign("o-1")
    carry_on(["o-1"], after="find_couriers")

    found = story("o-1")
    assert found.order.status == "dispatched"
    assert [(line.title, line.quantity) for line in found.lines] == [("The 10X Rule", 50)]
    assert found.notes == []
    kinds = [event.kind for event in sorted(found.events, key=lambda event: event.at)]
    assert (kinds[0], kinds.count("accepted"), kinds.count("status")) == ("accepted", 1, 1)
    assert [(a, what) for a, what, _ in told("o-1", "step")] == [
        *((1, step) for step in ("check_inventory", "calculate_total", "redeem_points")),
        *((1, step) for step in ("bill_customer", "prepare_order")),
        *((2, step) for step in ("check_inventory", "calculate_total", "redeem_points")),
        *((2, step) for step in ("bill_customer", "prepare_order", "dispatch_order")),
    ]
    assert told("o-1", "undo") == [
        (1, "bill_customer undone", "amount 700.00 USD, reference o-1:1:refund"),
        (1, "check_inventory undone", "copies 50 of 01G4E1A9GF5CZWET09RSBR04PV"),
        (1, "redeem_points undone", "points 300"),
    ]
    assert told("o-1", "charge", "refund") == [
        (1, "charge captured", "700.00 USD, key o-1:1"),
        (1, "refunded", "700.00 USD, key o-1:1:refund"),
        (2, "charge captured", "700.00 USD, key o-1:2"),
    ]
    assert told("o-1", "decision", "late_decision") == [
        (1, NO_COURIER, "by Ada, snow"),
        (1, f"late, not counted: {ASSIGNED}", "courier night-rail, by Ada"),
        (2, ASSIGNED, "courier city-vans, by Ada"),
    ]
    assert [(a, what) for a, what, _ in told("o-1", "message")] == [
        (1, "message to the couriers"),
        (2, "message to the couriers"),
    ]
    assert told("o-1", "notification") == [
        (2, "notification sent", "Order o-1 is on its way (key o-1:2:dispatched)")
    ]


def test_each_attempt_has_its_own_currency(
    database: str, setting: Callable[[str, object], None]
) -> None:
    placed("o-1", "bill_customer")
    end_run("o-1")
    setting("currency", "EUR")
    placed("o-1", "bill_customer")
    details = {(each.attempt, each.what): each.detail for each in story("o-1").events}
    assert details[1, "calculate_total"] == "total 20.00 USD"
    assert details[1, "bill_customer undone"].startswith("amount 20.00 USD")
    assert details[2, "calculate_total"] == "total 20.00 EUR"
    first, second = timeline("o-1").split("#### Attempt 2")
    assert "20.00\u00a0USD" in first
    assert "20.00\u00a0USD" not in second
    assert "20.00\u00a0EUR" in second


def test_no_customer_is_named_and_everything_is_there_as_data(database: str) -> None:
    placed("o-1", "dispatch_order", 50, redeem=True)
    text = json.dumps([asdict(event) for event in story("o-1").events], default=str)
    assert EDUARDO_SANTANA in text
    assert "Eduardo" not in text
    ((_, _, points),) = [step for step in told("o-1", "step") if step[1] == "redeem_points"]
    assert points == "points 300"
    (billed,) = [e for e in story("o-1").events if e.facts.get("step") == "bill_customer"]
    assert billed.facts["result"] == {"amount_cents": 700_00, "reference": "o-1:1"}


def test_intents_refusals_and_failed_undos_are_told_as_what_they_are(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed("o-1", "calculate_total", 50)
    with monkeypatch.context() as patch:
        patch.setattr(EmbeddedGateway, "capture", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            carry_on(["o-1"], "bill_customer", after="redeem_points")
    assert told("o-1", "intent") == [
        (1, "bill_customer asked for, its outcome is not known yet", "amount 1000.00 USD")
    ]
    with monkeypatch.context() as patch:
        patch.setattr(EmbeddedGateway, "refund", lambda *_: 1 / 0)
        with pytest.raises(CompensationFailed):
            end_run("o-1", NoCourierAvailable("snow"))
    assert told("o-1", "undo_failed", "status") == [
        (
            1,
            "bill_customer could not be undone (try 1)",
            "ZeroDivisionError: division by zero",
        ),
        (1, "the order is compensation_failed", "NoCourierAvailable: snow"),
    ]
    settle("o-1", "bill_customer", by="Ada", reason="nothing was captured")
    ((attempt, what, detail),) = told("o-1", "settled")
    assert (attempt, what) == (1, "bill_customer settled by Ada")
    assert "reason nothing was captured" in detail

    place("o-2", payment_method="pm_card_chargeDeclined")
    with pytest.raises(Exception, match="the card was declined"):
        carry_on(["o-2"], "bill_customer")
    assert [what for _, what, _ in told("o-2", "void")] == [
        "bill_customer refused, nothing was taken"
    ]
    assert told("o-2", "charge") == [(1, "charge declined", "20.00 USD, key o-2:1")]
    end_run("o-2")


def test_dead_letters_are_told_and_other_messages_are_left_out(database: str) -> None:
    placed("o-1", "prepare_order")
    placed("o-11", "prepare_order")
    with transaction() as session:
        session.add(
            QueuedMessage(id="m", body='nonsense "o-1"', visible_at=utc_now(), dead_at=utc_now())
        )
    for message in TableQueue().receive(10, wait_seconds=0):
        TableQueue().dead_letter(message, "the order does not exist")
    ((_, _, sent),) = told("o-1", "message")
    ((_, _, dead),) = told("o-1", "dead_letter")
    assert sent.endswith(", receive count 1")
    assert dead == f"{sent.partition(',')[0]}: the order does not exist"


def test_what_another_service_keeps_is_said_to_be_there(
    database: str, setting: Callable[[str, object], None]
) -> None:
    place("o-1")
    for name, value in {
        "queue": "sqs",
        "queue_url": "http://sqs/orders",
        "dead_letter_url": "http://sqs/dead",
        "topic": "sns",
        "topic_arn": "arn:aws:sns:eu-central-1:000000000000:orders",
    }.items():
        setting(name, value)
    in_sqs, in_sns = story("o-1").notes
    assert "in SQS (http://sqs/orders)" in in_sqs
    assert "SNS" in in_sns


def test_an_order_that_is_not_there_has_no_story(database: str) -> None:
    with pytest.raises(OrderNotFound):
        story("o-1")


def test_an_order_called_like_a_field_of_a_message_is_told_its_own_messages(database: str) -> None:
    placed("copies", "prepare_order")
    placed("o-1", "prepare_order")
    assert len(told("copies", "message")) == 1
