"""The stand-in for AWS as a test sees it: looked at, recorded, and made to fail."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import boto3
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.compat import HTTPHeaders

from store import aws
from store.queue import MAX_RECEIVES
from store.sqs import SqsQueue

Answer = Callable[[AWSPreparedRequest], AWSResponse | None]
"""What a test answers instead of AWS; None lets the request through."""


@dataclass
class Cloud:
    """Clients of the test's own, so that the code under test keeps its calls to itself."""

    endpoint_url: str

    def __post_init__(self) -> None:
        self.sqs: Any = boto3.client("sqs", endpoint_url=self.endpoint_url)
        self.sns: Any = boto3.client("sns", endpoint_url=self.endpoint_url)

    def queue(self, *, fifo: bool = False) -> tuple[str, str]:
        """A new queue and its dead-letter queue: their URLs."""
        name, end = f"orders-{uuid4().hex[:12]}", ".fifo" if fifo else ""
        attributes = {"FifoQueue": "true"} if fifo else {}
        dead_letter_url: str = self.sqs.create_queue(
            QueueName=f"{name}-dead{end}", Attributes=attributes
        )["QueueUrl"]
        redrive = {
            "deadLetterTargetArn": self.arn(dead_letter_url),
            "maxReceiveCount": MAX_RECEIVES,
        }
        queue_url: str = self.sqs.create_queue(
            QueueName=name + end, Attributes={**attributes, "RedrivePolicy": json.dumps(redrive)}
        )["QueueUrl"]
        return queue_url, dead_letter_url

    def sqs_queue(self, visibility_timeout_seconds: int = 30, *, fifo: bool = False) -> SqsQueue:
        """The queue under test, on a new queue of SQS."""
        queue_url, dead_letter_url = self.queue(fifo=fifo)
        return SqsQueue(queue_url, dead_letter_url, visibility_timeout_seconds, self.endpoint_url)

    def topic(self, *, fifo: bool = False) -> tuple[str, str]:
        """A new topic, and the URL of a queue that gets what is published."""
        end, attributes = (".fifo", {"FifoTopic": "true"}) if fifo else ("", {})
        arn: str = self.sns.create_topic(
            Name=f"notices-{uuid4().hex[:12]}{end}", Attributes=attributes
        )["TopicArn"]
        url, _ = self.queue(fifo=fifo)
        self.sns.subscribe(TopicArn=arn, Protocol="sqs", Endpoint=self.arn(url))
        return arn, url

    def arn(self, queue_url: str) -> str:
        found: str = self.attributes(queue_url)["QueueArn"]
        return found

    def attributes(self, queue_url: str) -> dict[str, str]:
        found: dict[str, str] = self.sqs.get_queue_attributes(
            QueueUrl=queue_url, AttributeNames=["All"]
        )["Attributes"]
        return found

    def count(self, queue_url: str) -> int:
        """How many messages the queue holds, in hand or not."""
        attributes = self.attributes(queue_url)
        return int(attributes["ApproximateNumberOfMessages"]) + int(
            attributes["ApproximateNumberOfMessagesNotVisible"]
        )

    def look_into(self, queue_url: str) -> list[dict[str, Any]]:
        """Every message that can be received now; they stay where they are."""
        found: list[dict[str, Any]] = []
        while came := self.sqs.receive_message(
            QueueUrl=queue_url,
            MaxNumberOfMessages=10,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["All"],
        ).get("Messages"):
            found += came
        for message in found:
            self.sqs.change_message_visibility(
                QueueUrl=queue_url, ReceiptHandle=message["ReceiptHandle"], VisibilityTimeout=0
            )
        return found

    def bodies(self, queue_url: str) -> list[str]:
        return sorted(message["Body"] for message in self.look_into(queue_url))

    def published(self, queue_url: str) -> list[dict[str, Any]]:
        """The notices that a queue got by its subscription, as SNS wraps them."""
        return [json.loads(body) for body in self.bodies(queue_url)]


class Calls:
    """The calls that the code under test made: operation and parameters."""

    def __init__(self, endpoint_url: str) -> None:
        self.made: list[tuple[str, str, Mapping[str, Any]]] = []
        for client in _clients(endpoint_url):
            client.meta.events.register("provide-client-params", self._record)

    def _record(self, params: dict[str, Any], model: Any, **_: Any) -> None:
        self.made.append((model.service_model.service_name, model.name, dict(params)))

    def operations(self) -> list[str]:
        return [operation for _, operation, _ in self.made]


class Faults:
    """Answers given instead of AWS, one after the other, to the calls of an operation."""

    def __init__(self, endpoint_url: str) -> None:
        self.requests: list[AWSPreparedRequest] = []
        self._clients = _clients(endpoint_url)

    def answer(self, operation: str, *answers: Answer, then: Answer | None = None) -> None:
        """Answer the next requests of the operation so, and all later ones with ``then``."""
        waiting = list(answers)

        def handle(request: AWSPreparedRequest, **_: Any) -> AWSResponse | None:
            self.requests.append(request)
            answer = waiting.pop(0) if waiting else then
            return answer(request) if answer else None

        for client in self._clients:
            service = client.meta.service_model.service_id.hyphenize()
            client.meta.events.register(f"before-send.{service}.{operation}", handle)


def forget_clients() -> None:
    """Close the clients of the code under test; its next call creates new ones."""
    while aws._clients:
        aws._clients.popitem()[1].close()


def _clients(endpoint_url: str) -> Sequence[Any]:
    of_services = (aws.sqs, aws.sns, aws.sts, aws.dynamodb, aws.s3)
    return [client(endpoint_url) for client in of_services]


class _Body:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def stream(self, **_: Any) -> list[bytes]:
        return [self._content]


def http(status: int, body: str, **headers: str) -> Answer:
    """An answer of AWS, whole."""

    def answer(request: AWSPreparedRequest) -> AWSResponse:
        named = HTTPHeaders()
        for name, value in headers.items():
            named[name.replace("_", "-")] = value
        return AWSResponse(request.url, status, named, _Body(body.encode()))

    return answer


def sqs_error(status: int, code: str, message: str = "made up by the test") -> Answer:
    body = json.dumps({"__type": f"com.amazonaws.sqs#{code}", "message": message})
    return http(status, body, x_amzn_query_error=f"{code};Sender")


def dynamodb_error(status: int, code: str, message: str = "made up by the test") -> Answer:
    body = json.dumps({"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": message})
    return http(status, body)


def sns_error(status: int, code: str, message: str = "made up by the test") -> Answer:
    return http(
        status,
        f"<ErrorResponse><Error><Code>{code}</Code><Message>{message}</Message></Error>"
        "</ErrorResponse>",
    )


def sqs_batch(taken: Sequence[int], refused: Mapping[int, tuple[str, bool]]) -> Answer:
    """An answer to a batch of SQS: the ids that were taken, and code and fault of the others."""
    return http(
        200,
        json.dumps(
            {
                "Successful": [
                    {"Id": str(id_), "MessageId": "m", "MD5OfMessageBody": "x"} for id_ in taken
                ],
                "Failed": [
                    {"Id": str(id_), "Code": code, "SenderFault": fault, "Message": "made up"}
                    for id_, (code, fault) in refused.items()
                ],
            }
        ),
    )


def sns_batch(taken: Sequence[int], refused: Mapping[int, tuple[str, bool]]) -> Answer:
    """An answer to a batch of SNS, as :func:`sqs_batch`."""
    successful = "".join(
        f"<member><Id>{id_}</Id><MessageId>m</MessageId></member>" for id_ in taken
    )
    failed = "".join(
        f"<member><Id>{id_}</Id><Code>{code}</Code><Message>made up</Message>"
        f"<SenderFault>{str(fault).lower()}</SenderFault></member>"
        for id_, (code, fault) in refused.items()
    )
    return http(
        200,
        "<PublishBatchResponse xmlns='http://sns.amazonaws.com/doc/2010-03-31/'>"
        f"<PublishBatchResult><Successful>{successful}</Successful><Failed>{failed}</Failed>"
        "</PublishBatchResult></PublishBatchResponse>",
    )


def after_it_was_done(answer: Answer) -> Answer:
    """Let AWS do what is asked, and lose its answer: the caller gets ``answer`` instead."""

    def lose(request: AWSPreparedRequest) -> AWSResponse | None:
        from botocore.httpsession import URLLib3Session

        session = URLLib3Session()
        session.send(request)
        session.close()
        return answer(request)

    return lose
