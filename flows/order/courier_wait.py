"""The wait for a courier, a pause with a typed form.

The decision is what stands in the store's database; the resume is only the wake-up call. So a
decision that comes before the pause is found, one that comes with the resume is recorded first,
and the time-out gives way to a decision of the last moment.
"""

import logging
from copy import copy
from functools import partial
from typing import Any

from prefect import get_client
from prefect.input import RunInput
from pydantic import create_model

from flows.order.events import show_wait, tell_of_wait
from flows.runs.pause import Question, Remark, Wait, once_the_server_answers, pause_run
from orders.lookup import outcome_error, read_order
from orders.waits import expire_waits
from reports.timeline import Asked, ask
from store.errors import InvalidDecision, RunTakenAway
from store.messages import CourierAnswer
from store.models import Order, OrderStatus
from tasks.couriers import record_answer

logger = logging.getLogger("store.courier_wait")


class DispatchDecision(RunInput, CourierAnswer):
    """The form by which a person or dispatcher resumes a run."""


def await_courier(order_id: str, wait: Wait, started_over: bool) -> None:
    """Return when a courier has accepted the order.

    With ``suspend`` the process ends here, and the run starts over from its top when it is
    resumed; its answer is then found among the run's inputs.

    Args:
        order_id: The order, which waits or is decided already.
        wait: How to wait.
        started_over: Whether an earlier execution of the run may have waited already.

    Raises:
        NoCourierAvailable, CourierWaitExpired: it was decided, or time has decided, otherwise.
        OrderError: the order was ended in another way, for example cancelled.
        RunTakenAway: the run, or the order, is not this process's any more.
    """
    refused: Remark[CourierAnswer] | None = None
    order = read_order(order_id)
    if started_over and order.status == OrderStatus.WAITING:
        with get_client(sync_client=True) as client:
            refused = question(order).take_left(client)
        order = read_order(order_id)
    tell_of_wait(order)
    # A waiting order is looked at again each time: its decision may have come in the meantime.
    while (
        order.status == OrderStatus.WAITING
        and (order := read_order(order_id)).status == OrderStatus.WAITING
    ):
        if order.wait_until is None:
            raise AssertionError(f"order {order.id} waits without an end")
        shown = ask(order, refused.text if refused else "")
        asked = question(order)
        with show_wait(order, at_once=wait == "suspend"):
            given = pause_run(
                form_for(shown, refused), asked.prefix, order.wait_until, wait, shown.why
            )
        if given is not None:
            refused = asked.take(*given)
        else:
            # An answer that Prefect has accepted in time counts, though nobody has read it.
            refused = once_the_server_answers(asked.take_left, f"answers to order {order.id}")
            expire_waits([order_id])
    if order.status not in (OrderStatus.DISPATCHING, OrderStatus.DISPATCHED):
        if order.error is None:
            raise RunTakenAway(f"order {order_id} is {order.status}: another process is at it")
        raise outcome_error(order)


def form_for(asked: Asked, refused: Remark[CourierAnswer] | None) -> type[DispatchDecision]:
    """Return the form with the couriers as choices.

    A refused answer is filled in, by the schema alone: as a default of the model it would stand in
    for what the person leaves empty.
    """
    typed = refused.answer.model_dump() if refused else {}
    fields: dict[str, Any] = {}
    for name, described in DispatchDecision.model_fields.items():
        # The empty choice comes last: a program may send it, and nobody has to see it chosen.
        choices = [*asked.couriers, ""] if name == "courier" else None
        field = copy(described)
        field.json_schema_extra = partial(_fill_in, choices, typed.get(name))
        fields[name] = (field.annotation, field)
    form = create_model("DispatchDecision", __base__=DispatchDecision, **fields)
    return form.with_initial_data(description=asked.text)


def _fill_in(choices: list[str] | None, typed: str | None, schema: dict[str, Any]) -> None:
    schema.pop("default", None)
    if typed and (choices is None or typed in choices):
        schema["default"] = typed
    if choices is not None:
        schema["enum"] = choices


def question(order: Order) -> Question[CourierAnswer]:
    """Return what the order's run asks in the order's present attempt."""
    return Question(
        run_id=order.run_id or "",
        prefix=f"courier-{order.attempt}-",
        model=CourierAnswer,
        record=partial(_record, order.id),
    )


def _record(order_id: str, answer: CourierAnswer) -> str:
    """Record an answer and return the reason of a refusal, else empty."""
    try:
        record_answer(order_id, answer)
    except InvalidDecision as problem:
        logger.warning(
            "answer for order %s refused: %s", order_id, problem, extra={"order_id": order_id}
        )
        return str(problem)
    return ""
