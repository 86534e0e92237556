"""The commands for one order, from its start to its retry."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import CycloptsError, Parameter, Token
from pydantic import ValidationError

from flows.actions.by_hand import cancel_order, require_cancellable
from flows.order.events import run_url
from flows.runs.order_runs import cancel_runs_to_come, is_to_come, prefect_client, runs_of_order
from flows.runs.order_runs import retry as start_attempt
from flows.runs.order_runs import submit as start_checkout
from orders.lookup import outcome_error, read_order
from orders.rows import NamedTwice, once_each
from orders.sources import decoded, explain_encoding
from reports.compensations import OpenUndo, open_undos
from reports.receipts import explain
from store.errors import OrderNotFound, RefusedOrder, UnreadableSource
from store.messages import CheckoutOrder
from store.models import FAILED, Order
from store.wrong_input import Problem, problems
from tasks.steps import UNDOS
from terminal.numbers import WholeNumber, whole_number
from terminal.output import AsJson, confirmed, print_answer, quiet_runs, terminal

FLAGS = {
    "userId": "--user",
    "bookId": "--book",
    "quantity": "--quantity",
    "items": "--item",
    "redeem": "--redeem",
    "orderId": "--order-id",
    "paymentMethod": "--payment-method",
}
"""The option for each field of an order."""


def _source(_: Any, tokens: Sequence[Token]) -> str:
    text = tokens[0].value
    if text.startswith("-") and text != "-":
        raise ValueError(f"there is no option {text}")
    return text


# For the -, which would be an unknown option; a mistyped option is taken for a source as well.
Source = Annotated[str, Parameter(allow_leading_hyphen=True, converter=_source)]


def submit(
    source: Source | None = None,
    /,
    *,
    user: str | None = None,
    book: str | None = None,
    quantity: WholeNumber | None = None,
    item: Annotated[list[str] | None, Parameter(negative="")] = None,
    redeem: Annotated[bool, Parameter(negative="")] = False,
    order_id: str | None = None,
    payment_method: str | None = None,
    as_json: AsJson = False,
) -> int:
    """Start the checkout of one order and print its id and link.

    Pass the order as options or as JSON: {"userId": "…", "bookId": "…", "quantity": 1}. An order
    with an --order-id (orderId) is started once, however often you send it.

    Args:
        source: A file that holds the order as JSON, or - for standard input.
        user: The customer's id.
        book: The book's id, for an order of one title.
        quantity: How many copies of the book.
        item: BOOK=COPIES, once for each title of a cart; instead of --book and --quantity.
        redeem: Pay with the customer's points first.
        order_id: Your own id of the order. Without it the order gets the id of its run.
        payment_method: What to charge. Without it the customer's own payment method.
    """
    given = {
        "userId": user,
        "bookId": book,
        "quantity": quantity,
        "items": [_item(each) for each in item] if item else None,
        "redeem": redeem or None,
        "orderId": order_id,
        "paymentMethod": payment_method,
    }
    options = {name: value for name, value in given.items() if value is not None}
    if source is not None and options:
        raise CycloptsError(msg=f"Give the order as {source} or by options, not both.")
    order = order_from_json(_text_of(source)) if source else _order_from(options)
    id_, run, known = start_checkout(order)
    run_id = str(run.id) if run else known.run_id if known else None
    url = run_url(run_id) if run_id else ""
    state = run.state.name if run and run.state else None
    if known is None:
        said, hint = f"Order {id_}: its run is {state}.", f"checkout show {id_}: how it goes."
    else:
        said = f"Order {id_} is known already, and {known.status}; nothing was started."
        has_failed = known.status in FAILED
        again = f"checkout retry {id_}: a new attempt."
        hint = again if has_failed else f"checkout show {id_}: more."
    return print_answer(
        {
            "order_id": id_,
            "run_id": run_id,
            "run_url": url,
            "run_state": state,
            "known": known is not None,
            "status": known.status if known else None,
        },
        *(said, url, hint),
        as_json=as_json,
    )


def _item(text: str) -> dict[str, Any]:
    book, _, copies = text.rpartition("=")
    if not book:
        example = "B-1" if text.startswith("=") else text
        raise CycloptsError(msg=f"--item {text}: give BOOK=COPIES, for example --item {example}=1.")
    try:
        return {"bookId": book, "quantity": whole_number(copies)}
    except ValueError as error:
        raise CycloptsError(
            msg=f"--item {text}: {error}. Give BOOK=COPIES, for example --item {book}=1."
        ) from error


def _text_of(source: str) -> str:
    try:
        return decoded(sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes())
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else explain_encoding(error)
        raise UnreadableSource(
            f"{source} cannot be read: {why}. Name a file that holds the order as JSON, "
            "or - for standard input."
        ) from error


def order_from_json(text: str) -> CheckoutOrder:
    """Return the order that a text holds as JSON.

    Raises:
        RefusedOrder: it is none; each wrong field is named.
    """
    try:
        order = CheckoutOrder.model_validate_json(text)
        json.loads(text, object_pairs_hook=once_each)
    except ValidationError as error:
        raise RefusedOrder(_problems(problems(error), {})) from error
    except NamedTwice as error:
        raise RefusedOrder(_problems([Problem("", f"the order {error}")], {})) from error
    return order


def _order_from(options: dict[str, Any]) -> CheckoutOrder:
    try:
        return CheckoutOrder.model_validate(options)
    except ValidationError as error:
        raise RefusedOrder(_problems(problems(error), FLAGS)) from error


def _problems(found: Sequence[Problem], flags: dict[str, str]) -> str:
    lines = []
    for problem in found:
        flag = flags.get(problem.field.partition(".")[0])
        named = f"{problem.field} ({flag})" if flag else problem.field
        lines.append(str(Problem(named, problem.reason)))
    example = '{"userId": "…", "bookId": "…", "quantity": 1}'
    return "\n".join(
        [
            *lines,
            f"Nothing was started. An order is {example} or the same by options; "
            "checkout submit --help explains each.",
        ]
    )


def cancel(
    order: str,
    /,
    *,
    yes: Annotated[bool, Parameter(name=["--yes", "-y"], negative="")] = False,
    reason: str = "",
    as_json: AsJson = False,
) -> int:
    """Cancel an order without a courier and compensate it.

    It first shows what would be given back and asks you. Once a courier has accepted, the order
    cannot be cancelled. In a batch only this order ends.

    Args:
        order: The order's id.
        yes: Do not ask.
        reason: Why. It is kept with the order; no personal data.
    """
    try:
        found = read_order(order)
    except OrderNotFound:
        return _cancel_unrecorded(order, yes=yes, reason=reason, as_json=as_json)
    require_cancellable(found)
    undos = open_undos(order)
    if not as_json or not yes:
        _preview(found, undos, to_stderr=as_json)
    if not yes and not confirmed(f"Cancel order {order}?"):
        terminal(stderr=True).print("Nothing was changed. (--yes does it without the question.)")
        return 1
    with quiet_runs():
        ended = cancel_order(order, found.attempt, reason)
    message = str(explain(order, outcome_error(ended)))
    return print_answer(
        {
            "order_id": order,
            "attempt": ended.attempt,
            "status": ended.status,
            "error": ended.error,
            "message": message,
            "preview": [undo_as_data(undo) for undo in undos],
        },
        f"Order {order} is {ended.status}: {message}",
        as_json=as_json,
    )


def _cancel_unrecorded(order_id: str, *, yes: bool, reason: str, as_json: bool) -> int:
    """Cancel the scheduled runs of an order without a record."""
    with prefect_client() as client:
        if not any(is_to_come(run) for run in runs_of_order(client, order_id)):
            read_order(order_id)
    if not yes:
        terminal(stderr=True).print(
            f"Order {order_id} is not recorded yet, and has taken nothing. Cancelling it ends its "
            "run."
        )
        if not confirmed(f"Cancel order {order_id}?"):
            terminal(stderr=True).print("Nothing was changed. (--yes does it without asking.)")
            return 1
    run_ids = cancel_runs_to_come(order_id, reason)
    return print_answer(
        {"order_id": order_id, "status": None, "cancelled_runs": run_ids},
        f"Order {order_id} was not recorded yet; its run is cancelled.",
        *map(run_url, run_ids),
        as_json=as_json,
    )


def _preview(order: Order, undos: list[OpenUndo], *, to_stderr: bool) -> None:
    output = terminal(stderr=to_stderr)
    output.print(f"Order {order.id} (attempt {order.attempt}) is {order.status}.")
    if not undos:
        output.print("It has taken nothing, so cancelling it gives nothing back.")
        return
    output.print("Cancelling it gives back:")
    for undo in undos:
        output.print(f"  {UNDOS[undo.step].name:<16}  {undo.at_stake}")


def undo_as_data(undo: OpenUndo) -> dict[str, Any]:
    """Return an undo for programs, with the name of its task."""
    return {**asdict(undo), "undo": UNDOS[undo.step].name}


def retry(order: str, /, *, as_json: AsJson = False) -> int:
    """Begin a new attempt of a rejected or compensated order.

    It is charged under a new key.

    Its new run is started and its link printed. Called twice it is one attempt.

    Args:
        order: The order's id.
    """
    run = start_attempt(order)
    state = run.state.name if run.state else None
    url = run_url(str(run.id))
    return print_answer(
        {"order_id": order, "run_id": str(run.id), "run_url": url, "run_state": state},
        f"Order {order} is tried again; its run is {state}.",
        url,
        f"checkout show {order}: how it goes.",
        as_json=as_json,
    )
