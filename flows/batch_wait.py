"""A batch's wait: one pause for all of its orders, until each of them is decided.

The decisions are in the store's database; an answer to the form is only needed where a person
decides. The dispatcher ends the pause when the last order is decided, or when the couriers are
full and the batch has to hand over before they can take more.
"""

import logging
from collections.abc import Mapping
from functools import partial

from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.input import RunInput

from flows.pause import Wait, answers_left, forget_answer, once_the_server_answers, pause_run
from store.errors import InvalidDecision
from store.messages import GO_ON, BatchAnswer, CourierAnswer
from store.models import OrderStatus, utc_now
from tasks.batches import count_by_status, pages_of_run, touch_batch, waits_until
from tasks.dispatch import answer_waiting, expire_waits

logger = logging.getLogger("store.batch")

CHUNK_SIZE = 2_500
"""Orders of a batch that go through a step, or are decided, together."""
KEY = "batch-"
"""The beginning of the keys of a batch's pauses."""


class BatchDecision(RunInput, BatchAnswer):
    """The form with which a person, or the dispatcher, resumes a batch that waits."""


def await_decisions(run_id: str, wait: Wait, chunk_size: int, remark: str = "") -> str:
    """Pause the batch's run once; return when it is resumed, or when its wait has ended.

    Args:
        run_id: The batch's run.
        wait: How to wait.
        chunk_size: How many orders are decided together, where an answer is about all of them.
        remark: What is to be said of the answer before, if anything is.

    Returns:
        What is to be said of the answer: why it was refused, or what it did not decide; empty if
        it did all that it says.

    Raises:
        OrderCancelled: the run was cancelled.
        RunTakenAway: the run is not this process's any more.
    """
    until = waits_until(run_id)
    if until is None:
        return ""
    form = BatchDecision.with_initial_data(description=_describe(run_id, remark))
    answers = pause_run(form, KEY, until, wait)
    if answers:
        with get_client(sync_client=True) as client:
            remark = _record_each(client, run_id, answers, chunk_size)
    elif utc_now() >= until:
        # An answer that Prefect has accepted in time counts, though nobody has read it.
        left = partial(record_answers_left, run_id=run_id, chunk_size=chunk_size)
        remark = once_the_server_answers(left, f"answers to batch {run_id}")
    touch_batch(run_id)
    for page in pages_of_run(run_id, [OrderStatus.WAITING], chunk_size):
        expire_waits(page)
    return remark


def record_answers_left(client: SyncPrefectClient, run_id: str, chunk_size: int) -> str:
    """Record what was answered to the batch's run while no process listened.

    To be asked before further orders of the batch begin to wait: no answer is about those.

    Returns:
        What is to be said of the last answer, as for :func:`await_decisions`.
    """
    return _record_each(client, run_id, answers_left(client, run_id, KEY, BatchAnswer), chunk_size)


def _record_each(
    client: SyncPrefectClient, run_id: str, answers: Mapping[str, BatchAnswer], chunk_size: int
) -> str:
    """Record answers, each once: it decides on all orders that wait, so it is none for later."""
    remark = ""
    for key, answer in answers.items():
        remark = _record(run_id, answer, chunk_size)
        forget_answer(client, run_id, key)
    return remark


def _record(run_id: str, answer: BatchAnswer, chunk_size: int) -> str:
    """Decide on the orders that wait, if the answer says so; return what is to be said of it."""
    if answer.outcome == GO_ON:
        return ""
    for_each = CourierAnswer(
        outcome=answer.outcome,
        courier=answer.courier,
        reason=answer.reason,
        answered_by=answer.answered_by,
    )
    asked, decided = 0, 0
    try:
        for page in pages_of_run(run_id, [OrderStatus.WAITING], chunk_size):
            asked += len(page)
            decided += len(answer_waiting(page, for_each))
    except InvalidDecision as problem:
        logger.warning("the answer to the batch was refused: %s", problem)
        return f"**Your answer was refused.** {problem}"
    if decided < asked:
        return (
            f"**{asked - decided} of {asked} orders wait on:** courier {answer.courier} has no "
            "room for them. Choose another one, or wait for the couriers."
        )
    return ""


def _describe(run_id: str, remark: str) -> str:
    """Return, in Markdown, what a person is asked to decide about the batch."""
    counts = count_by_status(run_id)
    until = waits_until(run_id)
    return "\n".join(
        [
            *([remark, ""] if remark else []),
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
