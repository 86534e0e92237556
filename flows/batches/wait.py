"""The one pause in which a batch awaits all of its decisions.

The decisions are in the store's database; an answer to the form is only needed where a person
decides. The dispatcher ends the pause when the last order is decided, or when the couriers are
full and the batch has to hand over before they can take more.
"""

import logging
import time
from functools import partial

from prefect.input import RunInput

from flows.dispatch import GROUP
from flows.runs.pause import Question, Wait, once_the_server_answers, pause_run
from orders.batches import count_by_status, pages_of_run, touch_batch, waits_until
from orders.waits import expire_waits
from store.errors import InvalidDecision
from store.messages import GO_ON, BatchAnswer, CourierAnswer
from store.models import OrderStatus
from tasks.couriers import answer_waiting
from texts.forms import of_batch, why_batch_waits

logger = logging.getLogger("store.batch")

KEY = "batch-"
"""The beginning of the keys of a batch's pauses."""
PATIENCE_SECONDS = 1.0
"""How long the decisions of the dispatcher's last group are awaited without a pause, which takes
longer than they do."""
LOOK_SECONDS = 0.1


class BatchDecision(RunInput, BatchAnswer):
    """The form by which a person or dispatcher resumes a batch."""


def decided_soon(run_id: str) -> bool:
    """Wait without a pause and return whether all orders are decided.

    More orders than the dispatcher decides together are not waited for: their decisions come group
    by group, and would be finished in as many.
    """
    if count_by_status(run_id).get(OrderStatus.WAITING, 0) > GROUP:
        return False
    until = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < until:
        time.sleep(LOOK_SECONDS)
        if waits_until(run_id) is None:
            return True
    return False


def await_decisions(run_id: str, wait: Wait, chunk_size: int, remark: str = "") -> str:
    """Pause the batch's run once, until its resume or time-out.

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
    counts = count_by_status(run_id)
    form = BatchDecision.with_initial_data(description=of_batch(counts, until, remark))
    asked = question(run_id, chunk_size)
    why = why_batch_waits(counts, until, remark)
    given = pause_run(form, asked.prefix, until, wait, why)
    if given is not None:
        said = asked.take(*given)
    else:
        # An answer that Prefect has accepted in time counts, though nobody has read it.
        said = once_the_server_answers(asked.take_left, f"answers to batch {run_id}")
    touch_batch(run_id)
    for page in pages_of_run(run_id, [OrderStatus.WAITING], chunk_size):
        expire_waits(page)
    return said.text if said else ""


def question(run_id: str, chunk_size: int) -> Question[BatchAnswer]:
    """Return what the batch's run asks.

    What was answered while no process listened is to be taken before further orders of the batch
    begin to wait: no answer is about those.
    """
    return Question(
        run_id=run_id,
        prefix=KEY,
        model=BatchAnswer,
        record=partial(_record, run_id, chunk_size),
        counts_once=True,
    )


def _record(run_id: str, chunk_size: int, answer: BatchAnswer) -> str:
    """Record the answer's decision on the waiting orders and return the remark."""
    if answer.outcome == GO_ON:
        return ""
    for_each = CourierAnswer(**answer.model_dump())
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
