"""The flow ``dispatch_orders``, the worker of the order queue.

For each message it finds a courier, records the decision, and only then resumes the order's run.
Prefect refuses a resume that comes before the pause and accepts one for a run whose process is
dead, so a message stays in hand, and its run is resumed again, until the order has moved on in the
store's own database.
"""

import logging
import time
from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from heapq import nsmallest
from typing import Any
from uuid import UUID

from prefect import flow, get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import ObjectNotFound
from pydantic import BaseModel, ValidationError

from flows.batches.bulk import as_task_run, few_collections, forget_results
from flows.runs.names import name_by_time
from flows.runs.run_states import cancelled_among
from flows.runs.stand_by import StandBy
from flows.runs.work_pool import SERVER_AWAY, pool_is_closed, trying_once
from orders.decisions import OrderState, decisions_of, runs_of_open_orders
from store.messages import GO_ON, BatchAnswer, OrderMessage
from store.partners import order_queue
from store.queue import OrderQueue, ReceivedMessage
from store.settings import settings
from store.wrong_input import for_a_log
from tasks.couriers import DISPATCHER, find_couriers
from tasks.retries import is_transient

logger = logging.getLogger("store.dispatch")

GROUP = 2_000
"""Messages that are decided in one transaction."""
IN_HAND_AT_MOST = 5_000
"""More than these stay in the queue: what is in hand must be looked after before it comes again."""
LONGEST_POLL_SECONDS = 20.0
"""The longest that SQS lets a receive wait."""
RESUMERS = 8
"""Runs that are resumed at the same time: each is one request that waits on Prefect's server."""
FIRST_LOOK_SECONDS = 0.5
LAST_LOOK_SECONDS = 10.0
"""A run that was not resumed is resumed again after a delay that doubles between these."""
LOOK_AT_POOL_SECONDS = 2.0
"""Messages may come many times a second, and a look at the work pool is a call of the server."""


class DispatchReport(BaseModel):
    """What one run of the dispatcher did."""

    received: int = 0
    decided: int = 0
    resumed: int = 0
    deleted: int = 0
    dead_letters: int = 0
    released: int = 0


@dataclass
class InHand:
    """A message that is received and not deleted yet."""

    received: ReceivedMessage
    message: OrderMessage
    look_at: float
    delay_seconds: float = FIRST_LOOK_SECONDS


@flow(
    name="dispatch-orders",
    flow_run_name=partial(name_by_time, "dispatcher"),
    retries=0,
    persist_result=False,
)
def dispatch_orders(listen_seconds: int = 285) -> DispatchReport:
    """Find couriers for the orders in the queue and resume their runs.

    It ends early when its work pool is paused, when its schedule is switched off, and when another
    run of its deployment is due. When it dies, a stand-by follows it (see `flows.runs.stand_by`).

    Args:
        listen_seconds: How long to listen for messages. A little less than the schedule's
            interval, so that one run follows the other without thousands of short runs.

    Returns:
        How many messages were received, decided, resumed, deleted, put aside, released.
    """
    report = DispatchReport()
    in_hand: dict[str, InHand] = {}
    next_pool_look = 0.0
    deadline = time.monotonic() + listen_seconds
    with (
        few_collections(),
        # What Prefect does not answer is asked again soon, and the database decides alone.
        trying_once(),
        closing(order_queue()) as queue,
        get_client(sync_client=True) as client,
        ThreadPoolExecutor(RESUMERS) as resumers,
    ):
        stand_by = StandBy(client)
        while (now := time.monotonic()) < deadline and stand_by.goes_on():
            next_look = min((held.look_at for held in in_hand.values()), default=deadline)
            patience_seconds = min(max(next_look - now, 0.0), deadline - now, LONGEST_POLL_SECONDS)
            try:
                if len(in_hand) < IN_HAND_AT_MOST:
                    take_in(queue, in_hand, patience_seconds, report)
                else:
                    time.sleep(patience_seconds)
                look_after(queue, in_hand, client, resumers, report)
            except Exception as error:
                # What is in hand stays in hand, or comes again after its visibility timeout.
                if not is_transient(error):
                    raise
                logger.warning("the queue or the database is away: %s", error)
                time.sleep(FIRST_LOOK_SECONDS)
            if now >= next_pool_look:
                if pool_is_closed(client):
                    break
                next_pool_look = now + LOOK_AT_POOL_SECONDS
            forget_results()
        # Whatever is still in hand is released at once, for the next dispatcher.
        queue.hand_back([held.received for held in in_hand.values()])
    report.released = len(in_hand)
    return report


def take_in(
    queue: OrderQueue, in_hand: dict[str, InHand], patience_seconds: float, report: DispatchReport
) -> None:
    """Receive messages and move unreadable ones to the dead letters."""
    for received in queue.receive(limit=GROUP, wait_seconds=patience_seconds):
        report.received += 1
        try:
            message = OrderMessage.model_validate_json(received.body)
        except ValidationError as error:
            logger.error("message %s cannot be read: %s", received.id, for_a_log(error))
            queue.dead_letter(received, f"cannot be read: {error.error_count()} errors")
            report.dead_letters += 1
            continue
        in_hand[received.id] = InHand(received, message, look_at=time.monotonic())


def look_after(
    queue: OrderQueue,
    in_hand: dict[str, InHand],
    client: SyncPrefectClient,
    resumers: ThreadPoolExecutor,
    report: DispatchReport,
) -> None:
    """Decide open orders, resume decided ones and delete done messages."""
    now = time.monotonic()
    due = nsmallest(
        GROUP,
        (held for held in in_hand.values() if held.look_at <= now),
        key=lambda held: held.look_at,
    )
    if not due:
        return
    open_ = runs_of_open_orders([held.message for held in due])
    if open_:
        cancelled = _cancelled(client, set(filter(None, open_.values())))
        to_decide = [message for message, run_id in open_.items() if run_id not in cancelled]
        if to_decide:
            report.decided += len(as_task_run(find_couriers, to_decide))
    states = decisions_of([held.message for held in due])
    to_resume: dict[str | None, OrderState] = {}
    done = []
    for held in due:
        state = states[held.message]
        if not state.exists:
            logger.error(
                "message %s is about order %s, which does not exist",
                held.received.id,
                held.message.order_id,
                extra={"order_id": held.message.order_id},
            )
            queue.dead_letter(held.received, "the order does not exist")
            report.dead_letters += 1
            del in_hand[held.received.id]
        elif state.is_done or has_done_its_work(state, to_resume):
            done.append(held.received)
            del in_hand[held.received.id]
        else:
            if needs_resume(state):
                to_resume[state.run_id] = state
            held.look_at = now + held.delay_seconds
            held.delay_seconds = min(held.delay_seconds * 2, LAST_LOOK_SECONDS)
    resuming = [
        resumers.submit(copy_context().run, resume, client, each) for each in to_resume.values()
    ]
    report.resumed += sum(each.result() for each in resuming)
    queue.delete(done)
    report.deleted += len(done)
    queue.hide(
        [held.received for held in due if held.received.id in in_hand],
        seconds=settings().visibility_timeout_seconds,
    )


def has_done_its_work(state: OrderState, to_resume: Container[str | None]) -> bool:
    """Return whether the message of a batch's decided order may be deleted.

    The batch's run is resumed for its last decision, and one that listens for none. One message
    keeps the resume in mind; ``to_resume`` are the runs that have such a message.
    """
    batch = state.batch
    if batch is None or state.answer is None:
        return False
    return batch.waits or batch.listens or state.run_id in to_resume


def needs_resume(state: OrderState) -> bool:
    """Return whether the order's run must be resumed."""
    batch = state.batch
    if batch is not None and batch.listens:
        return False
    # An open order found no room. Its batch hands over what is decided, which makes room again.
    finds_no_room = state.is_open and batch is not None and batch.holds
    return state.answer is not None or finds_no_room


def _cancelled(client: SyncPrefectClient, run_ids: set[str]) -> set[str]:
    """Return the runs that a person has cancelled.

    No courier is asked for their orders any more.

    The runs' hooks or recovery cancel the orders. While Prefect's server is away no run can be
    cancelled, and the database decides alone.
    """
    try:
        return cancelled_among(client, list(run_ids))
    except SERVER_AWAY as error:
        logger.warning("it is not known which runs are cancelled: %r", error)
        return set()


def resume(client: SyncPrefectClient, state: OrderState) -> bool:
    """Resume a decided order's run and return whether Prefect accepted it.

    A batch is only told to go on: it reads all its decisions from the database.

    Prefect answers ABORT when the run is not paused, or not yet, and when another was faster.
    None of this loses the decision, which the run finds in the database.
    """
    if state.run_id is None:
        return False
    if state.batch is not None:
        return wake_batch(client, state.run_id)
    # Without the courier, who is in the database: the form may be older than the courier, and
    # Prefect refuses an answer that is not among its choices.
    return state.answer is not None and _resume(
        client, state.run_id, state.answer.model_copy(update={"courier": ""}).model_dump()
    )


def wake_batch(client: SyncPrefectClient, run_id: str) -> bool:
    """Resume a batch's run and return whether Prefect accepted it."""
    answer = BatchAnswer(outcome=GO_ON, answered_by=DISPATCHER)
    return _resume(client, run_id, answer.model_dump())


def _resume(client: SyncPrefectClient, run_id: str, given: dict[str, Any]) -> bool:
    try:
        answer = client.resume_flow_run(UUID(run_id), run_input=given)
    except (ObjectNotFound, *SERVER_AWAY) as error:
        logger.warning("run %s could not be resumed: %r", run_id, error)
        return False
    return answer.status.value == "ACCEPT"
