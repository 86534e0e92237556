"""The wait for a courier: the run pauses, with a typed form, until the order is decided.

The decision is what stands in the store's database; the resume is only the wake-up call. So a
decision that comes before the pause is found, one that comes with the resume is recorded first,
and the time-out gives way to a decision of the last moment.
"""

import logging
from collections.abc import Mapping
from functools import partial

from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.input import RunInput

from flows.order_events import tell_of_wait
from flows.pause import (
    Wait,
    answers_left,
    forget_answer,
    once_the_server_answers,
    pause_run,
)
from store.errors import InvalidDecision, RunTakenAway
from store.messages import CourierAnswer
from store.models import Order, OrderStatus
from tasks.dispatch import expire_waits, record_answer
from tasks.orders import outcome_error, read_order
from tasks.reports import describe

logger = logging.getLogger("store.courier_wait")


class DispatchDecision(RunInput, CourierAnswer):
    """The form with which a person, or the dispatcher, resumes a waiting run."""


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
        OrderError: the order was ended in another way meanwhile, for example cancelled.
        RunTakenAway: the run, or the order, is not this process's any more.
    """
    refused = ""
    if started_over:
        with get_client(sync_client=True) as client:
            refused = record_answers_left(client, read_order(order_id))
    order = read_order(order_id)
    tell_of_wait(order)
    # A waiting order is looked at again each time: its decision may have come in the meantime.
    while (
        order.status == OrderStatus.WAITING
        and (order := read_order(order_id)).status == OrderStatus.WAITING
    ):
        if order.wait_until is None:
            raise AssertionError(f"order {order.id} waits without an end")
        form = DispatchDecision.with_initial_data(description=describe(order, refused))
        answers = pause_run(form, _key(order), order.wait_until, wait)
        if answers:
            refused = _record_each(order, answers)
        else:
            # An answer that Prefect has accepted in time counts, though nobody has read it.
            left = partial(record_answers_left, order=order)
            refused = once_the_server_answers(left, f"answers to order {order.id}")
            expire_waits([order_id])
    if order.status not in (OrderStatus.DISPATCHING, OrderStatus.DISPATCHED):
        if order.error is None:
            raise RunTakenAway(f"order {order_id} is {order.status}: another process is at it")
        raise outcome_error(order)


def record_answers_left(client: SyncPrefectClient, order: Order) -> str:
    """Record what was answered to the order's run while no process listened.

    Returns:
        Why the last answer was refused, if it was.
    """
    if order.run_id is None or order.status != OrderStatus.WAITING:
        return ""
    return _record_each(order, answers_left(client, order.run_id, _key(order), CourierAnswer))


def _key(order: Order) -> str:
    """Return the beginning of the keys of all pauses of the order's present attempt."""
    return f"courier-{order.attempt}-"


def _record_each(order: Order, answers: Mapping[str, CourierAnswer]) -> str:
    """Record answers to the order; return why the last one was refused, if it was.

    A refused answer is forgotten: the person was told, and has been asked again.
    """
    refused = ""
    for key, answer in answers.items():
        refused = ""
        try:
            record_answer(order.id, answer)
        except InvalidDecision as problem:
            logger.warning(
                "answer for order %s refused: %s", order.id, problem, extra={"order_id": order.id}
            )
            refused = str(problem)
            with get_client(sync_client=True) as client:
                forget_answer(client, order.run_id or "", key)
    return refused
