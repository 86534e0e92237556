"""The order queue: what the dispatcher may ask of it, and the embedded one, a table.

Delivery is at least once. A received message is hidden for its visibility timeout; it is deleted
when it is settled, or comes again. After ``MAX_RECEIVES`` receives it is a dead letter.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol
from uuid import uuid4

from sqlalchemy import delete, func, update
from sqlalchemy import select as select_columns
from sqlmodel import col, select

from store.bulk import among, insert_rows, update_rows
from store.database import reading, transaction
from store.models import QueuedMessage, utc_now
from store.settings import settings

MAX_RECEIVES = 5
"""More than the redeliveries of an ordinary restart, few enough to see a poison message soon."""
TABLE_POLL_SECONDS = 0.25
"""How often an empty table is asked again; below what a person notices, and one cheap query."""


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """A message in the hands of one receiver, until its visibility timeout has passed."""

    id: str
    body: str
    receive_count: int
    receipt: str


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """How many messages a queue has: to be delivered, in somebody's hands, and dead letters.

    A queue that is spread over many machines counts them roughly.
    """

    ready: int
    in_hand: int
    dead: int


class OrderQueue(Protocol):
    """What the checkout asks of a queue.

    Every call may raise :class:`store.errors.QueueUnavailable`, and may then be made again: what
    it did already does no harm twice. One that raises :class:`store.errors.QueueRefused` would be
    refused again: its address, rights or content is wrong.
    """

    def send(self, bodies: Sequence[str]) -> None:
        """Send each body as a message, or raise if any was not taken.

        The error's ``unsent`` holds the bodies that were not taken.
        """
        ...

    def receive(self, limit: int, wait_seconds: float) -> list[ReceivedMessage]:
        """Return up to ``limit`` messages, waiting up to ``wait_seconds`` for the first.

        A queue may round the wait up to whole seconds.
        """
        ...

    def delete(self, messages: Sequence[ReceivedMessage]) -> None:
        """Delete settled messages; those that are gone already are passed over."""
        ...

    def hide(self, messages: Sequence[ReceivedMessage], seconds: int) -> None:
        """Set the time from now until the messages are delivered again.

        A message that is not in this receiver's hands any more is left alone.
        """
        ...

    def hand_back(self, messages: Sequence[ReceivedMessage]) -> None:
        """Give sound messages to the next receiver at once, their receives forgotten.

        An order may wait for hours and be in many hands; that must not make it a dead letter.
        """
        ...

    def dead_letter(self, message: ReceivedMessage, reason: str) -> None:
        """Put a message aside that can never be handled."""
        ...

    def redrive(self) -> int:
        """Put the dead letters into the queue again; return how many there were."""
        ...

    def depth(self) -> QueueDepth:
        """Return how many messages there are."""
        ...


def order_queue() -> OrderQueue:
    """Return the queue that the settings choose."""
    match settings().queue:
        case "table":
            return TableQueue()
        case "sqs":
            # boto3 takes a good part of a second to import; only who uses it pays for it.
            from store.sqs import SqsQueue

            return SqsQueue.from_settings()


class TableQueue:
    """The embedded queue: a table of the store's own database."""

    def send(self, bodies: Sequence[str]) -> None:
        """See :meth:`OrderQueue.send`."""
        now = utc_now()
        rows = [{"id": str(uuid4()), "body": body} for body in bodies]
        with transaction() as session:
            insert_rows(session, QueuedMessage, rows, visible_at=now, sent_at=now, receive_count=0)

    def receive(self, limit: int, wait_seconds: float) -> list[ReceivedMessage]:
        """See :meth:`OrderQueue.receive`."""
        deadline = time.monotonic() + wait_seconds
        while True:
            received = self._receive_visible(limit)
            if received or time.monotonic() >= deadline:
                return received
            time.sleep(TABLE_POLL_SECONDS)

    def _receive_visible(self, limit: int) -> list[ReceivedMessage]:
        now = utc_now()
        hidden_until = now + timedelta(seconds=settings().visibility_timeout_seconds)
        with transaction() as session:
            visible = session.execute(
                select(QueuedMessage.id, QueuedMessage.body, QueuedMessage.receive_count)
                .where(col(QueuedMessage.dead_at).is_(None), col(QueuedMessage.visible_at) <= now)
                .order_by(col(QueuedMessage.visible_at))
                .limit(limit)
                .with_for_update(skip_locked=True)
            ).all()
            received = [
                ReceivedMessage(id_, body, count + 1, receipt=f"{id_}:{count + 1}")
                for id_, body, count in visible
                if count < MAX_RECEIVES
            ]
            update_rows(
                session,
                QueuedMessage,
                [{"id": m.id, "receive_count": m.receive_count} for m in received],
                visible_at=hidden_until,
            )
            update_rows(
                session,
                QueuedMessage,
                [
                    {"id": id_, "dead_reason": f"received {count} times, never settled"}
                    for id_, _, count in visible
                    if count >= MAX_RECEIVES
                ],
                dead_at=now,
            )
        return received

    def delete(self, messages: Sequence[ReceivedMessage]) -> None:
        """See :meth:`OrderQueue.delete`."""
        if messages:
            with transaction() as session:
                session.execute(
                    delete(QueuedMessage).where(
                        among(col(QueuedMessage.id), [m.id for m in messages])
                    )
                )

    def hide(self, messages: Sequence[ReceivedMessage], seconds: int) -> None:
        """See :meth:`OrderQueue.hide`. A message received again since is left alone."""
        self._set(messages, visible_at=utc_now() + timedelta(seconds=seconds))

    def hand_back(self, messages: Sequence[ReceivedMessage]) -> None:
        """See :meth:`OrderQueue.hand_back`. A message received again since is left alone."""
        self._set(messages, visible_at=utc_now(), receive_count=0)

    def _set(self, messages: Sequence[ReceivedMessage], **columns: Any) -> None:
        received = {message.id: message.receive_count for message in messages}
        with transaction() as session:
            found = session.execute(
                select(QueuedMessage.id, QueuedMessage.receive_count)
                .where(among(col(QueuedMessage.id), received))
                .order_by(QueuedMessage.id)
                .with_for_update()
            ).all()
            in_hand = [{"id": id_} for id_, count in found if count == received[id_]]
            update_rows(session, QueuedMessage, in_hand, **columns)

    def dead_letter(self, message: ReceivedMessage, reason: str) -> None:
        """See :meth:`OrderQueue.dead_letter`."""
        with transaction() as session:
            session.execute(
                update(QueuedMessage)
                .where(col(QueuedMessage.id) == message.id)
                .values(dead_at=utc_now(), dead_reason=reason)
            )

    def redrive(self) -> int:
        """See :meth:`OrderQueue.redrive`."""
        with transaction() as session:
            redriven = session.scalars(
                update(QueuedMessage)
                .where(col(QueuedMessage.dead_at).is_not(None))
                .values(dead_at=None, dead_reason=None, receive_count=0, visible_at=utc_now())
                .returning(col(QueuedMessage.id))
            ).all()
        return len(redriven)

    def depth(self) -> QueueDepth:
        """See :meth:`OrderQueue.depth`."""
        alive = col(QueuedMessage.dead_at).is_(None)
        with reading() as session:
            ready, in_hand, dead = session.execute(
                select_columns(
                    func.count().filter(alive, col(QueuedMessage.visible_at) <= utc_now()),
                    func.count().filter(alive, col(QueuedMessage.visible_at) > utc_now()),
                    func.count().filter(col(QueuedMessage.dead_at).is_not(None)),
                ).select_from(QueuedMessage)
            ).one()
        return QueueDepth(ready, in_hand, dead)
