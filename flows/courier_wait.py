"""The wait for a courier: the run pauses, with a typed form, until the order is decided.

The decision is what stands in the store's database; the resume is only the wake-up call. So a
decision that comes before the pause is found, one that comes with the resume is recorded first,
and the time-out gives way to a decision of the last moment.
"""

import logging
import math
import time
from typing import Literal, NoReturn
from uuid import UUID, uuid4

from prefect import get_client, pause_flow_run, runtime, suspend_flow_run
from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import FlowPauseTimeout
from prefect.input import RunInput
from prefect.states import Running
from pydantic import ValidationError

from flows.order_events import tell_of_wait
from flows.work_pool import SERVER_AWAY, pool_is_closed
from store.database import release_connections
from store.errors import InvalidDecision, OrderCancelled, RunTakenAway
from store.messages import CourierAnswer
from store.models import Order, OrderStatus, utc_now
from store.settings import settings
from tasks.dispatch import expire_waits, record_answer
from tasks.orders import outcome_error, read_order
from tasks.reports import describe

logger = logging.getLogger("store.courier_wait")

Wait = Literal["pause", "suspend"]
"""``pause`` keeps the run's process while it waits and goes on within seconds of the answer;
``suspend`` keeps none, for waits of hours, and needs a deployment and a worker to go on."""
ANSWERS_AT_MOST = 50
"""Answers of one attempt that are looked at: a person's refused tries, and the one that counts."""


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
    """
    refused = ""
    if started_over:
        with get_client(sync_client=True) as client:
            refused = record_answers_left(client, read_order(order_id))
    tell_of_wait(read_order(order_id))
    while (order := read_order(order_id)).status == OrderStatus.WAITING:
        answer = _ask(order, refused, wait)
        if answer is None:
            expire_waits([order_id])
        else:
            refused = _record(order, answer)
    if order.status not in (OrderStatus.DISPATCHING, OrderStatus.DISPATCHED):
        if order.error is None:
            raise RunTakenAway(f"order {order_id} is {order.status}: another process is at it")
        raise outcome_error(order)


def record_answers_left(client: SyncPrefectClient, order: Order) -> str:
    """Record what was answered to the order's run while no process listened.

    Prefect accepts a resume for a run whose process is dead; the answer then lies among the run's
    inputs and nowhere else.

    Returns:
        Why the last answer was refused, if it was.
    """
    refused = ""
    if order.run_id is None or order.status != OrderStatus.WAITING:
        return refused
    for prefix in (f"paused-{_key(order)}", f"suspended-{_key(order)}"):
        inputs = client.filter_flow_run_input(
            UUID(order.run_id), key_prefix=prefix, limit=ANSWERS_AT_MOST, exclude_keys=set()
        )
        for answer in sorted(inputs, key=lambda given: given.created or utc_now()):
            if answer.key.endswith("-response"):
                refused = _record(order, CourierAnswer.model_validate_json(answer.value))
    return refused


def _key(order: Order) -> str:
    """Return the beginning of the keys of all pauses of the order's present attempt."""
    return f"courier-{order.attempt}-"


def _record(order: Order, answer: CourierAnswer) -> str:
    """Record an answer; return why it was refused, if it was."""
    try:
        record_answer(order.id, answer)
    except InvalidDecision as problem:
        logger.warning(
            "answer for order %s refused: %s", order.id, problem, extra={"order_id": order.id}
        )
        return str(problem)
    return ""


def _ask(order: Order, refused: str, wait: Wait) -> CourierAnswer | None:
    """Pause the run until it is resumed; return the answer, or none if there was not any.

    A run whose work pool is closed is suspended: it stays open to an answer without a process.
    """
    form = DispatchDecision.with_initial_data(description=describe(order, refused))
    # A key is used once: Prefect answers a known one with its old answer, unpaused.
    key = f"{_key(order)}{uuid4().hex[:12]}"
    timeout = _seconds_left(order)
    release_connections()
    try:
        if wait == "suspend" or pool_is_closed():
            return suspend_flow_run(wait_for_input=form, timeout=timeout, key=key)
        return pause_flow_run(
            wait_for_input=form,
            timeout=timeout,
            poll_interval=settings().pause_poll_seconds,
            key=key,
        )
    except RuntimeError as error:
        tell_why_not_paused(error)
    except FlowPauseTimeout:
        # The server may have failed the run already, but a decision of the last moment counts.
        try:
            with get_client(sync_client=True) as client:
                end_pause(client)
        except SERVER_AWAY as error:
            logger.warning(
                "Prefect's server is away as order %s's wait ends: %r",
                order.id,
                error,
                extra={"order_id": order.id},
            )
    except ValidationError:
        # The run was set going without an answer: its pool closes, or it was started over while
        # this process still lived. Whoever of two sees the decision first goes on, the other
        # finds it done.
        logger.warning(
            "the run of order %s was resumed without an answer; it waits on",
            order.id,
            extra={"order_id": order.id},
        )
    except SERVER_AWAY as error:
        logger.warning(
            "order %s waits on while Prefect's server is away: %r",
            order.id,
            error,
            extra={"order_id": order.id},
        )
        _sit_out_outage(order)
    return None


def tell_why_not_paused(error: RuntimeError) -> NoReturn:
    """Raise the reason why Prefect refused a pause: the run is not this process's any more."""
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(runtime.flow_run.id).state
    if state is not None and (state.is_cancelled() or state.is_cancelling()):
        raise OrderCancelled("the run was cancelled in Prefect") from error
    raise RunTakenAway(str(error)) from error


def _seconds_left(order: Order) -> int:
    if order.wait_until is None:
        raise AssertionError(f"order {order.id} waits without an end")
    return max(1, math.ceil((order.wait_until - utc_now()).total_seconds()))


def _sit_out_outage(order: Order) -> None:
    """Wait for Prefect's server, end the interrupted pause, record an answer given to it.

    The pause is ended before the answers are looked at: a resume that the server accepted in
    between has then left its answer, and a later one finds the next pause.
    """
    while _seconds_left(order) > 1:
        try:
            with get_client(sync_client=True) as client:
                end_pause(client)
                record_answers_left(client, order)
        except SERVER_AWAY as error:
            logger.warning("Prefect's server is still away: %r", error)
            time.sleep(settings().pause_poll_seconds)
        else:
            return


def end_pause(client: SyncPrefectClient) -> None:
    """Tell Prefect that this run goes on, where it still shows the pause, or failed it with it.

    A cancellation or a crash that was set meanwhile stays.
    """
    run_id = runtime.flow_run.id
    state = client.read_flow_run(run_id).state
    if state is not None and (state.is_paused() or state.is_failed()):
        client.set_flow_run_state(run_id, Running(), force=True)
