"""What people read about an order: its timeline, and the notices to the shop.

Nothing in here names a customer: notices, artifacts and logs outlive the order and are seen by
many.
"""

from datetime import timedelta

from sqlmodel import col, select

from store.database import reading, transaction
from store.messages import money
from store.models import Decision, Order, OrderStatus, SagaRecord, StepState, utc_now
from store.notifications import Notice, topic
from store.settings import settings


def timeline(order_id: str) -> str:
    """Return an order's story in Markdown: where it stands, its steps, undos and answers."""
    with reading() as session:
        order = session.get_one(Order, order_id)
        records = session.exec(
            select(SagaRecord)
            .where(SagaRecord.order_id == order_id)
            .order_by(col(SagaRecord.attempt), col(SagaRecord.at))
        ).all()
        answers = session.exec(
            select(Decision).where(Decision.order_id == order_id).order_by(col(Decision.id))
        ).all()
        lines = [
            f"# Order `{order.id}`: {order.status}",
            "",
            *([f"**{order.error}**: {order.message}", ""] if order.error else []),
            f"Attempt {order.attempt}. Total {_amount(order.total_cents, order)}, paid with "
            f"{order.points_redeemed} points and {_amount(order.due_cents, order)}.",
            "",
            "| attempt | step | at (UTC) | result | given back |",
            "|---:|---|---|---|---|",
            *(_step_row(record) for record in records),
        ]
        if answers:
            lines += [
                "",
                "| attempt | answer | courier | at (UTC) | |",
                "|---:|---|---|---|---|",
                *(_answer_row(answer) for answer in answers),
            ]
        return "\n".join(lines)


def _amount(cents: int | None, order: Order) -> str:
    return "not known yet" if cents is None else money(cents, order.currency)


def _step_row(record: SagaRecord) -> str:
    done = "" if record.state in (StepState.DONE, StepState.UNDONE) else f" ({record.state})"
    given_back = ""
    if record.undone_at is not None:
        given_back = f"{record.undone_at:%H:%M:%S} {_facts(record.undo_result or {})}"
    elif record.undo_error is not None:
        given_back = f"**failed {record.undo_tries} times**: {record.undo_error}"
    return (
        f"| {record.attempt} | {record.step}{done} | {record.at:%Y-%m-%d %H:%M:%S} "
        f"| {_facts(record.result)} | {given_back} |"
    )


def _facts(result: dict[str, object]) -> str:
    """Return a record's result as people read it; who the customer is stays out of it."""
    return ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in result.items() if name != "user_id"
    )


def _answer_row(answer: Decision) -> str:
    late = "" if answer.accepted else "late, not counted"
    return (
        f"| {answer.attempt} | {answer.outcome} | {answer.courier_id or ''} "
        f"| {answer.decided_at:%Y-%m-%d %H:%M:%S} | {late} |"
    )


def announce_wait(order: Order, form_url: str) -> None:
    """Tell the shop, once for each attempt, that an order waits, with the link to its form."""
    if order.status != OrderStatus.WAITING or order.announced_attempt == order.attempt:
        return
    topic().publish([_wait_notice(order, form_url, "waiting", "waits for a courier")])
    with transaction() as session:
        session.get_one(Order, order.id, with_for_update=True).announced_attempt = order.attempt


def announce_failed_compensation(order: Order) -> None:
    """Tell the shop that something could not be given back, and what."""
    with reading() as session:
        failed = session.exec(
            select(SagaRecord).where(
                SagaRecord.order_id == order.id,
                SagaRecord.attempt == order.attempt,
                col(SagaRecord.undo_error).is_not(None),
            )
        ).all()
        undone = [
            f"{record.step}: {_facts(record.result)}; tried {record.undo_tries} times, last "
            f"error: {record.undo_error}"
            for record in failed
        ]
    topic().publish(
        [
            Notice(
                key=f"{order.id}:{order.attempt}:compensation-failed",
                order_id=order.id,
                subject=f"Order {order.id}: not everything could be given back",
                body="\n".join(
                    [
                        f"Order {order.id} failed ({order.error}), and so did its compensation.",
                        "",
                        *undone,
                        "",
                        "It is tried again by recover_orders, with growing delays.",
                    ]
                ),
                data={"event": "compensation-failed", "orderId": order.id, "failed": undone},
            )
        ]
    )


def remind(order_ids: list[str], form_urls: dict[str, str]) -> None:
    """Remind the shop of orders whose wait is nearly over; once for each attempt.

    Args:
        order_ids: Orders that may wait; others, and those reminded of already, are passed over.
        form_urls: The link to each order's form.
    """
    with reading() as session:
        soon = utc_now() + timedelta(seconds=settings().reminder_seconds)
        due = [
            order
            for order in session.exec(select(Order).where(col(Order.id).in_(order_ids)))
            if order.status == OrderStatus.WAITING
            and order.wait_until is not None
            and order.wait_until <= soon
            and order.reminded_attempt != order.attempt
        ]
        notices = [
            _wait_notice(order, form_urls[order.id], "reminder", "still waits for a courier")
            for order in due
        ]
    topic().publish(notices)
    with transaction() as session:
        for order in due:
            session.get_one(Order, order.id, with_for_update=True).reminded_attempt = order.attempt


def _wait_notice(order: Order, form_url: str, kind: str, what: str) -> Notice:
    return Notice(
        key=f"{order.id}:{order.attempt}:{kind}",
        order_id=order.id,
        subject=f"Order {order.id} {what}",
        body="\n".join(
            [
                f"Order {order.id} ({order.copies} copies) {what}.",
                f"Without an answer it is refunded at {order.wait_until:%Y-%m-%d %H:%M} UTC.",
                "",
                f"Answer here, with the button “Resume”: {form_url}",
            ]
        ),
        data={
            "event": kind,
            "orderId": order.id,
            "attempt": order.attempt,
            "copies": order.copies,
            "waitUntil": order.wait_until.isoformat() if order.wait_until else None,
            "formUrl": form_url,
        },
    )
