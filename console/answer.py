"""Orders that wait for a courier, answered in the terminal."""

from typing import Annotated

from cyclopts import CycloptsError, Parameter
from pydantic import ValidationError

from flows.actions.by_hand import answer_orders, ask_for_form
from flows.order.events import run_url
from store.messages import ASSIGNED, NO_COURIER, CourierAnswer
from store.wrong_input import problems
from terminal.output import AsJson, print_answer, quiet_runs

FLAGS = {"courier": "--courier", "reason": "--reason", "answered_by": "--by"}


def answer(
    order: str,
    /,
    *orders: str,
    courier: str | None = None,
    none: Annotated[bool, Parameter(negative="")] = False,
    reason: str = "",
    by: str,
    as_json: AsJson = False,
) -> int:
    """Answer waiting orders with a courier, or with none.

    It does the same as the form in the Prefect UI, also for orders of a batch. The first answer
    counts. If one of several orders no longer waits, it answers none.

    Args:
        order: The order's id.
        orders: Further orders with the same answer.
        courier: The id of the courier who takes all of them.
        none: No courier takes them; each is compensated.
        reason: Why no courier takes them, for --none. It is kept with the orders; no personal data.
        by: Who you are: your name or initials.
    """
    ids = list(dict.fromkeys([order, *orders]))
    given = _answer(courier, none=none, reason=reason.strip(), by=by.strip())
    with quiet_runs():
        ended = answer_orders(ids, given)
    what = "No courier takes" if none else f"Courier {courier} takes"
    return print_answer(
        [{"order_id": each.id, "status": each.status} for each in ended],
        *(f"{what} order {each.id}; it is {each.status}." for each in ended),
        as_json=as_json,
    )


def form(order: str, /, *, as_json: AsJson = False) -> int:
    """Start a run with a form for a batch's waiting order.

    The order keeps its completed steps.

    Args:
        order: The order's id.
    """
    with quiet_runs():
        run = ask_for_form(order)
    url = run_url(str(run.id))
    return print_answer(
        {"order_id": order, "run_id": str(run.id), "run_url": url},
        f"Order {order} waits in a run of its own; its form is there in seconds.",
        url or str(run.id),
        as_json=as_json,
    )


def _answer(courier: str | None, *, none: bool, reason: str, by: str) -> CourierAnswer:
    if (courier is None) != none:
        raise CycloptsError(msg="Give either --courier ID, or --none with --reason.")
    if none and not reason:
        raise CycloptsError(
            msg="--reason is missing; it is what the customer's order is left with."
        )
    if reason and not none:
        raise CycloptsError(msg="--reason is for --none; leave it out with --courier.")
    if not by:
        raise CycloptsError(msg="--by is empty; it is what others find later.")
    try:
        return CourierAnswer(
            outcome=NO_COURIER if none else ASSIGNED,
            courier=courier or "",
            reason=reason,
            answered_by=by,
        )
    except ValidationError as error:
        wrong = "; ".join(
            f"{FLAGS.get(problem.field, problem.field)}: {problem.reason}"
            for problem in problems(error)
        )
        raise CycloptsError(msg=wrong) from error
