"""The listening of a batch, which carries orders as they come.

Notifications of the database wake it, and it looks every two seconds without one. What it does for
a few orders is the same as for a chunk of thousands, without Prefect's task runs. It asks Prefect
in a thread of its own, so that orders go on while Prefect's server is away.
"""

import logging
import time
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from datetime import datetime, timedelta
from itertools import islice
from uuid import UUID

from prefect import get_client
from prefect.exceptions import ObjectNotFound

from flows.batches.bulk import without_task_run
from flows.batches.chunk import DECIDED, check_out, finish
from flows.batches.report import Progress
from flows.dispatch import wake_batch
from flows.order.events import emit_statuses
from flows.runs.answers_left import record_answers_left
from flows.runs.escalation import escalate_all
from flows.runs.work_pool import SERVER_AWAY, pool_is_closed, trying_once
from orders.batches import pages_of_run, touch_batch, waits_until
from orders.intake import claim_orders
from orders.listening import (
    expired_waits,
    listen_until,
    stopped_batches,
    take_over_waiting,
    unanswered,
)
from orders.lookup import statuses_of
from orders.waits import expire_waits
from store.models import FAILED, utc_now
from store.wakeups import ORDERS_TO_CARRY, SLOW_POLL_SECONDS, Listener

logger = logging.getLogger("store.batch")

GROUP_SECONDS = 0.6
"""What comes in within this time is carried together: half of what an order's step costs is the
same for one as for fifty."""
LOOK_AROUND_SECONDS = 5.0
"""How often the heartbeat is recorded, and expired waits, earlier batches and the work pool are
looked at."""
LATE_SECONDS = 20.0
"""A look at Prefect that takes longer means that its server hangs; it waits for a minute."""
HAND_OVER = timedelta(seconds=60)
"""How long a batch that has stopped goes on while its orders wait: the next one takes them over."""


def listen(
    run_id: str,
    until: datetime,
    chunk_size: int,
    progress: Progress,
    seconds: defaultdict[str, float],
) -> None:
    """Carry and finish orders as they come until the listening ends.

    After that it claims no more. It finishes what is decided while the next batch that listens
    takes over what still waits; what none has taken over in a minute is left to the caller. It
    ends early when the work pool is paused.

    Args:
        run_id: The batch's run.
        until: When it stops claiming.
        chunk_size: How many orders are carried together at most.
        progress: Where it shows how far it is.
        seconds: Where the seconds of each step are added.
    """
    tried: set[str] = set()
    next_look = 0.0
    with (
        trying_once(),
        closing(Listener(ORDERS_TO_CARRY)) as listener,
        ThreadPoolExecutor(1) as thread,
    ):
        prefect = _AtPrefect(run_id, progress, thread)
        while utc_now() < until + HAND_OVER:
            began = time.monotonic()
            if began >= next_look:
                next_look = began + LOOK_AROUND_SECONDS
                _look_around(run_id, chunk_size)
                prefect.look(takes_over=utc_now() < until)
            if prefect.pool_is_closed:
                # Before the caller's last look: from now on decisions wake a run that is paused.
                listen_until(run_id, utc_now())
                return
            if prefect.is_away and utc_now() >= until:
                # No next batch can start.
                until = utc_now() + HAND_OVER
                listen_until(run_id, until)
            is_over = utc_now() >= until
            if is_over and waits_until(run_id) is None:
                return
            carried = [] if is_over else claim_orders(run_id, chunk_size)
            if carried:
                _add(seconds, check_out(carried, without_task_run))
            decided = _decided(run_id, chunk_size, tried)
            if decided:
                _add(seconds, finish(decided, without_task_run))
                tried.update(decided)
            _tell_of_failures([*carried, *decided])
            if len(carried) < chunk_size and len(decided) < chunk_size:
                listener.wait(SLOW_POLL_SECONDS)
                time.sleep(max(0.0, began + GROUP_SECONDS - time.monotonic()))


def _look_around(run_id: str, chunk_size: int) -> None:
    """Record the heartbeat and expire waits."""
    touch_batch(run_id)
    if expired := expired_waits(run_id, chunk_size):
        expire_waits(expired)


def _tell_of_failures(order_ids: list[str]) -> None:
    """Emit the events of those orders that have ended without a dispatch.

    A dispatched one has its notice, and an event for each would cost more than the order.
    """
    statuses = statuses_of(order_ids) if order_ids else {}
    emit_statuses([id_ for id_, status in statuses.items() if status in FAILED])


def _decided(run_id: str, limit: int, tried: set[str]) -> list[str]:
    """Return decided orders that were not tried yet.

    Recovery finishes those that were.
    """
    pages = pages_of_run(run_id, DECIDED, limit)
    return list(islice((id_ for page in pages for id_ in page if id_ not in tried), limit))


class _AtPrefect:
    """A listening batch's looks at Prefect, one at a time.

    A look that takes long, since the server hangs, delays the next look and no order.
    """

    def __init__(self, run_id: str, progress: Progress, thread: ThreadPoolExecutor) -> None:
        self._run_id = run_id
        self._progress = progress
        self._thread = thread
        self._looking: Future[None] | None = None
        self._taken_from: set[str] = set()
        self._looks_since = 0.0
        self._closed: bool | None = False

    @property
    def pool_is_closed(self) -> bool:
        """Return whether the last look found the work pool paused."""
        return bool(self._closed)

    @property
    def is_away(self) -> bool:
        """Return whether Prefect's server did not answer, or does not in time."""
        is_late = time.monotonic() - self._looks_since > LATE_SECONDS
        hangs = self._looking is not None and not self._looking.done() and is_late
        return hangs or self._closed is None

    def look(self, *, takes_over: bool) -> None:
        """Begin a look, unless one is under way.

        Args:
            takes_over: Whether waiting orders of batches that have stopped are taken over.

        Raises:
            Exception: the look before has failed.
        """
        if self._looking is not None:
            if not self._looking.done():
                return
            self._looking.result()
        self._looks_since = time.monotonic()
        self._looking = self._thread.submit(copy_context().run, self._look, takes_over)

    def _look(self, takes_over: bool) -> None:
        self._closed = pool_is_closed()
        if takes_over:
            self._take_over()
        self._taken_from = {id_ for id_ in self._taken_from if not _has_ended(id_)}
        escalate_all(unanswered(self._run_id))
        self._progress.show()

    def _take_over(self) -> None:
        for from_run in stopped_batches(self._run_id):
            # Woken first: from then on Prefect accepts no further answer to its form.
            _has_ended(from_run)
            try:
                with get_client(sync_client=True) as client:
                    record_answers_left(client, from_run, [])
            except SERVER_AWAY as error:
                logger.warning("the orders of batch %s stay with it for now: %r", from_run, error)
                continue
            if take_over_waiting(from_run, self._run_id):
                self._taken_from.add(from_run)


def _has_ended(run_id: str) -> bool:
    """Wake a batch whose orders were taken and return whether it ends.

    One that was about to pause is looked at again.
    """
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(run_id)).state
            if state is not None and state.is_paused():
                return wake_batch(client, run_id)
            return state is None or not (state.is_running() or state.is_pending())
    except ObjectNotFound:
        return True
    except SERVER_AWAY as error:
        logger.warning("batch %s cannot be woken yet: %r", run_id, error)
        return False


def _add(seconds: defaultdict[str, float], taken: dict[str, float]) -> None:
    for step, spent in taken.items():
        seconds[step] += spent
