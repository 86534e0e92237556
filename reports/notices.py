"""What people read about an order: its timeline, form and receipt, and the notices to the shop.

Nothing in here names a customer: notices, artifacts and logs outlive the order and are seen by
many.
"""

from collections.abc import Sequence
from datetime import timedelta

from sqlmodel import Session, col, select

from orders.batches import batches_among
from orders.lookup import outcome_error
from reports.compensations import open_undos
from reports.story import in_words
from store.bulk import update_rows
from store.database import reading, transaction
from store.errors import OrderError, OrderInProgress, and_more, one_line
from store.messages import Receipt, ReceiptLine, money
from store.models import (
    Book,
    Courier,
    Decision,
    Order,
    OrderLine,
    OrderStatus,
    SagaRecord,
    StepState,
    utc_now,
)
from store.notifications import Notice, topic
from store.saga import StepRecord, lock_orders, taken_by
from store.settings import settings
from tasks.steps import UNDOS
from tasks.undo import Taken


def timeline(order_id: str) -> str:
    """Return an order's story in Markdown: where it stands, its steps, undos and answers.

    The order must be recorded.
    """
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
            *_table_of(_lines(session, order_id), order),
            "",
            "| attempt | step | at (UTC) | result | given back |",
            "|---:|---|---|---|---|",
            *(_step_row(record, order.currency) for record in records),
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


def _lines(session: Session, order_id: str) -> list[tuple[OrderLine, str]]:
    """Return an order's lines, each with its title; the book's id where there is no such book."""
    found = session.exec(
        select(OrderLine, Book.title)
        .join(Book, col(Book.id) == col(OrderLine.book_id), isouter=True)
        .where(OrderLine.order_id == order_id)
        .order_by(OrderLine.book_id)
    )
    return [(line, title or line.book_id) for line, title in found]


def _table_of(lines: Sequence[tuple[OrderLine, str]], order: Order) -> list[str]:
    return [
        "| title | copies | price each |",
        "|---|---:|---:|",
        *(
            f"| {title} | {line.quantity} | {_amount(line.unit_price_cents, order)} |"
            for line, title in lines
        ),
    ]


def _step_row(record: SagaRecord, currency: str) -> str:
    done = "" if record.state in (StepState.DONE, StepState.UNDONE) else f" ({record.state})"
    given_back = ""
    if record.undone_at is not None:
        given_back = f"{record.undone_at:%H:%M:%S} {in_words(record.undo_result or {}, currency)}"
    elif record.undo_error is not None:
        given_back = f"**failed {record.undo_tries} times**: {record.undo_error}"
    return (
        f"| {record.attempt} | {record.step}{done} | {record.at:%Y-%m-%d %H:%M:%S} "
        f"| {in_words(record.result, currency)} | {given_back} |"
    )


def _answer_row(answer: Decision) -> str:
    late = "" if answer.accepted else "late, not counted"
    return (
        f"| {answer.attempt} | {answer.outcome} | {answer.courier_id or ''} "
        f"| {answer.decided_at:%Y-%m-%d %H:%M:%S} | {late} |"
    )


def describe(order: Order, refused: str) -> str:
    """Return, in Markdown, what a person is asked to decide about a waiting order.

    Args:
        order: The order; it waits.
        refused: What was wrong with the last answer; empty if there was none.
    """
    with reading() as session:
        lines = _lines(session, order.id)
        couriers = session.exec(select(Courier).order_by(Courier.id)).all()
        free = [
            f"`{courier.id}` ({courier.capacity_copies - courier.assigned_copies} copies free)"
            for courier in couriers
        ]
    return "\n".join(
        [
            *([f"**Your answer was refused.** {refused}", ""] if refused else []),
            f"Order `{order.id}` waits for a courier until {order.wait_until:%Y-%m-%d %H:%M} UTC.",
            "",
            *_table_of(lines, order),
            "",
            f"Total {money(order.total_cents or 0, order.currency)}, paid with "
            f"{order.points_redeemed} points and {money(order.due_cents or 0, order.currency)}.",
            "",
            f"Couriers: {', '.join(free) or 'none'}.",
            "",
            "Is there a courier who takes the order? If not, all that it has taken is given back: "
            f"{', '.join(undo.at_stake for undo in open_undos(order.id)) or 'nothing'}.",
        ]
    )


def explain(order_id: str, error: OrderError) -> OrderError:
    """Return ``error`` with what its compensation has given back, and what it has still to.

    Args:
        order_id: The order; it must be recorded.
        error: Why it ends; what is returned is of the same type.
    """
    with transaction() as session:
        order = lock_orders(session, [order_id])[order_id]
        taken = taken_by(session, order)
    taken.sort(key=lambda record: UNDOS[record.step].place)
    undone = [record for record in taken if record.undo_result is not None]
    held = [record for record in taken if record.undo_result is None]
    parts = [
        *([f"Given back: {given}."] if (given := _amounts(undone, order.currency)) else []),
        *([f"To be given back: {left}."] if (left := _amounts(held, order.currency)) else []),
    ]
    why = one_line(error).rstrip(".")
    return type(error)(" ".join([f"{why}.", *(parts or ["Nothing was taken."])]))


def _amounts(records: Sequence[StepRecord], currency: str) -> str:
    """Return what steps took, or what of it was given back, in words; empty if it is nothing."""
    words = (
        UNDOS[record.step].in_words(
            Taken(
                record.result if record.undo_result is None else record.undo_result,
                currency,
                in_doubt=record.state == StepState.INTENDED,
            )
        )
        for record in records
    )
    return ", ".join(filter(None, words))


def receipt(order_id: str) -> Receipt:
    """Return the receipt of a dispatched order.

    Raises:
        OrderError: the order ended otherwise; its reason.
        OrderInProgress: the order has not ended.
    """
    with reading() as session:
        order = session.get_one(Order, order_id)
        if order.error is not None:
            raise outcome_error(order)
        if order.status != OrderStatus.DISPATCHED:
            raise OrderInProgress(f"order {order_id} is {order.status}")
        lines = _lines(session, order_id)
        dispatched = session.get_one(SagaRecord, (order_id, order.attempt, "dispatch_order"))
        return Receipt(
            order_id=order.id,
            attempt=order.attempt,
            status=order.status,
            lines=[
                ReceiptLine(
                    book_id=line.book_id,
                    title=title,
                    quantity=line.quantity,
                    unit_price_cents=line.unit_price_cents or 0,
                )
                for line, title in lines
            ],
            currency=order.currency,
            total_cents=order.total_cents or 0,
            points_redeemed=order.points_redeemed,
            billed_cents=order.due_cents or 0,
            courier=order.courier_id or "",
            dispatched_at=dispatched.at,
        )


def announce_wait(order: Order, form_url: str) -> None:
    """Tell the shop, once for each attempt, that an order waits; another one is passed over.

    Args:
        order: The order as it was read last.
        form_url: The link to the form of its answer.

    Raises:
        TopicUnavailable: the notice was not published; to be tried again.
    """
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
            f"{record.step}: {in_words(record.result, order.currency)}; tried "
            f"{record.undo_tries} times, last error: {record.undo_error}"
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
                        f"Attempt {order.attempt} of order {order.id} failed ({order.error}), "
                        "and so did its compensation.",
                        "",
                        *undone,
                        "",
                        "It is tried again by recover_orders, with growing delays.",
                    ]
                ),
                data={
                    "event": "compensation-failed",
                    "orderId": order.id,
                    "attempt": order.attempt,
                    "failed": undone,
                },
            )
        ]
    )


def announce_audit(findings: Sequence[str], count: int, run_id: str) -> None:
    """Tell the shop that its books are off, and what was found first.

    Args:
        findings: The first of them, one line each.
        count: How many there are.
        run_id: The audit's flow run.
    """
    topic().publish(
        [
            Notice(
                key=f"audit:{run_id}",
                order_id="",
                subject=f"The books are off: {count} findings",
                body="\n".join(
                    [
                        *findings,
                        *and_more(count - len(findings)),
                        "",
                        "See docs/runbook.md, and `checkout audit`.",
                    ]
                ),
                data={"event": "books-off", "runId": run_id, "count": count},
            )
        ]
    )


def remind(form_urls: dict[str, str]) -> None:
    """Remind the shop of orders whose wait is nearly over; once for each attempt.

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
        notices = [
            _wait_notice(order, form_urls[order.id], "reminder", "still waits for a courier")
            for order in due
        ]
    topic().publish(notices)
    reminded = [{"id": order.id, "reminded_attempt": order.attempt} for order in due]
    with transaction() as session:
        lock_orders(session, [order.id for order in due])
        update_rows(session, Order, reminded)


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
                where_to_answer(order, form_url),
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


def where_to_answer(order: Order, form_url: str) -> str:
    """Say where a person answers for an order that waits, and for which others as well.

    Args:
        order: An order that waits.
        form_url: The link to the form of its run.

    Returns:
        One sentence or two, with the link at the end.
    """
    if batches_among([order.run_id or ""]):
        return (
            "An answer counts for all orders of its batch that still wait; this one alone is ended "
            f"by `checkout cancel`. The batch's form, with the button “Resume”: {form_url}"
        )
    return f"Answer here, with the button “Resume”: {form_url}"
