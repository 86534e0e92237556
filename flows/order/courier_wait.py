"""The wait for a courier, a pause with a typed form.

The decision is the row in the store's database; the resume is only the wake-up call. So a decision
made before the pause is found, one that comes with the resume is recorded first, and one made in
the last moment counts more than the time-out.
"""

import logging
from copy import copy
from functools import partial
from typing import Any

from prefect import get_client
from prefect.input import RunInput
from pydantic import create_model

from flows.order.events import emit_wait, show_wait
from flows.runs.pause import Question, Remark, Wait, once_the_server_answers, pause_run
from orders.lookup import outcome_error, read_order
from orders.waits import expire_waits
from reports.timeline import FormTexts, form_texts
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
        started_over: Whether an earlier execution of the run may have paused already; its answers
            are then read first.

    Raises:
        NoCourierAvailable: no courier takes the order.
        CourierWaitExpired: the wait ended without a decision.
        OrderError: the order was ended in another way, for example cancelled.
        RunTakenAway: another process goes on with the run or the order.
    """
    refused: Remark[CourierAnswer] | None = None
    order = read_order(order_id)
    if started_over and order.status == OrderStatus.WAITING:
        with get_client(sync_client=True) as client:
            refused = question(order).take_left(client)
        order = read_order(order_id)
    emit_wait(order)
    # Read again before each pause: the decision may have come since.
    while (order := read_order(order_id)).status == OrderStatus.WAITING:
        if order.wait_until is None:
            raise AssertionError(f"order {order.id} waits without an end")
        texts = form_texts(order, refused.text if refused else "")
        asked = question(order)
        with show_wait(order, at_once=wait == "suspend"):
            answer = pause_run(
                form_for(texts, refused), asked.prefix, order.wait_until, wait, texts.state_message
            )
        if answer is not None:
            refused = asked.take(*answer)
        else:
            # An answer that Prefect accepted in time counts, also if no process has read it.
            refused = once_the_server_answers(asked.take_left, f"answers to order {order.id}")
            expire_waits([order_id])
    if order.status not in (OrderStatus.DISPATCHING, OrderStatus.DISPATCHED):
        if order.error is None:
            raise RunTakenAway(f"order {order_id} is {order.status}: another process is at it")
        raise outcome_error(order)


def form_for(texts: FormTexts, refused: Remark[CourierAnswer] | None) -> type[DispatchDecision]:
    """Return the form with its couriers and a refused answer.

    It is filled in by the schema alone: a default of the model would stand in for what the person
    leaves empty.
    """
    typed = refused.answer.model_dump() if refused else {}
    fields: dict[str, Any] = {}
    for name, described in DispatchDecision.model_fields.items():
        # The empty choice comes last: a program may send it, and nobody has to see it chosen.
        choices = [*texts.couriers, ""] if name == "courier" else None
        field = copy(described)
        field.json_schema_extra = partial(_fill_in, choices, typed.get(name))
        fields[name] = (field.annotation, field)
    form = create_model("DispatchDecision", __base__=DispatchDecision, **fields)
    return form.with_initial_data(description=texts.description)


def _fill_in(choices: list[str] | None, typed: str | None, schema: dict[str, Any]) -> None:
    schema.pop("default", None)
    if typed and (choices is None or typed in choices):
        schema["default"] = typed
    if choices is not None:
        schema["enum"] = choices


def question(order: Order) -> Question[CourierAnswer]:
    """Return the question that the order's run asks in this attempt."""
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
