"""The topic to which the shop's notifications go, and the embedded one, a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from store.bulk import insert_missing
from store.database import transaction
from store.models import Notification
from store.settings import settings


@dataclass(frozen=True, slots=True)
class Notice:
    """A notification: a subject and a text that people read, and data that programs read.

    ``key`` is the idempotency key: a notice published twice under it is one notice. ``order_id`` is
    empty where it is about no order.
    """

    key: str
    order_id: str
    subject: str
    body: str
    data: dict[str, Any]


class Topic(Protocol):
    """What the checkout asks of a topic."""

    def publish(self, notices: Sequence[Notice]) -> None:
        """Publish each notice at least once, or raise if any was not taken.

        The error's ``unpublished`` holds the keys of those that were not taken.

        Raises:
            TopicUnavailable: the topic is out of reach or overloaded; publishing again is safe.
            TopicRefused: the topic would refuse it again: its address, rights or content is wrong.
        """
        ...


def topic() -> Topic:
    """Return the topic that the settings choose."""
    match settings().topic:
        case "table":
            return TableTopic()
        case "sns":
            # boto3 takes a good part of a second to import; only who uses it pays for it.
            from store.sns import SnsTopic

            return SnsTopic.from_settings()


class TableTopic:
    """The embedded topic: a table of the store's own database."""

    def publish(self, notices: Sequence[Notice]) -> None:
        """See :meth:`Topic.publish`. A key that is there already is left as it is."""
        rows = [
            {
                "key": notice.key,
                "order_id": notice.order_id,
                "subject": notice.subject,
                "body": notice.body,
                "data": notice.data,
            }
            for notice in notices
        ]
        with transaction() as session:
            insert_missing(session, Notification, rows)
