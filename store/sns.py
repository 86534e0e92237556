"""The topic on SNS, with e-mail texts and JSON data.

Published at least once. The notice's key travels as an attribute and in the JSON, so that a reader
can tell a repetition; a FIFO topic tells it by itself for five minutes.
"""

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from store import aws
from store.errors import TopicRefused, TopicUnavailable
from store.notifications import Notice

if TYPE_CHECKING:
    from mypy_boto3_sns.type_defs import PublishBatchRequestEntryTypeDef

ERRORS = aws.Errors(unavailable=TopicUnavailable, refused=TopicRefused)
SUBJECT_LENGTH = 99
"""SNS's documentation says both "up to 100" and "less than 100"."""


@dataclass(frozen=True, slots=True)
class SnsTopic:
    """See :class:`store.notifications.Topic`."""

    topic_arn: str
    endpoint_url: str | None = None

    def publish(self, notices: Sequence[Notice]) -> None:
        """See :meth:`Topic.publish`.

        Raises:
            TopicUnavailable: some were not published, by no fault of theirs; it names them.
            TopicRefused: some were not published, and never will be; it names them.
        """
        entries = [self._entry(id_, notice) for id_, notice in enumerate(notices)]
        if not entries:
            return
        with aws.calling(f"publishing to {self.topic_arn}", ERRORS):
            client = aws.sns(self.endpoint_url)
            not_published = aws.call_in_batches(
                entries,
                lambda batch: client.publish_batch(
                    TopicArn=self.topic_arn, PublishBatchRequestEntries=batch
                ),
            )
        keys = {str(id_): notice.key for id_, notice in enumerate(notices)}
        aws.raise_if_any(
            not_published, f"notices were not published to {self.topic_arn}", keys, ERRORS
        )

    def _entry(self, id_: int, notice: Notice) -> "PublishBatchRequestEntryTypeDef":
        attributes = {"key": notice.key}
        if notice.order_id:
            attributes["orderId"] = notice.order_id
        if event := notice.data.get("event"):
            # Lets a subscription filter, for example the shop's for what needs a person.
            attributes["event"] = str(event)
        entry: PublishBatchRequestEntryTypeDef = {
            "Id": str(id_),
            "Subject": subject_line(notice.subject),
            "MessageStructure": "json",
            "Message": _message(notice),
            "MessageAttributes": {
                name: {"DataType": "String", "StringValue": value}
                for name, value in attributes.items()
            },
        }
        if self.topic_arn.endswith(".fifo"):
            entry["MessageGroupId"] = notice.order_id or "shop"
            # A key may be longer, and of other characters, than this id may be.
            entry["MessageDeduplicationId"] = hashlib.sha256(notice.key.encode()).hexdigest()
        return entry


def subject_line(subject: str) -> str:
    r"""Return the subject as one ASCII line, as SNS requires.

    It begins with no space.

    >>> subject_line("Café “Ünion”:\n 3 copies")
    'Cafe ?Union?: 3 copies'
    """
    letters = (c for c in unicodedata.normalize("NFKD", subject) if not unicodedata.combining(c))
    ascii_only = "".join(letters).encode("ascii", "replace").decode()
    printable = "".join(c if c.isprintable() else " " for c in ascii_only)
    return " ".join(printable.split())[:SUBJECT_LENGTH].rstrip() or "Notice"


def _message(notice: Notice) -> str:
    """Return the SNS message with a text for each protocol.

    E-mail and SMS get texts for people, every other protocol gets the data.
    """
    data = {"orderId": notice.order_id, **notice.data, "key": notice.key}
    return json.dumps(
        {
            "default": json.dumps(data, ensure_ascii=False),
            "email": notice.body,
            "sms": subject_line(notice.subject),
        },
        ensure_ascii=False,
    )
