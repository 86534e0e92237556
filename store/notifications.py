"""The contract of the topic to which the shop's notifications go.

``store/partners.py`` chooses the topic.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Notice:
    """A notification with a subject, a text and machine-readable data.

    ``key`` is the idempotency key: a notice published twice under it is one notice. ``order_id`` is
    empty where it is about no order.
    """

    key: str
    order_id: str
    subject: str
    body: str
    data: dict[str, Any]


class Topic(Protocol):
    """The interface of a notification topic."""

    def publish(self, notices: Sequence[Notice]) -> None:
        """Publish each notice at least once, raising if any was not taken.

        The error's ``left_out`` holds the keys of those that were not taken.

        Raises:
            TopicUnavailable: the topic is out of reach or overloaded; publishing again is safe.
            TopicRefused: the topic would refuse it again: its address, rights or content is wrong.
        """
        ...
