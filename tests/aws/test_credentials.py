"""Credentials that are expired, rotated or missing, in a process that lives longer than they do."""

from collections.abc import Callable
from pathlib import Path

import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse

from store import aws
from store.errors import QueueRefused, TopicRefused
from store.sns import SnsTopic
from tests.aws.cloud import (
    Answer,
    Cloud,
    Faults,
    dynamodb_error,
    forget_clients,
    http,
    sns_error,
    sqs_error,
)
from tests.aws.test_topics import a_notice
from tests.shop import at_once

pytestmark = pytest.mark.usefixtures("no_delays")

AWS_DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "aws.md"
Rotate = Callable[[str], None]


@pytest.fixture
def rotate(endpoint_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Rotate:
    """Write the credentials' file anew, with another key; the environment holds none."""
    file = tmp_path / "credentials"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))

    def write(key: str) -> None:
        file.write_text(
            f"[default]\naws_access_key_id={key}\naws_secret_access_key=s\naws_session_token=t\n"
        )

    write("FIRST")
    forget_clients()
    return write


def unless_signed_with(key: str, answer: Answer) -> Answer:
    def check(request: AWSPreparedRequest) -> AWSResponse | None:
        signature = request.headers["Authorization"]
        text = signature.decode() if isinstance(signature, bytes) else signature
        return None if f"Credential={key}/" in text else answer(request)

    return check


@pytest.mark.parametrize(
    "answer",
    [
        sqs_error(403, "ExpiredToken"),
        sqs_error(403, "InvalidClientTokenId"),
        sqs_error(400, "ExpiredTokenException"),
        sqs_error(403, "SignatureDoesNotMatch"),
        sqs_error(400, "UnrecognizedClientException"),
    ],
)
def test_a_rotation_of_the_credentials_in_a_file_is_not_noticed(
    cloud: Cloud, rotate: Rotate, faults: Faults, answer: Answer
) -> None:
    queue = cloud.sqs_queue()
    faults.answer("SendMessageBatch", then=unless_signed_with("SECOND", answer))
    rotate("SECOND")
    queue.send(["a", "b"])
    assert len(faults.requests) == 2
    assert cloud.bodies(queue.queue_url) == ["a", "b"]


def test_every_call_of_every_service_outlives_a_rotation(
    cloud: Cloud, rotate: Rotate, faults: Faults
) -> None:
    queue = cloud.sqs_queue()
    arn, subscribed = cloud.topic()
    queue.send(["a", "b"])
    of_sqs = unless_signed_with("SECOND", sqs_error(403, "ExpiredToken"))
    for operation in (
        "ReceiveMessage",
        "ChangeMessageVisibilityBatch",
        "SendMessage",
        "DeleteMessageBatch",
        "GetQueueAttributes",
    ):
        faults.answer(operation, then=of_sqs)
    faults.answer("PublishBatch", then=unless_signed_with("SECOND", sns_error(403, "ExpiredToken")))
    of_dynamodb = dynamodb_error(400, "ExpiredTokenException")
    faults.answer("ListTables", then=unless_signed_with("SECOND", of_dynamodb))
    of_s3 = http(400, "<Error><Code>ExpiredToken</Code><Message>old</Message></Error>")
    faults.answer("ListBuckets", then=unless_signed_with("SECOND", of_s3))
    rotate("SECOND")
    received = queue.receive(limit=10, wait_seconds=0)
    queue.hide(received, seconds=30)
    queue.dead_letter(received[0], "why")
    queue.hand_back(received[1:])
    assert queue.depth().ready == 1
    SnsTopic(arn, cloud.endpoint_url).publish([a_notice()])
    assert len(cloud.published(subscribed)) == 1
    aws.dynamodb(cloud.endpoint_url).list_tables()
    aws.s3(cloud.endpoint_url).list_buckets()


def test_threads_that_share_a_client_all_outlive_a_rotation(
    cloud: Cloud, rotate: Rotate, faults: Faults
) -> None:
    queue = cloud.sqs_queue()
    expired = unless_signed_with("SECOND", sqs_error(403, "ExpiredToken"))
    faults.answer("SendMessageBatch", then=expired)
    rotate("SECOND")
    assert at_once([lambda: queue.send(["a"])] * 8) == [None] * 8
    assert cloud.bodies(queue.queue_url) == ["a"] * 8


def test_credentials_that_stay_expired_are_refused_after_one_call(
    cloud: Cloud, rotate: Rotate, faults: Faults
) -> None:
    queue = cloud.sqs_queue()
    arn, _ = cloud.topic()
    faults.answer("SendMessageBatch", then=sqs_error(403, "ExpiredToken"))
    faults.answer("PublishBatch", then=sns_error(403, "ExpiredToken"))
    with pytest.raises(QueueRefused, match="ExpiredToken"):
        queue.send(["a"])
    with pytest.raises(TopicRefused, match="ExpiredToken"):
        SnsTopic(arn, cloud.endpoint_url).publish([a_notice()])
    assert len(faults.requests) == 2
    rotate("SECOND")
    with pytest.raises(QueueRefused, match="ExpiredToken"):
        queue.send(["a"])
    assert len(faults.requests) == 4


def test_credentials_that_come_later_are_found(
    cloud: Cloud, rotate: Rotate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    queue = cloud.sqs_queue()
    (tmp_path / "credentials").unlink()
    forget_clients()
    with pytest.raises(QueueRefused, match="NoCredentialsError"):
        queue.send(["a"])
    rotate("FIRST")
    queue.send(["a"])
    assert cloud.bodies(queue.queue_url) == ["a"]


def test_the_document_has_a_remedy_for_each_code() -> None:
    document = AWS_DOCUMENT.read_text()
    assert [code for code in sorted(aws.REJECTED_CREDENTIALS) if f"`{code}`" not in document] == []
