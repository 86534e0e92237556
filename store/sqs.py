"""The order queue on SQS.

Standard or FIFO: on a FIFO queue each message is a group of its own, so that no order waits for
another, and is deduplicated only over the retries of one send, so that a message which is sent
again on purpose is delivered again.
"""

import logging
import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

from store import aws
from store.errors import QueueRefused, QueueUnavailable
from store.queue import QueueDepth, ReceivedMessage

if TYPE_CHECKING:
    from mypy_boto3_sqs.client import SQSClient
    from mypy_boto3_sqs.type_defs import (
        ChangeMessageVisibilityBatchRequestEntryTypeDef,
        DeleteMessageBatchRequestEntryTypeDef,
        MessageTypeDef,
        SendMessageBatchRequestEntryTypeDef,
        SendMessageRequestTypeDef,
    )

logger = logging.getLogger("store.queue")

ERRORS = aws.Errors(unavailable=QueueUnavailable, refused=QueueRefused)
FIFO = ".fifo"
"""How the name of each FIFO queue ends."""
REASON_LENGTH = 500
"""A dead letter's reason is for people to read; the queue's size limit leaves room for it."""
REDRIVE_HIDES_SECONDS = 600
"""How long dead letters are hidden while they are moved: enough for some ten thousand. Those of a
redrive that was killed come back after it."""
REDRIVE_RECEIVES_SECONDS = 300
"""As many are received as can be moved, too, before the first of them come back."""
REDRIVE_POLL_SECONDS = 1
"""A short poll asks only some of SQS's servers, and may miss a dead letter."""
RECEIVED_AT_ONCE = 500
"""They come ten at a time: the first of more than these would wait for the last, and come again."""


@dataclass(frozen=True, slots=True)
class SqsQueue:
    """See :class:`store.queue.OrderQueue`.

    Messages that were received more often than the redrive policy allows are put aside by SQS
    itself. A whole call that fails is retried by botocore first; see :mod:`store.aws`.
    """

    queue_url: str
    dead_letter_url: str
    visibility_timeout_seconds: int
    endpoint_url: str | None = None

    def send(self, bodies: Sequence[str]) -> None:
        """See :meth:`OrderQueue.send`.

        Raises:
            QueueUnavailable: some were not sent, by no fault of theirs; it names them.
            QueueRefused: some were not sent, and never will be; it names them.
        """
        entries = [self._entry(id_, body) for id_, body in enumerate(bodies)]
        if not entries:
            return
        with aws.calling(f"sending to {self.queue_url}", ERRORS):
            client = self._client
            not_sent = aws.call_in_batches(
                entries,
                lambda batch: client.send_message_batch(QueueUrl=self.queue_url, Entries=batch),
            )
        bodies_by_id = {entry["Id"]: entry["MessageBody"] for entry in entries}
        aws.raise_if_any(
            not_sent, f"messages were not sent to {self.queue_url}", bodies_by_id, ERRORS
        )

    def receive(self, limit: int, wait_seconds: float) -> list[ReceivedMessage]:
        """See :meth:`OrderQueue.receive`.

        The wait is rounded up to whole seconds.

        Rounded down, half a second would be a short poll, which asks only some of SQS's servers
        and returns at once, so that an idle dispatcher would call without a pause.
        """
        return self._receive(
            self.queue_url,
            min(limit, RECEIVED_AT_ONCE),
            math.ceil(wait_seconds),
            self.visibility_timeout_seconds,
        )

    def _receive(
        self, url: str, limit: int, wait_seconds: int, hide_seconds: int
    ) -> list[ReceivedMessage]:
        deadline = time.monotonic() + wait_seconds
        received: list[ReceivedMessage] = []
        while len(received) < limit:
            left_seconds = 0 if received else max(0, round(deadline - time.monotonic()))
            try:
                with aws.calling(f"receiving from {url}", ERRORS):
                    response = self._client.receive_message(
                        QueueUrl=url,
                        MaxNumberOfMessages=min(aws.BATCH_ENTRIES, limit - len(received)),
                        WaitTimeSeconds=min(aws.LONGEST_POLL_SECONDS, left_seconds),
                        VisibilityTimeout=hide_seconds,
                        MessageSystemAttributeNames=["ApproximateReceiveCount"],
                        MessageAttributeNames=["reason"],
                    )
            except QueueUnavailable:
                if not received:
                    raise
                # Those that came are in our hands already; nobody else would get them for a while.
                logger.warning("receiving ends after %d messages", len(received), exc_info=True)
                break
            came = response.get("Messages", [])
            received += [
                ReceivedMessage(
                    id=message["MessageId"],
                    body=message["Body"],
                    receive_count=int(message["Attributes"]["ApproximateReceiveCount"]),
                    receipt=message["ReceiptHandle"],
                    reason=_reason_in(message),
                )
                for message in came
            ]
            # A poll may end a moment early; that moment is not worth another one.
            if not came and (received or round(deadline - time.monotonic()) <= 0):
                break
        return received

    def delete(self, messages: Sequence[ReceivedMessage]) -> None:
        """See :meth:`OrderQueue.delete`."""
        self._delete(self.queue_url, messages)

    def _delete(self, url: str, messages: Sequence[ReceivedMessage]) -> None:
        entries: list[DeleteMessageBatchRequestEntryTypeDef] = [
            {"Id": str(id_), "ReceiptHandle": message.receipt}
            for id_, message in enumerate(messages)
        ]
        if not entries:
            return
        with aws.calling(f"deleting from {url}", ERRORS):
            client = self._client
            failures = aws.call_in_batches(
                entries, lambda batch: client.delete_message_batch(QueueUrl=url, Entries=batch)
            )
        self._raise_or_pass_over(failures, messages, f"messages were not deleted from {url}")

    def hide(self, messages: Sequence[ReceivedMessage], seconds: int) -> None:
        """See :meth:`OrderQueue.hide`."""
        self._hide(self.queue_url, messages, seconds)

    def _hide(self, url: str, messages: Sequence[ReceivedMessage], seconds: int) -> None:
        entries: list[ChangeMessageVisibilityBatchRequestEntryTypeDef] = [
            {"Id": str(id_), "ReceiptHandle": message.receipt, "VisibilityTimeout": seconds}
            for id_, message in enumerate(messages)
        ]
        if not entries:
            return
        with aws.calling(f"hiding messages of {url}", ERRORS):
            client = self._client
            failures = aws.call_in_batches(
                entries,
                lambda batch: client.change_message_visibility_batch(QueueUrl=url, Entries=batch),
            )
        self._raise_or_pass_over(failures, messages, f"messages of {url} were not hidden")

    def _raise_or_pass_over(
        self, failures: Sequence[aws.NotTaken], messages: Sequence[ReceivedMessage], what: str
    ) -> None:
        """Raise for a retryable failure or a call refused as a whole.

        An entry that is refused by itself has a receipt that is used up: its message is gone, or
        in other hands, or too long in ours.
        """
        passed_over = [failure for failure in failures if not (failure.retryable or failure.cause)]
        if passed_over:
            logger.warning(
                "%d %s: %s",
                len(passed_over),
                what,
                sorted({failure.reason for failure in passed_over}),
            )
        aws.raise_if_any(
            [failure for failure in failures if failure.retryable or failure.cause],
            what,
            {str(id_): message.id for id_, message in enumerate(messages)},
            ERRORS,
        )

    def hand_back(self, messages: Sequence[ReceivedMessage]) -> None:
        """See :meth:`OrderQueue.hand_back`.

        SQS counts receives from zero only for a new message.
        """
        self.send([message.body for message in messages])
        self.delete(messages)

    def dead_letter(self, message: ReceivedMessage, reason: str) -> None:
        """See :meth:`OrderQueue.dead_letter`. The reason is an attribute of the dead letter."""
        with aws.calling(
            f"moving message {message.id} to the dead letters {self.dead_letter_url}", ERRORS
        ):
            letter: SendMessageRequestTypeDef = {
                "QueueUrl": self.dead_letter_url,
                "MessageBody": message.body,
                "MessageAttributes": {
                    "reason": {
                        "DataType": "String",
                        "StringValue": reason[:REASON_LENGTH] or "not given",
                    }
                },
            }
            if self.dead_letter_url.endswith(FIFO):
                letter["MessageGroupId"] = letter["MessageDeduplicationId"] = str(uuid4())
            self._client.send_message(**letter)
        self.delete([message])

    def dead_letters(self) -> list[ReceivedMessage]:
        """See :meth:`OrderQueue.dead_letters`.

        One that SQS has put aside by itself has no reason. Those in another operator's hands are
        missing.
        """
        letters = self._take_dead_letters()
        self._hide(self.dead_letter_url, letters, seconds=0)
        return letters

    def drop(self, ids: Collection[str]) -> int:
        """See :meth:`OrderQueue.drop`."""
        letters = self._take_dead_letters(ids)
        self._delete(self.dead_letter_url, letters)
        return len(letters)

    def redrive(self, ids: Collection[str] | None = None) -> int:
        """See :meth:`OrderQueue.redrive`.

        All are received before the first is sent, or a letter that dies again at once would come
        round for ever. Where they do not cease to come, what comes too late is left for the next
        redrive. SQS's own StartMessageMoveTask knows no way back for the letters that
        :meth:`dead_letter` sent, since they came from no queue, and does not say how many there
        were.
        """
        letters = self._take_dead_letters(ids)
        for start in range(0, len(letters), aws.BATCH_ENTRIES):
            moving = letters[start : start + aws.BATCH_ENTRIES]
            self.send([letter.body for letter in moving])
            self._delete(self.dead_letter_url, moving)
        return len(letters)

    def _take_dead_letters(self, ids: Collection[str] | None = None) -> list[ReceivedMessage]:
        """Receive dead letters, all or those of these ids alone."""
        letters: dict[str, ReceivedMessage] = {}
        deadline = time.monotonic() + REDRIVE_RECEIVES_SECONDS
        while time.monotonic() < deadline and (
            came := self._receive(
                self.dead_letter_url, aws.BATCH_ENTRIES, REDRIVE_POLL_SECONDS, REDRIVE_HIDES_SECONDS
            )
        ):
            # SQS may deliver one twice; its last receipt is the one that holds it.
            letters |= {letter.id: letter for letter in came}
        others = [letter for letter in letters.values() if ids is not None and letter.id not in ids]
        self._hide(self.dead_letter_url, others, seconds=0)
        return [letter for letter in letters.values() if letter not in others]

    def depth(self) -> QueueDepth:
        """See :meth:`OrderQueue.depth`. SQS's own numbers, which lag by up to a minute."""
        alive, dead = (self._counts(url) for url in (self.queue_url, self.dead_letter_url))
        # A dead letter that is in the hands of a redrive is still one.
        return QueueDepth(*alive, dead=sum(dead))

    def close(self) -> None:
        """See :meth:`OrderQueue.close`. Nothing is kept open."""

    def _counts(self, url: str) -> tuple[int, int]:
        with aws.calling(f"counting the messages of {url}", ERRORS):
            counted = self._client.get_queue_attributes(
                QueueUrl=url,
                AttributeNames=[
                    "ApproximateNumberOfMessages",
                    "ApproximateNumberOfMessagesNotVisible",
                ],
            )["Attributes"]
        return (
            int(counted["ApproximateNumberOfMessages"]),
            int(counted["ApproximateNumberOfMessagesNotVisible"]),
        )

    @property
    def _client(self) -> "SQSClient":
        return aws.sqs(self.endpoint_url)

    def _entry(self, id_: int, body: str) -> "SendMessageBatchRequestEntryTypeDef":
        entry: SendMessageBatchRequestEntryTypeDef = {"Id": str(id_), "MessageBody": body}
        if self.queue_url.endswith(FIFO):
            entry["MessageGroupId"] = entry["MessageDeduplicationId"] = str(uuid4())
        return entry


def _reason_in(message: "MessageTypeDef") -> str:
    given = message.get("MessageAttributes", {}).get("reason")
    return given.get("StringValue", "") if given else ""
