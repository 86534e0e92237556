"""An order's timeline, and the texts of its form while it waits."""

from collections.abc import Iterator, Sequence
from datetime import date, datetime
from typing import NamedTuple

from sqlmodel import Session, select

from reports.compensations import open_undos
from reports.history import answers_of, currencies_of, lines_of, records_of
from store.database import reading
from store.models import Courier, Decision, Notification, Order, OrderStatus, SagaRecord, StepState
from store.settings import settings
from tasks.steps import UNDOS
from tasks.undo import Taken
from texts import forms
from texts.words import in_words, markdown, paid, shown_id, table_of

STATES = {
    StepState.INTENDED: " asked for, its outcome is not known yet",
    StepState.VOID: " refused, nothing was taken",
}
"""What is said of a step that is neither done nor undone."""


class Row(NamedTuple):
    """One line of a timeline, in Markdown."""

    at: datetime
    attempt: int
    what: str
    taken: str = ""
    given_back: str = ""


def timeline(order_id: str) -> str:
    """Return an order's status, steps, undos, answers and notices as Markdown.

    The order must be recorded. Times are in the shop's time zone.
    """
    with reading() as session:
        order = session.get_one(Order, order_id)
        lines = lines_of(session, order_id)
        currencies = currencies_of(session, order)
        rows = [
            *(_step(each, currencies[each.attempt]) for each in records_of(session, order_id)),
            *(_answer(answer) for answer in answers_of(session, order_id)),
            *_notices(session, order),
        ]
        waits = order.status == OrderStatus.WAITING
        header = [
            f"### Order `{shown_id(order.id)}`: {order.status}",
            "",
            *([f"**{order.error}**: {markdown(order.message or '')}", ""] if order.error else []),
            *([markdown(_why_it_waits(session, order)), ""] if waits else []),
            f"Attempt {order.attempt}. {paid(order)}",
            "",
            *table_of(lines, order),
        ]
    rows.sort(key=lambda row: (row.attempt, row.at))
    return "\n".join([*header, *_tables(rows, order.attempt)])


def _why_it_waits(session: Session, order: Order) -> str:
    return forms.why_it_waits(order, _couriers(session), "")


def _couriers(session: Session) -> list[Courier]:
    """Return the couriers, those with the most room first."""
    return sorted(
        session.exec(select(Courier)),
        key=lambda each: (each.assigned_copies - each.capacity_copies, each.id),
    )


def _tables(rows: Sequence[Row], attempts: int) -> Iterator[str]:
    """Yield a table for each attempt, with its day in the heading."""
    zone = settings().zone
    for attempt in dict.fromkeys(row.attempt for row in rows):
        of_attempt = [row for row in rows if row.attempt == attempt]
        day = of_attempt[0].at.astimezone(zone).date()
        which = f"Attempt {attempt}, " if attempts > 1 else ""
        yield from ("", f"#### {which}{day.day} {day:%b %Y}, times in {zone.key}", "")
        yield "| time | what happened | taken | given back |"
        yield "|---|---|---|---|"
        for row in of_attempt:
            at = _clock(row.at, day)
            yield f"| {at} | {row.what} | {row.taken} | {row.given_back} |"


def _clock(at: datetime, day: date) -> str:
    """Return the time, with the date if it is another day."""
    local = at.astimezone(settings().zone)
    return f"{local:%H:%M:%S}" if local.date() == day else f"{local.day} {local:%b %H:%M}"


def _step(record: SagaRecord, currency: str) -> Row:
    state = StepState(record.state)
    what = f"{record.step}{STATES.get(state, '')}"
    undo = UNDOS.get(record.step)
    if undo is None:
        result = {name: value for name, value in record.result.items() if name != "sent_at"}
        said = in_words(result, currency)
        return Row(record.at, record.attempt, markdown(f"{what}: {said}" if said else what))

    taken = undo.in_words(Taken(record.result, currency, state == StepState.INTENDED))
    given_back = ""
    if record.undone_at is not None:
        result = record.undo_result or {}
        back = _unbroken(undo.in_words(Taken(result, currency))) or "nothing"
        at = _clock(record.undone_at, record.at.astimezone(settings().zone).date())
        by = f", settled by {markdown(result['settled_by'])}" if "settled_by" in result else ""
        given_back = f"{back}, {at}{by}"
    elif record.undo_error is not None:
        given_back = f"**failed {record.undo_tries} times**: {markdown(record.undo_error)}"
    return Row(record.at, record.attempt, markdown(what), _unbroken(taken), given_back)


def _unbroken(amount: str) -> str:
    return markdown(amount).replace(" ", "\u00a0")


def _answer(answer: Decision) -> Row:
    late = "" if answer.accepted else " (late, not counted)"
    parts = [
        f"answer: {answer.outcome}{late}",
        f"courier {shown_id(answer.courier_id)}" if answer.courier_id else "",
        f"by {answer.decided_by}" if answer.decided_by else "",
        answer.reason,
    ]
    what = ", ".join(part for part in parts if part)
    return Row(answer.decided_at, answer.attempt, markdown(what))


def _notices(session: Session, order: Order) -> Iterator[Row]:
    for notice in session.exec(select(Notification).where(Notification.order_id == order.id)):
        attempt = notice.data.get("attempt") or order.attempt
        yield Row(notice.published_at, attempt, f"notice to the shop: {notice.data.get('event')}")


class FormTexts(NamedTuple):
    """The texts of a waiting order's form.

    ``description`` is Markdown, ``state_message`` is that of the paused run, ``couriers`` are the
    ids to choose from.
    """

    description: str
    state_message: str
    couriers: list[str]


def form_texts(order: Order, refused: str) -> FormTexts:
    """Return the texts of a waiting order's form.

    Args:
        order: The order; it waits.
        refused: What was wrong with the last answer; empty if there was none.
    """
    with reading() as session:
        lines = lines_of(session, order.id)
        couriers = _couriers(session)
    taken = [undo.at_stake for undo in open_undos(order.id)]
    return FormTexts(
        forms.of_order(order, lines, couriers, taken, refused),
        forms.why_it_waits(order, couriers, refused),
        [courier.id for courier in couriers],
    )
