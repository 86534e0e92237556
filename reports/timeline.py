"""An order's timeline, and the text of its form."""

from sqlmodel import select

from reports.compensations import open_undos
from reports.history import answers_of, lines_of, records_of
from store.database import reading
from store.models import (
    Courier,
    Decision,
    Order,
    SagaRecord,
    StepState,
)
from texts import forms
from texts.words import in_words, paid, table_of


def timeline(order_id: str) -> str:
    """Return an order's status, steps, undos and answers as Markdown.

    The order must be recorded.
    """
    with reading() as session:
        order = session.get_one(Order, order_id)
        records = records_of(session, order_id)
        answers = answers_of(session, order_id)
        lines = [
            f"# Order `{order.id}`: {order.status}",
            "",
            *([f"**{order.error}**: {order.message}", ""] if order.error else []),
            f"Attempt {order.attempt}. {paid(order)}",
            "",
            *table_of(lines_of(session, order_id), order),
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
    """Return the question about a waiting order as Markdown.

    Args:
        order: The order; it waits.
        refused: What was wrong with the last answer; empty if there was none.
    """
    with reading() as session:
        lines = lines_of(session, order.id)
        couriers = session.exec(select(Courier).order_by(Courier.id)).all()
    taken = [undo.at_stake for undo in open_undos(order.id)]
    return forms.of_order(order, lines, couriers, taken, refused)
