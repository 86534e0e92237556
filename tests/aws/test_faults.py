"""AWS that takes only a part, is overloaded, refuses, loses its answer, or is not there at all."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.exceptions import ClientError

from store import aws
from store.errors import (
    QueueRefused,
    QueueUnavailable,
    RetryableError,
    StoreError,
    TopicRefused,
    TopicUnavailable,
)
from store.queue import ReceivedMessage
from store.sns import SnsTopic
from store.sqs import REDRIVE_HIDES_SECONDS, SqsQueue
from tasks.retries import is_transient
from tests.aws.cloud import (
    Answer,
    Calls,
    Cloud,
    Faults,
    after_it_was_done,
    forget_clients,
    http,
    sns_batch,
    sns_error,
    sqs_batch,
    sqs_error,
)
from tests.aws.test_topics import a_notice

pytestmark = pytest.mark.usefixtures("no_delays")

TRIES = 1 + len(aws.ENTRY_RETRY_DELAYS_SECONDS)
ATTEMPTS = 3
"""Of botocore, for a call that fails as a whole."""

FOR_A_WHILE: list[Answer] = [
    sqs_error(400, "RequestThrottled"),
    sqs_error(400, "ThrottlingException"),
    sqs_error(403, "RequestThrottled"),
    sqs_error(500, "InternalError"),
    sqs_error(503, "ServiceUnavailable"),
    http(502, "<html>a proxy's page</html>"),
]
A_PROXYS_PAGE = http(200, "<html><p>a proxy's page</html>")


@pytest.fixture
def queue(cloud: Cloud) -> SqsQueue:
    return cloud.sqs_queue()


def test_only_what_sqs_did_not_take_is_sent_again(
    queue: SqsQueue, cloud: Cloud, faults: Faults, calls: Calls
) -> None:
    faults.answer("SendMessageBatch", sqs_batch([0, 2], {1: ("InternalError", False)}))
    queue.send(["a", "b", "c"])
    assert calls.operations() == ["SendMessageBatch"] * 2
    # The answer was the test's, so what the queue has was sent by the second call alone.
    assert cloud.bodies(queue.queue_url) == ["b"]


def test_an_entry_that_the_answer_forgets_counts_as_not_taken(
    queue: SqsQueue, cloud: Cloud, faults: Faults
) -> None:
    faults.answer("SendMessageBatch", sqs_batch([0], {}))
    queue.send(["a", "b"])
    assert cloud.bodies(queue.queue_url) == ["b"]


def test_throttling_that_is_put_down_to_the_sender_is_tried_again(
    queue: SqsQueue, cloud: Cloud, faults: Faults
) -> None:
    faults.answer("SendMessageBatch", sqs_batch([0], {1: ("ThrottlingException", True)}))
    queue.send(["a", "b"])
    assert cloud.bodies(queue.queue_url) == ["b"]


def test_the_senders_fault_is_not_tried_again_and_named(
    queue: SqsQueue, faults: Faults, calls: Calls
) -> None:
    faults.answer("SendMessageBatch", sqs_batch([0], {1: ("InvalidMessageContents", True)}))
    with pytest.raises(QueueRefused) as refused:
        queue.send(["sound", "unsound"])
    assert calls.operations() == ["SendMessageBatch"]
    assert str(refused.value) == (
        f"1 of 2 messages were not sent to {queue.queue_url}: InvalidMessageContents: made up. "
        "Not taken: unsound"
    )


def test_what_sqs_never_takes_is_named_and_the_rest_is_sent(
    queue: SqsQueue, cloud: Cloud, faults: Faults, calls: Calls
) -> None:
    bodies = [f"order {number:02}" for number in range(25)]
    first_ten = [id_ for id_ in range(10) if id_ != 3]
    faults.answer(
        "SendMessageBatch",
        *[sqs_batch(first_ten, {3: ("InternalError", False)})] * TRIES,
    )
    with pytest.raises(QueueUnavailable) as unavailable:
        queue.send(bodies)
    assert str(unavailable.value) == (
        f"1 of 25 messages were not sent to {queue.queue_url}: InternalError: made up. "
        "Not taken: order 03"
    )
    assert calls.operations() == ["SendMessageBatch"] * (TRIES + 2)
    assert cloud.bodies(queue.queue_url) == bodies[10:]


def test_a_send_that_breaks_off_names_what_was_not_sent(
    queue: SqsQueue, cloud: Cloud, faults: Faults
) -> None:
    bodies = [f"order {number:02}" for number in range(25)]
    faults.answer("SendMessageBatch", lambda _: None, then=sqs_error(503, "ServiceUnavailable"))
    with pytest.raises(QueueUnavailable, match=r"^15 of 25 .*order 10.* and 5 more$"):
        queue.send(bodies)
    assert cloud.bodies(queue.queue_url) == bodies[:10]


def test_what_was_taken_before_the_retry_broke_off_is_not_named(
    queue: SqsQueue, faults: Faults
) -> None:
    faults.answer(
        "SendMessageBatch",
        sqs_batch([0, 2], {1: ("InternalError", False)}),
        then=sqs_error(503, "ServiceUnavailable"),
    )
    with pytest.raises(QueueUnavailable, match=r"^1 of 3 .* Not taken: b$"):
        queue.send(["a", "b", "c"])


@pytest.mark.parametrize("answer", FOR_A_WHILE)
def test_an_overload_that_passes_is_not_noticed(
    queue: SqsQueue, cloud: Cloud, faults: Faults, answer: Answer
) -> None:
    faults.answer("SendMessageBatch", *[answer] * (ATTEMPTS - 1))
    queue.send(["a"])
    assert cloud.bodies(queue.queue_url) == ["a"]
    assert len(faults.requests) == ATTEMPTS


@pytest.mark.parametrize("answer", FOR_A_WHILE)
def test_an_overload_that_lasts_may_be_tried_again_later(
    queue: SqsQueue, cloud: Cloud, faults: Faults, answer: Answer
) -> None:
    faults.answer("SendMessageBatch", then=answer)
    with pytest.raises(QueueUnavailable) as unavailable:
        queue.send(["a"])
    assert is_transient(unavailable.value)
    assert len(faults.requests) == ATTEMPTS
    assert cloud.bodies(queue.queue_url) == []


@pytest.mark.parametrize(
    "code",
    [
        "ProvisionedThroughputExceededException",
        "BandwidthLimitExceeded",
        "PriorRequestNotComplete",
        "RequestTimeout",
        "RequestTimeoutException",
    ],
)
def test_an_overload_is_known_by_its_code_whatever_its_status(code: str) -> None:
    answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": 400}}
    assert aws.is_retryable(ClientError(answer, "Scan"))


def test_a_send_whose_answer_is_lost_is_made_again(
    queue: SqsQueue, cloud: Cloud, faults: Faults
) -> None:
    faults.answer("SendMessageBatch", after_it_was_done(sqs_error(500, "InternalError")))
    queue.send(["a", "b"])
    assert cloud.bodies(queue.queue_url) == ["a", "a", "b", "b"]


def test_a_fifo_queue_drops_the_repetition_of_a_send_but_no_later_one(
    cloud: Cloud, faults: Faults
) -> None:
    queue = cloud.sqs_queue(fifo=True)
    faults.answer("SendMessageBatch", after_it_was_done(sqs_error(500, "InternalError")))
    queue.send(["a", "b"])
    assert len(faults.requests) == 2
    queue.send(["a"])
    received = queue.receive(limit=10, wait_seconds=20)
    assert sorted(message.body for message in received) == ["a", "a", "b"]
    queue.hand_back(received[:1])
    queue.dead_letter(received[1], "why not")
    queue.delete(received[2:])
    assert queue.redrive() == 1
    assert cloud.count(queue.dead_letter_url) == 0
    again = queue.receive(limit=10, wait_seconds=20)
    assert sorted(m.body for m in again) == sorted(m.body for m in received[:2])


def test_an_answer_that_cannot_be_read_is_none(
    queue: SqsQueue, cloud: Cloud, faults: Faults
) -> None:
    arn, _ = cloud.topic()
    faults.answer("SendMessageBatch", then=A_PROXYS_PAGE)
    faults.answer("ReceiveMessage", then=A_PROXYS_PAGE)
    faults.answer("PublishBatch", then=A_PROXYS_PAGE)
    with pytest.raises(QueueUnavailable):
        queue.send(["a"])
    assert queue.receive(limit=1, wait_seconds=0) == []
    with pytest.raises(TopicUnavailable):
        SnsTopic(arn, cloud.endpoint_url).publish([a_notice()])


@pytest.mark.parametrize(
    ("code", "status"), [("AccessDeniedException", 403), ("ExpiredToken", 403)]
)
def test_a_refusal_is_not_tried_again(
    queue: SqsQueue, faults: Faults, code: str, status: int
) -> None:
    faults.answer("SendMessageBatch", then=sqs_error(status, code, "not you"))
    with pytest.raises(QueueRefused, match=f"{code}: not you. Not taken: a, b$") as refused:
        queue.send(["a", "b"])
    assert not is_transient(refused.value)
    assert len(faults.requests) == 1


def test_a_queue_that_does_not_exist_is_named(cloud: Cloud) -> None:
    url = f"{cloud.endpoint_url}/123456789012/nowhere"
    queue = SqsQueue(url, url, 30, cloud.endpoint_url)
    with pytest.raises(QueueRefused, match=f"receiving from {url}: .*NonExistentQueue"):
        queue.receive(limit=1, wait_seconds=0)
    with pytest.raises(QueueRefused, match=f"not sent to {url}: .*NonExistentQueue"):
        queue.send(["a"])


def test_missing_credentials_and_region_are_said(
    queue: SqsQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    forget_clients()
    with pytest.raises(QueueRefused, match="NoCredentialsError"):
        queue.send(["a"])
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    forget_clients()
    with pytest.raises(QueueRefused, match="set AWS_DEFAULT_REGION"):
        queue.send(["a"])


def test_messages_that_came_are_kept_when_the_next_receive_fails(
    queue: SqsQueue, faults: Faults
) -> None:
    queue.send([str(number) for number in range(15)])
    faults.answer("ReceiveMessage", lambda _: None, then=sqs_error(503, "ServiceUnavailable"))
    assert len(queue.receive(limit=100, wait_seconds=0)) == 10


@pytest.mark.parametrize(
    ("wait_seconds", "polls"), [(0, [0]), (0.5, [1]), (20, [20]), (45, [20, 20, 5])]
)
def test_a_wait_is_long_polls_of_whole_seconds(
    queue: SqsQueue,
    faults: Faults,
    calls: Calls,
    monkeypatch: pytest.MonkeyPatch,
    wait_seconds: float,
    polls: list[int],
) -> None:
    now = [100.0]

    def nothing_came(request: AWSPreparedRequest) -> AWSResponse | None:
        # SQS may end a poll a moment early.
        now[0] += max(0.0, calls.made[-1][2]["WaitTimeSeconds"] - 0.01)
        return http(200, "{}")(request)

    monkeypatch.setattr("store.sqs.time", SimpleNamespace(monotonic=lambda: now[0]))
    faults.answer("ReceiveMessage", then=nothing_came)
    assert queue.receive(limit=10, wait_seconds=wait_seconds) == []
    assert [params["WaitTimeSeconds"] for _, _, params in calls.made] == polls


def test_only_what_was_not_deleted_or_hidden_is_tried_again(
    queue: SqsQueue, cloud: Cloud, faults: Faults, calls: Calls
) -> None:
    queue.send(["a", "b"])
    received = queue.receive(limit=10, wait_seconds=0)
    calls.made.clear()
    half = sqs_batch([0], {1: ("InternalError", False)})
    faults.answer("DeleteMessageBatch", half)
    faults.answer("ChangeMessageVisibilityBatch", half)
    queue.delete(received)
    queue.hide(received, seconds=0)
    assert [(operation, len(params["Entries"])) for _, operation, params in calls.made] == [
        ("DeleteMessageBatch", 2),
        ("DeleteMessageBatch", 1),
        ("ChangeMessageVisibilityBatch", 2),
        ("ChangeMessageVisibilityBatch", 1),
    ]
    assert cloud.bodies(queue.queue_url) == []
    queue.hide(received[:1], seconds=0)
    assert cloud.bodies(queue.queue_url) == [received[0].body]


def test_a_message_in_other_hands_is_passed_over(
    queue: SqsQueue, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    queue.send(["a", "b"])
    received = queue.receive(limit=10, wait_seconds=0)
    faults.answer("ChangeMessageVisibilityBatch", sqs_batch([0], {1: ("MessageNotInflight", True)}))
    faults.answer("DeleteMessageBatch", sqs_batch([0], {1: ("ReceiptHandleIsInvalid", True)}))
    queue.hide(received, seconds=5)
    queue.delete(received)
    assert len(faults.requests) == 2
    assert "MessageNotInflight" in caplog.text
    assert "ReceiptHandleIsInvalid" in caplog.text


def test_what_is_passed_over_is_told_apart_from_what_is_tried_again(
    queue: SqsQueue, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    queue.send(["a", "b"])
    received = queue.receive(limit=10, wait_seconds=0)
    both = {0: ("ReceiptHandleIsInvalid", True), 1: ("InternalError", False)}
    only_the_second = {1: ("InternalError", False)}
    faults.answer("DeleteMessageBatch", sqs_batch([], both), then=sqs_batch([], only_the_second))
    with pytest.raises(QueueUnavailable, match=r"^1 of 2 .*InternalError"):
        queue.delete(received)
    (record,) = (r for r in caplog.records if r.name == "store.queue")
    assert record.getMessage() == (
        f"1 messages were not deleted from {queue.queue_url}: ['ReceiptHandleIsInvalid: made up']"
    )


def test_a_redrive_has_an_end_although_dead_letters_keep_coming(
    queue: SqsQueue, cloud: Cloud, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]

    def one_more(_: AWSPreparedRequest) -> None:
        now[0] += 20
        cloud.sqs.send_message(QueueUrl=queue.dead_letter_url, MessageBody="dead")

    monkeypatch.setattr("store.sqs.time", SimpleNamespace(monotonic=lambda: now[0]))
    faults.answer("ReceiveMessage", then=one_more)
    moved = queue.redrive()
    assert now[0] - 100 < REDRIVE_HIDES_SECONDS
    assert cloud.count(queue.queue_url) == moved > 0
    assert moved + cloud.count(queue.dead_letter_url) == len(faults.requests)


def test_a_dead_letter_whose_deletion_fails_is_there_twice_and_not_lost(
    queue: SqsQueue, cloud: Cloud, faults: Faults
) -> None:
    queue.send(["poison"])
    (message,) = queue.receive(limit=10, wait_seconds=0)
    faults.answer("DeleteMessageBatch", *[sqs_error(503, "ServiceUnavailable")] * ATTEMPTS)
    with pytest.raises(QueueUnavailable, match="not deleted"):
        queue.dead_letter(message, "unreadable")
    queue.hide([message], seconds=0)
    assert cloud.bodies(queue.dead_letter_url) == cloud.bodies(queue.queue_url) == ["poison"]


def test_the_longest_dead_letter_still_has_room_for_a_reason(queue: SqsQueue, cloud: Cloud) -> None:
    queue.send(["poison"])
    (message,) = queue.receive(limit=10, wait_seconds=0)
    queue.dead_letter(message, "x" * 10_000)
    (letter,) = cloud.look_into(queue.dead_letter_url)
    assert letter["MessageAttributes"]["reason"]["StringValue"] == "x" * 500


DOWN: dict[str, Callable[[SqsQueue, list[ReceivedMessage]], object]] = {
    "sent": lambda queue, _: queue.send(["new"]),
    "receiving": lambda queue, _: queue.receive(limit=10, wait_seconds=0.5),
    "deleted": lambda queue, received: queue.delete(received),
    "hidden": lambda queue, received: queue.hide(received, seconds=5),
    "not sent": lambda queue, received: queue.hand_back(received),
    "moving message": lambda queue, received: queue.dead_letter(received[0], "why"),
    "receiving from": lambda queue, _: queue.redrive(),
}


@pytest.mark.parametrize("what", DOWN)
def test_nothing_is_lost_while_sqs_is_down(
    queue: SqsQueue, cloud: Cloud, closed_url: str, what: str
) -> None:
    queue.send(["a", "dead"])
    received = queue.receive(limit=10, wait_seconds=0)
    (dead,) = (message for message in received if message.body == "dead")
    in_hand = [message for message in received if message.body == "a"]
    queue.dead_letter(dead, "why")
    with pytest.raises(QueueUnavailable, match=what) as unavailable:
        DOWN[what](replace(queue, endpoint_url=closed_url), in_hand)
    assert is_transient(unavailable.value)
    assert "EndpointConnectionError" in str(unavailable.value)
    assert queue.queue_url in str(unavailable.value) or queue.dead_letter_url in str(
        unavailable.value
    )
    queue.hide(in_hand, seconds=0)
    assert cloud.bodies(queue.queue_url) == ["a"]
    assert cloud.bodies(queue.dead_letter_url) == ["dead"]


def test_notices_are_named_while_sns_is_down(cloud: Cloud, closed_url: str) -> None:
    arn, url = cloud.topic()
    with pytest.raises(TopicUnavailable, match="EndpointConnectionError") as unavailable:
        SnsTopic(arn, closed_url).publish([a_notice(1), a_notice(2)])
    assert "order-01:1:dispatched, order-02:1:dispatched" in str(unavailable.value)
    assert is_transient(unavailable.value)
    assert cloud.published(url) == []


def test_only_what_sns_did_not_take_is_published_again(cloud: Cloud, faults: Faults) -> None:
    arn, url = cloud.topic()
    faults.answer("PublishBatch", sns_batch([0, 2], {1: ("InternalError", False)}))
    SnsTopic(arn, cloud.endpoint_url).publish([a_notice(number) for number in range(3)])
    (published,) = cloud.published(url)
    assert published["Subject"] == a_notice(1).subject


def test_a_publication_whose_answer_is_lost_is_made_again_under_its_key(
    cloud: Cloud, faults: Faults
) -> None:
    arn, url = cloud.topic()
    faults.answer("PublishBatch", after_it_was_done(sns_error(500, "InternalError")))
    SnsTopic(arn, cloud.endpoint_url).publish([a_notice()])
    keys = [n["MessageAttributes"]["key"]["Value"] for n in cloud.published(url)]
    assert keys == [a_notice().key] * 2


@pytest.mark.parametrize(
    ("answer", "error", "requests"),
    [
        (sns_batch([], {0: ("InternalError", False)}), TopicUnavailable, TRIES),
        (sns_batch([], {0: ("InvalidParameter", True)}), TopicRefused, 1),
        (sns_error(400, "Throttling"), TopicUnavailable, ATTEMPTS),
        (sns_error(429, "Throttled"), TopicUnavailable, ATTEMPTS),
        (sns_error(500, "InternalError"), TopicUnavailable, ATTEMPTS),
        (sns_error(400, "KMSThrottling"), TopicUnavailable, 1),
        (sns_error(403, "AuthorizationError"), TopicRefused, 1),
        (sns_error(404, "NotFound"), TopicRefused, 1),
    ],
)
def test_a_notice_that_sns_does_not_take_is_named(
    cloud: Cloud, faults: Faults, answer: Answer, error: type[StoreError], requests: int
) -> None:
    arn, url = cloud.topic()
    faults.answer("PublishBatch", then=answer)
    with pytest.raises(error) as raised:
        SnsTopic(arn, cloud.endpoint_url).publish([a_notice()])
    assert a_notice().key in str(raised.value)
    assert arn in str(raised.value)
    assert isinstance(raised.value, RetryableError) == (error is TopicUnavailable)
    assert len(faults.requests) == requests
    assert cloud.published(url) == []


def test_the_waits_between_tries_of_an_entry_grow_and_end(
    queue: SqsQueue, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[Any] = []
    monkeypatch.setattr(aws, "ENTRY_RETRY_DELAYS_SECONDS", (0.2, 1.0, 3.0))
    monkeypatch.setattr("store.aws.time.sleep", slept.append)
    faults.answer("SendMessageBatch", then=sqs_batch([], {0: ("InternalError", False)}))
    with pytest.raises(QueueUnavailable):
        queue.send(["a"])
    assert slept == [0.2, 1.0, 3.0]
