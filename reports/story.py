"""One order's history over all attempts, from the store's database.

What it reads is only looked at, never decided on. Ids are in it, names of customers are not.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import ValidationError
from sqlmodel import Session, col, select

from orders.lookup import read_order
from reports.compensations import Copies
from reports.history import answers_of, currencies_of, lines_of, records_of
from store.database import reading
from store.messages import OrderMessage, money
from store.models import Attempt, LedgerEntry, Notification, Order, QueuedMessage, StepState
from store.settings import settings
from texts.words import in_words


@dataclass(frozen=True, slots=True)
class Event:
    """An event of an order, with its facts as data."""

    at: datetime
    attempt: int | None
    kind: str
    what: str
    detail: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Story:
    """An order with its lines and its unsorted events.

    ``notes`` says what cannot be known from here.
    """

    order: Order
    lines: list[Copies]
    events: list[Event]
    notes: list[str]


def story(order_id: str) -> Story:
    """Return the story of an order.

    Raises:
        OrderNotFound: no order has the id.
    """
    order = read_order(order_id)
    with reading() as session:
        lines = lines_of(session, order_id)
        events = [
            _acceptance(order),
            *_attempts(session, order),
            *_steps(session, order),
            *_money(session, order),
            *_messages(session, order),
            *_decisions(session, order),
            *_notifications(session, order),
            _standing(order),
        ]
        return Story(
            order=order,
            lines=[Copies(line.book_id, title, line.quantity) for line, title in lines],
            events=events,
            notes=_notes(),
        )


def _acceptance(order: Order) -> Event:
    return Event(
        order.created_at,
        1,
        "accepted",
        "accepted",
        f"{order.copies} copies for customer {order.user_id}",
        {"copies": order.copies, "user_id": order.user_id},
    )


def _standing(order: Order) -> Event:
    why = f"{order.error}: {order.message}" if order.error else ""
    return Event(
        order.updated_at,
        order.attempt,
        "status",
        f"the order is {order.status}",
        why,
        {"status": order.status, "error": order.error, "message": order.message},
    )


def _attempts(session: Session, order: Order) -> Iterator[Event]:
    for each in session.exec(select(Attempt).where(Attempt.order_id == order.id)):
        yield Event(
            each.began_at,
            each.attempt,
            "attempt",
            "begun anew",
            f"asked for by {each.asked_by}",
            {"asked_by": each.asked_by},
        )


def _steps(session: Session, order: Order) -> Iterator[Event]:
    """Yield each step's state, its undo, or its undo's last failure."""
    kinds: dict[str, tuple[str, str]] = {
        StepState.INTENDED: ("intent", "{} asked for, its outcome is not known yet"),
        StepState.VOID: ("void", "{} refused, nothing was taken"),
    }
    currencies = currencies_of(session, order)
    for record in records_of(session, order.id):
        kind, what = kinds.get(record.state, ("step", "{}"))
        yield Event(
            record.at,
            record.attempt,
            kind,
            what.format(record.step),
            in_words(record.result, currencies[record.attempt]),
            {"step": record.step, "state": record.state, "result": record.result},
        )
        undone = record.undo_result or {}
        facts = {"step": record.step, "tries": record.undo_tries}
        if record.undone_at is not None:
            by = undone.get("settled_by")
            yield Event(
                record.undone_at,
                record.attempt,
                "settled" if by else "undo",
                f"{record.step} settled by {by}" if by else f"{record.step} undone",
                in_words(undone, currencies[record.attempt]),
                {**facts, "result": undone},
            )
        elif record.undo_error is not None:
            yield Event(
                order.updated_at,
                record.attempt,
                "undo_failed",
                f"{record.step} could not be undone (try {record.undo_tries})",
                record.undo_error,
                {**facts, "error": record.undo_error},
            )


def _money(session: Session, order: Order) -> Iterator[Event]:
    """Yield the embedded gateway's requests for the order.

    Other gateways keep their own records.
    """
    for entry in session.exec(select(LedgerEntry).where(LedgerEntry.order_id == order.id)):
        attempt = entry.key.removesuffix(":refund").rpartition(":")[2]
        yield Event(
            entry.at,
            int(attempt) if attempt.isdecimal() else None,
            "refund" if entry.kind == "refund" else "charge",
            "refunded" if entry.kind == "refund" else f"charge {entry.status}",
            f"{money(entry.amount_cents, entry.currency)}, key {entry.key}",
            {
                "key": entry.key,
                "status": entry.status,
                "amount_cents": entry.amount_cents,
                "currency": entry.currency,
                "tries": entry.tries,
            },
        )


def _messages(session: Session, order: Order) -> Iterator[Event]:
    about = col(QueuedMessage.body).contains(f'"{order.id}"', autoescape=True)
    for message in session.exec(select(QueuedMessage).where(about)):
        try:
            read = OrderMessage.model_validate_json(message.body)
        except ValidationError:
            continue  # a dead letter that nobody can read is about no order
        if read.order_id != order.id:
            continue  # an order may be called like a field of each message
        facts = {"id": message.id, "receive_count": message.receive_count}
        yield Event(
            message.sent_at,
            read.attempt,
            "message",
            "message to the couriers",
            f"id {message.id}, receive count {message.receive_count}",
            facts,
        )
        if message.dead_at is not None:
            yield Event(
                message.dead_at,
                read.attempt,
                "dead_letter",
                "the message was put aside as a dead letter",
                f"id {message.id}: {message.dead_reason or 'received too often'}",
                {**facts, "reason": message.dead_reason},
            )


def _decisions(session: Session, order: Order) -> Iterator[Event]:
    for decision in answers_of(session, order.id):
        parts = [
            f"courier {decision.courier_id}" if decision.courier_id else "",
            f"by {decision.decided_by or 'somebody who gave no name'}",
            decision.reason,
        ]
        yield Event(
            decision.decided_at,
            decision.attempt,
            "decision" if decision.accepted else "late_decision",
            decision.outcome if decision.accepted else f"late, not counted: {decision.outcome}",
            ", ".join(part for part in parts if part),
            {
                "outcome": decision.outcome,
                "courier": decision.courier_id,
                "decided_by": decision.decided_by,
                "reason": decision.reason,
                "accepted": decision.accepted,
            },
        )


def _notifications(session: Session, order: Order) -> Iterator[Event]:
    for notice in session.exec(select(Notification).where(Notification.order_id == order.id)):
        yield Event(
            notice.published_at,
            notice.data.get("attempt"),
            "notification",
            "notification sent",
            f"{notice.subject} (key {notice.key})",
            {"key": notice.key, "subject": notice.subject},
        )


def _notes() -> list[str]:
    notes = []
    if settings().queue == "sqs":
        notes.append(
            f"The messages are in SQS ({settings().queue_url}), which cannot be searched; when one "
            "was sent is in the record of prepare_order."
        )
    if settings().topic == "sns":
        notes.append("Notifications went to SNS, which keeps none of them.")
    return notes
