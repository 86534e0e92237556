"""The contract of the order queue.

Delivery is at least once. A received message is hidden for its visibility timeout; it is deleted
when it is done, or comes again. After ``MAX_RECEIVES`` receives it is a dead letter.
``store/partners.py`` chooses the queue.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

MAX_RECEIVES = 5
"""More than the redeliveries of an ordinary restart, few enough to see a poison message soon."""


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """A message held by one receiver until its visibility timeout.

    ``reason`` is why a dead letter was put aside, empty where only the queue knows.
    """

    id: str
    body: str
    receive_count: int
    receipt: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """The numbers of ready, held and dead messages of a queue.

    A queue that is spread over many machines counts them roughly.
    """

    ready: int
    in_hand: int
    dead: int


class OrderQueue(Protocol):
    """The interface of an order queue.

    Every call may raise :class:`store.errors.QueueUnavailable`, and may then be made again: what
    it did already does no harm twice. One that raises :class:`store.errors.QueueRefused` would be
    refused again: its address, rights or content is wrong.
    """

    def send(self, bodies: Sequence[str]) -> None:
        """Send each body as a message, raising if any was not taken.

        The error's ``left_out`` holds the bodies that were not taken.
        """
        ...

    def receive(self, limit: int, wait_seconds: float) -> list[ReceivedMessage]:
        """Return up to ``limit`` messages, waiting up to ``wait_seconds`` for the first.

        A queue may round the wait up to whole seconds.
        """
        ...

    def delete(self, messages: Sequence[ReceivedMessage]) -> None:
        """Delete messages, ignoring those already gone."""
        ...

    def hide(self, messages: Sequence[ReceivedMessage], seconds: int) -> None:
        """Set the time from now until the messages are delivered again.

        A message that is not in this receiver's hands any more is left alone.
        """
        ...

    def hand_back(self, messages: Sequence[ReceivedMessage]) -> None:
        """Release sound messages for redelivery and reset their receive counts.

        An order may wait for hours and be in many hands; that must not make it a dead letter.
        """
        ...

    def dead_letter(self, message: ReceivedMessage, reason: str) -> None:
        """Move a message that can never be handled to the dead letters."""
        ...

    def dead_letters(self) -> list[ReceivedMessage]:
        """Return the dead letters, which stay where they are."""
        ...

    def redrive(self, ids: Collection[str] | None = None) -> int:
        """Move dead letters back to the queue and return their number.

        Those of these ids, or all of them.
        """
        ...

    def drop(self, ids: Collection[str]) -> int:
        """Delete the dead letters of these ids and return their number."""
        ...

    def depth(self) -> QueueDepth:
        """Return how many messages there are."""
        ...

    def close(self) -> None:
        """Close what a receive has opened to wait."""
        ...
