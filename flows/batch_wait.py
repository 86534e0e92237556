"""A batch's wait: one pause for all of its orders, until each of them is decided.

The decisions are in the store's database; an answer to the form is only needed where a person
decides. The dispatcher ends the pause when the last order is decided, or when the couriers are
full and the batch has to hand over before they can take more.
"""

import logging
import math
import time
from uuid import UUID, uuid4

from prefect import get_client, pause_flow_run, suspend_flow_run
from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import FlowPauseTimeout
from prefect.input import RunInput
from pydantic import ValidationError

from flows.courier_wait import ANSWERS_AT_MOST, Wait, end_pause, tell_why_not_paused
from flows.work_pool import SERVER_AWAY, pool_is_closed
from store.database import release_connections
from store.errors import InvalidDecision
from store.messages import GO_ON, BatchAnswer, CourierAnswer
from store.models import OrderStatus, utc_now
from store.settings import settings
from tasks.batches import count_by_status, pages_of_run, touch_batch, waits_until
from tasks.dispatch import answer_waiting, expire_waits

logger = logging.getLogger("store.batch")

KEY = "batch-"
"""The beginning of the keys of a batch's pauses."""


class BatchDecision(RunInput, BatchAnswer):
    """The form with which a person, or the dispatcher, resumes a batch that waits."""


def await_decisions(run_id: str, wait: Wait, chunk_size: int, refused: str = "") -> str:
    """Pause the batch's run once; return when it is resumed, or when its wait has ended.

    Args:
        run_id: The batch's run, of which an order waits.
        wait: How to wait.
        chunk_size: How many orders are decided together, where an answer is about all of them.
        refused: Why the last answer was refused, if it was.

    Returns:
        Why the answer was refused; empty if it was not.
    """
    until = waits_until(run_id)
    if until is None:
        return ""
    form = BatchDecision.with_initial_data(description=_describe(run_id, refused))
    # A key is used once: Prefect answers a known one with its old answer, unpaused.
    key = f"{KEY}{uuid4().hex[:12]}"
    timeout = max(1, math.ceil((until - utc_now()).total_seconds()))
    answer: BatchAnswer | None = None
    release_connections()
    try:
        if wait == "suspend" or pool_is_closed():
            answer = suspend_flow_run(wait_for_input=form, timeout=timeout, key=key)
        else:
            answer = pause_flow_run(
                wait_for_input=form,
                timeout=timeout,
                poll_interval=settings().pause_poll_seconds,
                key=key,
            )
    except RuntimeError as error:
        tell_why_not_paused(error)
    except FlowPauseTimeout:
        try:
            with get_client(sync_client=True) as client:
                end_pause(client)
        except SERVER_AWAY as error:
            logger.warning("Prefect's server is away as the batch's wait ends: %r", error)
    except ValidationError:
        logger.warning("the batch's run was resumed without an answer; it looks and waits on")
    except SERVER_AWAY as error:
        logger.warning("the batch waits on while Prefect's server is away: %r", error)
        refused = _sit_out_outage(run_id, chunk_size)
    else:
        refused = "" if answer is None else _record(run_id, answer, chunk_size)
    touch_batch(run_id)
    for page in pages_of_run(run_id, [OrderStatus.WAITING], chunk_size):
        expire_waits(page)
    return refused


def record_answers_left(client: SyncPrefectClient, run_id: str, chunk_size: int) -> str:
    """Record what was answered to the batch's run while no process listened.

    Returns:
        Why the last answer was refused, if it was.
    """
    refused = ""
    for prefix in (f"paused-{KEY}", f"suspended-{KEY}"):
        inputs = client.filter_flow_run_input(
            UUID(run_id), key_prefix=prefix, limit=ANSWERS_AT_MOST, exclude_keys=set()
        )
        for answer in sorted(inputs, key=lambda given: given.created or utc_now()):
            if answer.key.endswith("-response"):
                given = BatchAnswer.model_validate_json(answer.value)
                refused = _record(run_id, given, chunk_size)
    return refused


def _record(run_id: str, answer: BatchAnswer, chunk_size: int) -> str:
    """Decide on the orders that wait, if the answer says so; return why it was refused."""
    if answer.outcome == GO_ON:
        return ""
    for_each = CourierAnswer(
        outcome=answer.outcome,
        courier=answer.courier,
        reason=answer.reason,
        answered_by=answer.answered_by,
    )
    try:
        for page in pages_of_run(run_id, [OrderStatus.WAITING], chunk_size):
            answer_waiting(page, for_each)
    except InvalidDecision as problem:
        logger.warning("the answer to the batch was refused: %s", problem)
        return str(problem)
    return ""


def _sit_out_outage(run_id: str, chunk_size: int) -> str:
    """Wait for Prefect's server, end the interrupted pause, record an answer given to it."""
    while (until := waits_until(run_id)) is not None and until > utc_now():
        try:
            with get_client(sync_client=True) as client:
                end_pause(client)
                return record_answers_left(client, run_id, chunk_size)
        except SERVER_AWAY as error:
            logger.warning("Prefect's server is still away: %r", error)
            time.sleep(settings().pause_poll_seconds)
    return ""


def _describe(run_id: str, refused: str) -> str:
    """Return, in Markdown, what a person is asked to decide about the batch."""
    counts = count_by_status(run_id)
    until = waits_until(run_id)
    return "\n".join(
        [
            *([f"**Your answer was refused.** {refused}", ""] if refused else []),
            f"{counts.get(OrderStatus.WAITING, 0)} orders of this batch wait for a courier, at "
            f"most until {until:%Y-%m-%d %H:%M} UTC."
            if until
            else "",
            "",
            "| status | orders |",
            "|---|---:|",
            *(f"| {status} | {count} |" for status, count in sorted(counts.items())),
            "",
            "The couriers are sought by `dispatch_orders`, and the batch goes on by itself. Your "
            "answer is about all orders that still wait; those that are decided stay so.",
        ]
    )
