"""The history of one order over all its attempts."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from prefect.client.schemas.objects import State

from console.listing import FIELDS, order_as_data
from console.orders import undo_as_data
from flows.order.events import form_url
from flows.recovery import Move, next_move
from flows.runs.continuation import CONTINUATION, CONTINUED
from flows.runs.order_runs import OrderRun, is_to_come, prefect_client, runs_of_order
from flows.runs.unbegun import CHECKOUT
from flows.runs.work_pool import SERVER_AWAY
from orders.unfinished import as_unfinished
from reports.compensations import OpenUndo, next_try_at, open_undos
from reports.notices import where_to_answer
from reports.story import Event, Story, story
from store.archived_orders import Archive, archive_of
from store.errors import NoPrefectServer, OrderArchived, OrderNotFound
from store.messages import money
from store.models import BEFORE_PIVOT, ENDED, FAILED, Order, OrderStatus, utc_now
from terminal.output import AsJson, Wide, duration, print_json, print_table, terminal

BY_RECOVERY: dict[Move, str] = {
    Move.DISPATCH: "recover_orders hands it over in its next round.",
    Move.COMPENSATE: "recover_orders gives it back in its next round.",
    Move.CANCEL: "Its run was cancelled: recover_orders gives it back in its next round.",
    Move.EXPIRE: "Its time is over: recover_orders gives it back in its next round.",
    Move.CONTINUE: "Its run has ended or stands still: recover_orders starts it again in its next "
    "round.",
    Move.SEND_AGAIN: "recover_orders asks the couriers once more in its next round.",
    Move.REMIND: "recover_orders reminds the shop of it in its next round.",
}
"""What recovery does next, where it has something to do."""


def show(order: str, /, *, wide: Wide = False, as_json: AsJson = False) -> int:
    """Show an order's state, next step and complete timeline.

    One timeline has all attempts: steps, undos, runs in Prefect with their links, messages, charges
    and refunds, answers with their authors, notifications. While Prefect's server is away, it shows
    the rest. For an archived order it prints the file that has all of this.

    Args:
        order: The order's id.
    """
    try:
        told = story(order)
    except OrderArchived:
        archive = archive_of(order)
        if archive is None:
            raise
        return _show_archived(order, archive, as_json=as_json)
    except OrderNotFound:
        # Its run may not have come so far, or may have been refused.
        runs, away = _runs(order, None)
        if not runs:
            raise
        return _show_unrecorded(order, runs, wide=wide, as_json=as_json)
    runs, away = _runs(order, told.order.run_id)
    owner = next((run for run in runs if run.id == told.order.run_id), None)
    next_ = what_next(
        told.order,
        owner.run.state if owner else None,
        utc_now(),
        is_known=away is None,
        stranded=owner is not None and _is_to_start(owner) and bool(owner.lost),
    )
    if told.order.status in FAILED and any(_is_to_start(run) for run in runs):
        next_ = "A run is scheduled for it (below), which begins a new attempt."
    notes = [*([away] if away else []), *told.notes]
    if told.order.run_id and owner is None and away is None:
        notes.append(f"Its run {told.order.run_id} is not in Prefect any more.")
    held = open_undos(order) if told.order.status in BEFORE_PIVOT else []
    events = in_order([*told.events, *_events(runs)])
    if as_json:
        order_data = {
            **order_as_data(told.order),
            "lines": [asdict(line) for line in told.lines],
            "run_url": form_url(told.order),
        }
        print_json(_as_data(order_data, next_, away is None, held, runs, notes, events))
        return 0
    _print_header(told, next_, ", ".join(undo.at_stake for undo in held))
    _print_runs(runs)
    _print_timeline(events, wide=wide)
    for note in notes:
        terminal().print(note, style="yellow")
    return 0


def _runs(order_id: str, owner: str | None) -> tuple[list[OrderRun], str | None]:
    """Return the order's runs, and why they are unknown if so."""
    try:
        with prefect_client() as client:
            return runs_of_order(client, order_id, owner), None
    except NoPrefectServer as error:
        return [], f"The runs in Prefect are not shown: {error}"
    except SERVER_AWAY as error:
        return [], f"The runs in Prefect are not shown: its server went away ({error!r})."


def _is_to_start(run: OrderRun) -> bool:
    state = run.run.state
    return run.flow == CHECKOUT and state is not None and state.is_scheduled()


def what_next(
    order: Order, run: State[Any] | None, now: datetime, *, is_known: bool, stranded: bool = False
) -> str:
    """Return what happens to an order next if no person acts.

    Args:
        order: The order as it stands.
        run: The state of its run; none if Prefect has no such run.
        now: The present moment.
        is_known: Whether Prefect could be asked.
        stranded: Whether its run is scheduled where no worker takes it.
    """
    will_be = _next(order, run, now)
    if not is_known or order.status in (*ENDED, OrderStatus.SUBMITTED):
        return will_be
    move = next_move(as_unfinished(order), run, now, stranded=stranded)
    return f"{will_be} {BY_RECOVERY[move]}" if move in BY_RECOVERY else will_be


def _next(order: Order, run: State[Any] | None, now: datetime) -> str:
    match OrderStatus(order.status):
        case OrderStatus.SUBMITTED:
            return "It is recorded, and waits for the next batch to take it."
        case OrderStatus.STARTED:
            return f"Its run carries it out{f' ({run.name})' if run else ''}."
        case OrderStatus.WAITING:
            until = order.wait_until or now
            return (
                f"It waits for a courier until {until:%Y-%m-%d %H:%M:%S} UTC, for another "
                f"{duration((until - now).total_seconds())}; without an answer it is given back. "
                f"{where_to_answer(order, form_url(order))}"
            )
        case OrderStatus.DISPATCHING:
            return f"Courier {order.courier_id} has accepted; its run hands the parcel over."
        case OrderStatus.DISPATCHED:
            return f"Nothing: courier {order.courier_id} has the parcel."
        case OrderStatus.COMPENSATING:
            return "What it took is being given back."
        case OrderStatus.COMPENSATION_FAILED:
            seen = as_unfinished(order)
            again = next_try_at(seen.undo_tries, seen.moved_at)
            return (
                f"recover_orders tries again to give back what is left, from "
                f"{again:%Y-%m-%d %H:%M:%S} UTC on. checkout compensations: what is left."
            )
        case OrderStatus.COMPENSATED | OrderStatus.REJECTED:
            return f"Nothing. checkout retry {order.id}: a new attempt."


def _events(runs: Sequence[OrderRun]) -> Iterator[Event]:
    for run in runs:
        for state in run.states:
            what = f"{run.flow} run {run.id[:8]}: {state.name}"
            kind = "continuation" if state.message == CONTINUED else "run"
            if state is run.states[0] and CONTINUATION in run.run.tags:
                kind, what = "continuation", f"{what}, in place of a run that was gone"
            facts = {"run_id": run.id, "flow": run.flow, "state": state.name, "url": run.url}
            yield Event(state.timestamp, None, kind, what, state.message or "", facts)


def in_order(events: Sequence[Event]) -> list[Event]:
    """Return events by time, each cause before its effect."""
    return sorted(events, key=lambda event: (event.at, event.kind == "status"))


def _as_data(
    order: dict[str, Any],
    next_: str,
    prefect_answers: bool | None,
    held: Sequence[OpenUndo] = (),
    runs: Sequence[OrderRun] = (),
    notes: Sequence[str] = (),
    events: Sequence[Event] = (),
) -> dict[str, Any]:
    """Return an order's story for programs."""
    return {
        **dict.fromkeys([*FIELDS, "lines", "run_url"]),
        **order,
        "next": next_,
        "cancelling_gives_back": [undo_as_data(undo) for undo in held],
        "prefect_answers": prefect_answers,
        "runs": [
            {"id": run.id, "flow": run.flow, "state": run.run.state_name or "", "url": run.url}
            for run in runs
        ],
        "notes": notes,
        "timeline": [asdict(event) for event in events],
    }


def _print_header(told: Story, next_: str, held: str) -> None:
    order = told.order
    output = terminal()
    output.print(f"Order {order.id}: {order.status}", style="bold")
    if order.error:
        output.print(f"  why        {order.error}: {order.message}")
    lines = ", ".join(f"{line.quantity} of “{line.title}” ({line.book_id})" for line in told.lines)
    facts = {
        "next": next_,
        "attempt": f"{order.attempt}, continued {order.continuations} times after crashes"
        if order.continuations
        else str(order.attempt),
        "customer": order.user_id,
        "front end": order.submitted_by or "",
        "order": lines,
        "total": "not known yet"
        if order.total_cents is None
        else f"{money(order.total_cents, order.currency)}, paid with {order.points_redeemed} "
        f"points and {money(order.due_cents or 0, order.currency)}",
        "courier": order.courier_id or "",
        "cancelling": f"would give back {held} (checkout cancel {order.id})" if held else "",
    }
    for name, fact in facts.items():
        if fact:
            output.print(f"  {name:<10} {fact}")


def _print_runs(runs: Sequence[OrderRun]) -> None:
    for run in runs:
        what = f"{run.id[:8]} {run.flow}, {run.run.state_name}"
        terminal().print(f"  {'run':<10} {what}: {run.url}")


def _print_timeline(events: Sequence[Event], *, wide: bool) -> None:
    print_table(
        "Timeline",
        ["at (UTC)", "attempt", "what", "more"],
        ([event.at, event.attempt, event.what, event.detail] for event in events),
        empty="Nothing has happened yet.",
        text="more",
        expendable=["attempt"],
        wide=wide,
    )


def _next_unrecorded(runs: Sequence[OrderRun]) -> str:
    checkouts = [run for run in runs if run.flow == CHECKOUT]
    to_come = [run for run in checkouts if is_to_come(run)]
    lost = [run for run in checkouts if run.lost]
    if to_come and to_come != lost:
        why = to_come[-1].unbegun
        return f"It is recorded as soon as its run begins{f': {why}' if why else ''}."
    if lost:
        return (
            f"It is not recorded, and no process has its run: {lost[-1].lost}. recover_orders "
            "starts it again in its next round."
        )
    return "It is not recorded; its run has ended and says why."


def _show_unrecorded(order_id: str, runs: Sequence[OrderRun], *, wide: bool, as_json: bool) -> int:
    next_ = _next_unrecorded(runs)
    events = in_order(list(_events(runs)))
    if as_json:
        print_json(_as_data({"order_id": order_id}, next_, True, runs=runs, events=events))
        return 0
    terminal().print(f"Order {order_id}: {next_}", style="bold")
    _print_runs(runs)
    _print_timeline(events, wide=wide)
    return 0


def _show_archived(order_id: str, archive: Archive, *, as_json: bool) -> int:
    place = shlex.quote(archive.location)
    copy = f"aws s3 cp {place} -" if archive.location.startswith("s3:") else f"cat {place}"
    facts = {
        "archive": archive.location,
        "month": archive.month,
        "read": f'{copy} | zcat | grep -F \'"id":"{order_id}"\'',
    }
    next_ = "Nothing: it ended long ago, and its id is not taken again."
    if as_json:
        data = _as_data({"order_id": order_id}, next_, None)
        print_json({**data, "archive": {**facts, "sha256": archive.sha256}})
        return 0
    terminal().print(f"Order {order_id}: archived", style="bold")
    for name, fact in {"next": next_, **facts}.items():
        terminal().print(f"  {name:<10} {fact}")
    return 0
