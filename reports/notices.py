"""Publish notices about waits, failed compensations and the audit."""

from collections.abc import Sequence
from datetime import timedelta

from sqlmodel import col, select

from orders.batches import batches_among
from store.bulk import update_rows
from store.database import reading, transaction
from store.models import Order, OrderStatus, SagaRecord, utc_now
from store.partners import topic
from store.saga_log import lock_orders
from store.settings import settings
from texts import forms, notices
from texts.words import in_words


def announce_wait(order: Order, form_url: str) -> None:
    """Publish one notice for each attempt that waits for a courier.

    An order that does not wait, or whose attempt was announced, is passed over.

    Args:
        order: The order as it was read last.
        form_url: The link to the form of its answer.

    Raises:
        TopicUnavailable: the notice was not published; to be tried again.
    """
    if order.status != OrderStatus.WAITING or order.announced_attempt == order.attempt:
        return
    topic().publish([notices.waiting(order, where_to_answer(order, form_url), form_url)])
    with transaction() as session:
        session.get_one(Order, order.id, with_for_update=True).announced_attempt = order.attempt


def announce_failed_compensation(order: Order) -> None:
    """Publish a notice of the undos that failed."""
    with reading() as session:
        failed = session.exec(
            select(SagaRecord).where(
                SagaRecord.order_id == order.id,
                SagaRecord.attempt == order.attempt,
                col(SagaRecord.undo_error).is_not(None),
            )
        ).all()
        undone = [
            f"{record.step}: {in_words(record.result, order.currency)}; tried "
            f"{record.undo_tries} times, last error: {record.undo_error}"
            for record in failed
        ]
    topic().publish([notices.compensation_failed(order, undone)])


def announce_audit(findings: Sequence[str], count: int, run_id: str) -> None:
    """Publish a notice of the audit's first findings.

    Args:
        findings: The first of them, one line each.
        count: How many there are.
        run_id: The audit's flow run.
    """
    topic().publish([notices.books_off(findings, count, run_id)])


def remind(form_urls: dict[str, str]) -> None:
    """Publish one reminder for each attempt whose wait ends soon.

    Args:
        form_urls: The orders, each with the link to its form; those that do not wait, or were
            reminded of already, are passed over.
    """
    with reading() as session:
        soon = utc_now() + timedelta(seconds=settings().reminder_seconds)
        due = [
            order
            for order in session.exec(select(Order).where(col(Order.id).in_(form_urls)))
            if order.status == OrderStatus.WAITING
            and order.wait_until is not None
            and order.wait_until <= soon
            and order.reminded_attempt != order.attempt
        ]
    topic().publish(
        [
            notices.reminder(
                order, where_to_answer(order, form_urls[order.id]), form_urls[order.id]
            )
            for order in due
        ]
    )
    reminded = [{"id": order.id, "reminded_attempt": order.attempt} for order in due]
    with transaction() as session:
        lock_orders(session, [order.id for order in due])
        update_rows(session, Order, reminded)


def where_to_answer(order: Order, form_url: str) -> str:
    """Return where a person answers for a waiting order.

    One form decides for all waiting orders of a batch, and the text states that.

    Args:
        order: An order that waits.
        form_url: The link to the form of its run.

    Returns:
        One sentence or two, with the link at the end.
    """
    return forms.where_to_answer(form_url, in_batch=bool(batches_among([order.run_id or ""])))
