"""The wait for a courier: the run pauses, with a typed form, until the order is decided.

The decision is what stands in the store's database; the resume is only the wake-up call. So a
decision that comes before the pause is found, one that comes with the resume is recorded first,
and the time-out gives way to a decision of the last moment.
"""

import logging
import math
import time
from typing import cast
from uuid import uuid4

import httpx
from prefect import get_client, pause_flow_run, runtime
from prefect.exceptions import FlowPauseTimeout, PrefectHTTPStatusError
from prefect.input import RunInput, keyset_from_paused_state
from prefect.states import Paused, Running

from store.errors import InvalidDecision
from store.messages import CourierAnswer
from store.models import Order, OrderStatus, utc_now
from store.settings import settings
from tasks.dispatch import expire_waits, record_answer
from tasks.orders import describe, outcome_error, read_order

logger = logging.getLogger("store.courier_wait")

SERVER_AWAY = (httpx.TransportError, PrefectHTTPStatusError)
"""What Prefect's client raises, its own retries spent, while the server is away or starting."""


class DispatchDecision(RunInput, CourierAnswer):
    """The form with which a person, or the dispatcher, resumes a waiting run."""


def await_courier(order_id: str) -> None:
    """Return when a courier has accepted the order.

    Raises:
        NoCourierAvailable, CourierWaitExpired: it was decided, or time has decided, otherwise.
        OrderError: the order was ended in another way meanwhile, for example cancelled.
    """
    refused = ""
    while True:
        order = read_order(order_id)
        if order.status != OrderStatus.WAITING:
            break
        answer = _ask(order, refused)
        if answer is None:
            expire_waits([order_id])
            continue
        try:
            record_answer(order_id, answer)
        except InvalidDecision as problem:
            refused = str(problem)
            logger.warning("answer for order %s refused: %s", order_id, problem)
    if order.status not in (OrderStatus.DISPATCHING, OrderStatus.DISPATCHED):
        raise outcome_error(order)


def _ask(order: Order, refused: str) -> CourierAnswer | None:
    """Pause the run until it is resumed; return the answer, or none if there was not any."""
    # A key is used once: Prefect answers a known key with its old answer, without a pause.
    key = f"courier-{uuid4().hex[:12]}"
    form = DispatchDecision.with_initial_data(description=describe(order, refused))
    try:
        return pause_flow_run(
            wait_for_input=form,
            timeout=_seconds_left(order),
            poll_interval=settings().pause_poll_seconds,
            key=key,
        )
    except FlowPauseTimeout:
        # The server may have failed the run already, but a decision of the last moment counts.
        _end_pause()
        return None
    except SERVER_AWAY as error:
        logger.warning("order %s waits on while Prefect's server is away: %r", order.id, error)
        return _answer_after_outage(order, key)


def _seconds_left(order: Order) -> int:
    if order.wait_until is None:
        raise AssertionError(f"order {order.id} waits without an end")
    return max(1, math.ceil((order.wait_until - utc_now()).total_seconds()))


def _answer_after_outage(order: Order, key: str) -> CourierAnswer | None:
    """Wait for the server, end the interrupted pause, and return an answer given to it, if any.

    The pause is ended before the answer is looked for: a resume that the server accepted in
    between has then left its answer, and a later one finds the next pause.
    """
    while _seconds_left(order) > 1:
        try:
            _end_pause()
            keyset = keyset_from_paused_state(Paused(pause_key=key))
            return cast(CourierAnswer, DispatchDecision.load(keyset))
        except PrefectHTTPStatusError as error:
            if error.response.status_code == httpx.codes.NOT_FOUND:
                return None
            logger.warning("Prefect's server is not ready: %s", error)
        except httpx.TransportError as error:
            logger.warning("Prefect's server is still away: %r", error)
        time.sleep(settings().pause_poll_seconds)
    return None


def _end_pause() -> None:
    """Tell Prefect that this run goes on, where it still shows the pause, or failed it with it.

    A cancellation or a crash that was set meanwhile stays.
    """
    with get_client(sync_client=True) as client:
        run_id = runtime.flow_run.id
        state = client.read_flow_run(run_id).state
        if state is not None and (state.is_paused() or state.is_failed()):
            client.set_flow_run_state(run_id, Running(), force=True)
