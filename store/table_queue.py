"""The embedded order queue, a table of the store's own database."""

import time
from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import ColumnElement, delete, func, update
from sqlalchemy import select as select_columns
from sqlmodel import col, select

from store.bulk import among, insert_rows, read_rows, update_rows
from store.database import reading, transaction
from store.models import QueuedMessage, utc_now
from store.queue import MAX_RECEIVES, QueueDepth, ReceivedMessage
from store.settings import settings
from store.wakeups import Listener, notify

CHANNEL = "store_order_queue"
"""Notified when messages can be received."""


class TableQueue:
    """The embedded queue, a table of the store's own database."""

    def __init__(self) -> None:
        self._listener = Listener(CHANNEL)

    def send(self, bodies: Sequence[str]) -> None:
        """See :meth:`OrderQueue.send`."""
        now = utc_now()
        rows = [{"id": str(uuid4()), "body": body} for body in bodies]
        with transaction() as session:
            insert_rows(session, QueuedMessage, rows, visible_at=now, sent_at=now, receive_count=0)
            notify(session, CHANNEL)

    def receive(self, limit: int, wait_seconds: float) -> list[ReceivedMessage]:
        """See :meth:`OrderQueue.receive`."""
        deadline = time.monotonic() + wait_seconds
        while True:
            received = self._receive_visible(limit)
            seconds_left = deadline - time.monotonic()
            if received or seconds_left <= 0:
                return received
            self._listener.wait(seconds_left)

    def _receive_visible(self, limit: int) -> list[ReceivedMessage]:
        now = utc_now()
        hidden_until = now + timedelta(seconds=settings().visibility_timeout_seconds)
        with transaction() as session:
            visible = read_rows(
                session,
                select(QueuedMessage.id, QueuedMessage.body, QueuedMessage.receive_count)
                .where(col(QueuedMessage.dead_at).is_(None), col(QueuedMessage.visible_at) <= now)
                .order_by(col(QueuedMessage.visible_at))
                .limit(limit)
                .with_for_update(skip_locked=True),
            )
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
                    {"id": id_, "dead_reason": f"received {count} times, never done"}
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
                    delete(QueuedMessage)
                    .where(among(col(QueuedMessage.id), [m.id for m in messages]))
                    .execution_options(synchronize_session=False)
                )

    def hide(self, messages: Sequence[ReceivedMessage], seconds: int) -> None:
        """See :meth:`OrderQueue.hide`. A message received again since is left alone."""
        self._set(messages, visible_at=utc_now() + timedelta(seconds=seconds))

    def hand_back(self, messages: Sequence[ReceivedMessage]) -> None:
        """See :meth:`OrderQueue.hand_back`. A message received again since is left alone."""
        self._set(messages, visible_at=utc_now(), receive_count=0)

    def _set(self, messages: Sequence[ReceivedMessage], **columns: Any) -> None:
        if not messages:
            return
        received = {message.id: message.receive_count for message in messages}
        with transaction() as session:
            found = read_rows(
                session,
                select(QueuedMessage.id, QueuedMessage.receive_count)
                .where(among(col(QueuedMessage.id), received))
                .order_by(QueuedMessage.id)
                .with_for_update(),
            )
            in_hand = [{"id": id_} for id_, count in found if count == received[id_]]
            update_rows(session, QueuedMessage, in_hand, **columns)
            if columns["visible_at"] <= utc_now():
                notify(session, CHANNEL)

    def dead_letter(self, message: ReceivedMessage, reason: str) -> None:
        """See :meth:`OrderQueue.dead_letter`."""
        with transaction() as session:
            session.execute(
                update(QueuedMessage)
                .where(col(QueuedMessage.id) == message.id)
                .values(dead_at=utc_now(), dead_reason=reason)
            )

    def dead_letters(self) -> list[ReceivedMessage]:
        """See :meth:`OrderQueue.dead_letters`. The oldest come first."""
        with reading() as session:
            dead = session.exec(
                select(QueuedMessage)
                .where(col(QueuedMessage.dead_at).is_not(None))
                .order_by(col(QueuedMessage.dead_at), col(QueuedMessage.id))
            )
            return [
                ReceivedMessage(
                    letter.id, letter.body, letter.receive_count, "", letter.dead_reason or ""
                )
                for letter in dead
            ]

    def drop(self, ids: Collection[str]) -> int:
        """See :meth:`OrderQueue.drop`."""
        with transaction() as session:
            dropped = session.scalars(
                delete(QueuedMessage).where(*_dead(ids)).returning(col(QueuedMessage.id))
            )
            return len(dropped.all())

    def redrive(self, ids: Collection[str] | None = None) -> int:
        """See :meth:`OrderQueue.redrive`."""
        with transaction() as session:
            redriven = session.scalars(
                update(QueuedMessage)
                .where(*_dead(ids))
                .values(dead_at=None, dead_reason=None, receive_count=0, visible_at=utc_now())
                .returning(col(QueuedMessage.id))
            ).all()
            notify(session, CHANNEL)
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

    def close(self) -> None:
        """See :meth:`OrderQueue.close`."""
        self._listener.close()


def _dead(ids: Collection[str] | None) -> list[ColumnElement[bool]]:
    of_these = [] if ids is None else [among(col(QueuedMessage.id), ids)]
    return [col(QueuedMessage.dead_at).is_not(None), *of_these]
