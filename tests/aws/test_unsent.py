"""A queue that refuses or stays away ends no order: the order waits and is asked about again."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from prefect.states import Paused

from console.diagnosis import Diagnosis, Verdict
from console.doctor import CHECKS
from flows.recovery import Move, next_move
from orders.unfinished import as_unfinished
from orders.waits import expire_waits
from store.database import transaction
from store.errors import QueueRefused, QueueUnavailable
from store.messages import OrderMessage
from store.models import Notification, OrderStatus, utc_now
from store.settings import settings
from tasks import dispatch
from tasks.dispatch import prepare_order, send_again
from tests.aws.cloud import Answer, Cloud, Faults, http, sns_error, sqs_batch, sqs_error
from tests.shop import (
    at_once,
    carry_on,
    end_run,
    give_back,
    notices,
    order_row,
    place,
    placed,
    saga,
    saga_records,
    set_order,
    status,
    statuses,
)

pytestmark = pytest.mark.usefixtures("no_delays")

REFUSED = {
    "expired": sqs_error(403, "ExpiredToken", "The security token is expired"),
    "denied": sqs_error(403, "AccessDeniedException", "not you"),
    "gone": sqs_error(400, "QueueDoesNotExist", "no such queue"),
    "wrong key": sqs_error(403, "InvalidClientTokenId", "unknown key"),
}
AWAY = {
    "throttled": sqs_error(400, "ThrottlingException"),
    "overloaded": sqs_error(503, "ServiceUnavailable"),
    "a proxy": http(200, "<html><p>a proxy's page</html>"),
}


@pytest.fixture
def queue_url(
    database: str, use_aws: Callable[[], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> str:
    """The URL of an SQS queue; the notices stay in the table, where a test counts them."""
    chosen = use_aws()
    monkeypatch.setenv("STORE_TOPIC", "table")
    settings.cache_clear()
    return chosen["STORE_QUEUE_URL"]


@dataclass
class Sending:
    """What the queue answers to messages that are sent; it takes them unless told otherwise."""

    answer: Answer | None = None

    def __call__(self, request: AWSPreparedRequest) -> AWSResponse | None:
        return self.answer(request) if self.answer else None


@pytest.fixture
def sending(faults: Faults) -> Sending:
    answers = Sending()
    faults.answer("SendMessageBatch", then=answers)
    return answers


def message(order_id: str) -> str:
    return OrderMessage(order_id=order_id, attempt=1, copies=1).model_dump_json()


def diagnosis() -> Diagnosis:
    (said,) = next(check for check in CHECKS if check.name == "unsent messages").look()
    return said


def billed(count: int) -> list[str]:
    ids = [place(f"order-{number:02}") for number in range(count)]
    carry_on(ids, "bill_customer")
    return ids


@pytest.mark.parametrize("answer", [*REFUSED.values(), *AWAY.values()], ids=[*REFUSED, *AWAY])
def test_orders_whose_message_the_queue_does_not_take_wait_and_are_asked_about_again(
    queue_url: str, cloud: Cloud, sending: Sending, answer: Answer
) -> None:
    ids = billed(12)
    sending.answer = answer
    assert sorted(prepare_order.fn(ids)) == ids
    assert {(status(id_), saga(id_)["prepare_order"]) for id_ in ids} == {("waiting", "intended")}
    for _ in range(2):
        order = as_unfinished(order_row("order-00"))
        assert order.asked_at is not None
        due = order.asked_at + timedelta(seconds=settings().ask_again_seconds + 1)
        assert next_move(order, Paused(timestamp=due), due) == Move.SEND_AGAIN
        with pytest.raises((QueueRefused, QueueUnavailable)):
            send_again(ids)
    sending.answer = None
    send_again(ids)
    assert {saga(id_)["prepare_order"] for id_ in ids} == {"done"}
    assert cloud.bodies(queue_url) == [message(id_) for id_ in ids]
    assert saga_records("order-00")["prepare_order"].result.keys() == {"sent_at"}
    carry_on(ids, after="prepare_order")
    assert statuses(ids) == {"dispatched"}


def test_a_queue_that_stays_away_is_tried_again_by_the_task_first(
    queue_url: str, sending: Sending, monkeypatch: pytest.MonkeyPatch
) -> None:
    billed(1)
    sending.answer = AWAY["overloaded"]
    monkeypatch.setattr(dispatch, "is_last_try", lambda: False)
    with pytest.raises(QueueUnavailable):
        prepare_order.fn(["order-00"])
    assert notices() == []
    sending.answer = None
    assert prepare_order.fn(["order-00"]) == ["order-00"]
    assert saga("order-00")["prepare_order"] == "done"
    carry_on(["order-00"], after="prepare_order")


@pytest.mark.parametrize("is_last", [True, False])
def test_the_messages_that_the_queue_took_are_not_sent_again(
    queue_url: str, cloud: Cloud, faults: Faults, monkeypatch: pytest.MonkeyPatch, is_last: bool
) -> None:
    ids = billed(3)
    half = sqs_batch([], {1: ("InternalError", False)})
    faults.answer("SendMessageBatch", sqs_batch([0, 2], {1: ("InternalError", False)}), *[half] * 3)
    monkeypatch.setattr(dispatch, "is_last_try", lambda: is_last)
    if is_last:
        assert sorted(prepare_order.fn(ids)) == ids
    else:
        with pytest.raises(QueueUnavailable, match="1 of 3"):
            prepare_order.fn(ids)
    assert [saga(id_)["prepare_order"] for id_ in ids] == ["done", "intended", "done"]
    prepare_order.fn(ids)
    assert {saga(id_)["prepare_order"] for id_ in ids} == {"done"}
    # The answers were the test's, so what the queue has was sent by the last call alone.
    assert cloud.bodies(queue_url) == [message("order-01")]
    carry_on(ids, after="prepare_order")


def test_the_shop_is_told_once_of_a_queue_that_refuses(queue_url: str, sending: Sending) -> None:
    ids = billed(12)
    sending.answer = REFUSED["expired"]
    at_once([lambda id_=id_: prepare_order.fn([id_]) for id_ in ids])  # type: ignore[misc]
    for _ in range(2):
        with pytest.raises(QueueRefused):
            send_again(ids)
    (key,) = notices()
    assert ":queue-refuses:" in key
    with transaction() as session:
        notice = session.get_one(Notification, key)
        assert "ExpiredToken: The security token is expired" in notice.body
        assert "docs/aws.md" in notice.body
    said = diagnosis()
    assert said.verdict == Verdict.MEND
    assert said.says.startswith("12 orders wait although the queue did not take their message")
    assert "ExpiredToken" in said.says
    sending.answer = None
    send_again(ids)
    carry_on(ids, after="prepare_order")


def test_the_shop_is_told_of_the_next_outage_again(queue_url: str, sending: Sending) -> None:
    billed(2)
    sending.answer = REFUSED["denied"]
    prepare_order.fn(["order-00"])
    sending.answer = None
    send_again(["order-00"])
    assert diagnosis().verdict == Verdict.OK
    sending.answer = REFUSED["denied"]
    prepare_order.fn(["order-01"])
    assert len(notices()) == 2


def test_a_notice_that_the_topic_refuses_too_is_published_when_it_takes_it(
    database: str,
    use_aws: Callable[[], dict[str, str]],
    cloud: Cloud,
    faults: Faults,
    sending: Sending,
) -> None:
    chosen = use_aws()
    settings.cache_clear()
    billed(1)
    sending.answer = REFUSED["expired"]
    faults.answer("PublishBatch", sns_error(403, "ExpiredToken"))
    assert prepare_order.fn(["order-00"]) == ["order-00"]
    assert cloud.published(chosen["subscribed"]) == []
    for _ in range(2):
        with pytest.raises(QueueRefused):
            send_again(["order-00"])
    (notice,) = cloud.published(chosen["subscribed"])
    assert notice["Subject"] == "The order queue does not take messages"


def test_only_its_own_time_ends_the_wait_of_an_order_whose_message_is_not_out(
    queue_url: str, sending: Sending
) -> None:
    billed(1)
    sending.answer = REFUSED["gone"]
    prepare_order.fn(["order-00"])
    expire_waits(["order-00"])
    assert status("order-00") == OrderStatus.WAITING
    set_order("order-00", wait_until=utc_now() - timedelta(seconds=1))
    expire_waits(["order-00"])
    assert order_row("order-00").error == "CourierWaitExpired"
    give_back("order-00")
    assert status("order-00") == "compensated"


def test_an_order_that_ended_while_its_message_was_refused_is_left_alone(
    queue_url: str, sending: Sending
) -> None:
    billed(1)

    def end_meanwhile(request: AWSPreparedRequest) -> AWSResponse | None:
        end_run("order-00")
        return REFUSED["denied"](request)

    sending.answer = end_meanwhile
    with pytest.raises(Exception, match="the run failed"):
        prepare_order.fn(["order-00"])
    assert status("order-00") == "compensated"
    assert notices() == []


def test_an_order_beside_one_that_is_refused_is_carried_on(
    queue_url: str, sending: Sending
) -> None:
    placed("before", "prepare_order")
    sending.answer = REFUSED["denied"]
    placed("refused", "prepare_order")
    carry_on(["before", "refused"], after="prepare_order")
    assert [status(id_) for id_ in ("before", "refused")] == ["dispatched", "dispatched"]
