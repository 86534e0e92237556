"""Draining of a work pool before its workers are stopped.

No waiting order is refunded for it.

The pool is paused (Prefect keeps that and shows it in its UI), so that its workers
get no run. The runs under way end what is quick; those that wait are woken without an answer, find
their pool paused, and suspend: they keep no process, stay open to an answer, and go on with any
worker once the pool is resumed. Draining or resuming it again does no harm.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.filters import FlowRunFilterExpectedStartTime
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import OrchestrationResult
from prefect.exceptions import ObjectNotFound
from prefect.states import Running
from pydantic import BaseModel

from flows.actions.switches import listen_again
from flows.recovery import recover_orders
from flows.runs.answers_left import record_answers_left
from flows.runs.searches import all_runs, in_state, in_state_named, of_pool
from orders.lookup import count_orders
from orders.ownership import orders_of_run, owners_among
from orders.waits import first_wait_end, prolong_waits
from store.errors import WorkPoolNotFound
from store.models import OrderStatus, utc_now
from store.settings import settings

logger = logging.getLogger("store.drain")

PAUSED, SUSPENDED, RESUMING, CRASHED = "Paused", "Suspended", "Resuming", "Crashed"
WITH_A_PROCESS = [StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING]
"""States of a run that a worker has taken; a suspended one is of Paused's type, but has none."""
LOOK_SECONDS = 1.0
QUIET_SECONDS = 15.0
"""So long nothing may run: a worker takes runs up to 10 seconds before they are due."""
RECOVERY_SECONDS = 60.0
"""No worker executes `recover_orders` now, so the drain does, as often as its schedule."""
LAST_CHANCE = timedelta(minutes=10)
"""What is left of each order's wait when the pool is resumed: couriers are sought again first."""


class RunUnderWay(BaseModel):
    """A run that a worker has taken and that has not ended."""

    id: UUID
    name: str
    flow: str
    state: str


class DrainReport(BaseModel):
    """What a drain has come to."""

    pool: str
    drained: bool
    under_way: list[RunUnderWay]
    giving_back: int
    """Orders whose compensation is under way."""
    suspended: int
    """Runs that wait for an answer, without a process."""
    scheduled: int
    """Runs that are due and wait for the pool to be open."""
    first_wait_ends: datetime | None
    """When the first order's wait for a courier ends."""


class ReopenReport(BaseModel):
    """What opening a pool has changed."""

    pool: str
    was_closed: bool
    prolonged: int
    """Orders whose wait got more time, since no courier was sought while the pool was paused."""


def pool_of_checkouts(client: SyncPrefectClient) -> str:
    """Return the work pool that runs the checkouts.

    Raises:
        WorkPoolNotFound: Prefect has no such deployment, or it has no work pool.
    """
    name = settings().checkout_deployment
    try:
        pool = client.read_deployment_by_name(name).work_pool_name
    except ObjectNotFound:
        pool = None
    if pool is None:
        raise WorkPoolNotFound(
            f"Prefect has no deployment {name} with a work pool; name the pool, or set "
            "STORE_CHECKOUT_DEPLOYMENT"
        )
    return pool


def drain(
    client: SyncPrefectClient, pool: str, timeout_seconds: float, report: Callable[[str], None]
) -> DrainReport:
    """Pause the pool and wait until its runs have no process left.

    Args:
        client: Prefect's client.
        pool: The work pool.
        timeout_seconds: How long to wait at most; the pool stays paused in any case.
        report: Called with what is under way, whenever that has changed.

    Returns:
        Whether the pool is drained, what is under way if it is not, and what waits for it.

    Raises:
        WorkPoolNotFound: there is no such pool.
    """
    with _known(pool):
        client.update_work_pool(pool, WorkPoolUpdate(is_paused=True))
    began = last_busy = last_recovery = time.monotonic()
    reported = ""
    while True:
        under_way = runs_under_way(client, pool)
        wake(client, [run.id for run in under_way if run.state == PAUSED])
        giving_back = count_orders(OrderStatus.COMPENSATING)
        now = time.monotonic()
        if under_way or giving_back:
            last_busy = now
        if (what := _what_is_under_way(under_way, giving_back)) != reported:
            report(what)
            reported = what
        drained = now - last_busy >= QUIET_SECONDS
        if drained or now - began >= timeout_seconds:
            return DrainReport(
                pool=pool,
                drained=drained,
                under_way=under_way,
                giving_back=giving_back,
                suspended=_count_suspended(client, pool),
                scheduled=_count_due(client, pool),
                first_wait_ends=first_wait_end(),
            )
        if now - last_recovery >= RECOVERY_SECONDS:
            recover_orders()
            last_recovery = now
        time.sleep(LOOK_SECONDS)


def reopen(client: SyncPrefectClient, pool: str) -> ReopenReport:
    """Resume the pool if it is paused.

    What was answered to suspended runs is recorded first, so that no dispatcher decides otherwise
    before they come to read it. While the pool was paused no courier was sought, which is no
    customer's fault: an order whose wait has ended since, or is about to, waits a little
    longer.

    Returns:
        Whether the pool was paused, and how many orders got more time.

    Raises:
        WorkPoolNotFound: there is no such pool.
    """
    with _known(pool):
        was_closed = client.read_work_pool(pool).is_paused
    prolonged = 0
    if was_closed:
        _record_answers(client, pool)
        prolonged = prolong_waits(utc_now() + LAST_CHANCE)
    with _known(pool):
        client.update_work_pool(pool, WorkPoolUpdate(is_paused=False))
    if was_closed:
        # Its schedule may come minutes later, and the orders of a front end wait for it.
        listen_again(client, pool)
    return ReopenReport(pool=pool, was_closed=was_closed, prolonged=prolonged)


def runs_under_way(client: SyncPrefectClient, pool: str) -> list[RunUnderWay]:
    """Return the pool's runs between their claim and their end or suspension."""
    with_process = in_state(*WITH_A_PROCESS, not_named=[SUSPENDED])
    found = list(all_runs(client, work_pool_filter=of_pool(pool), flow_run_filter=with_process))
    flows = {id_: client.read_flow(id_).name for id_ in {run.flow_id for run in found}}
    return [
        RunUnderWay(
            id=run.id, name=run.name, flow=flows[run.flow_id], state=run.state_name or "unknown"
        )
        for run in found
    ]


def wake(client: SyncPrefectClient, run_ids: Sequence[UUID]) -> None:
    """Resume paused runs without an answer so that they check their pool."""
    for id_ in run_ids:
        answer: OrchestrationResult[Any] = client.set_flow_run_state(
            id_, Running(message="woken: its work pool is paused")
        )
        logger.info("run %s is woken: %s", id_, answer.status.value)


def _record_answers(client: SyncPrefectClient, pool: str) -> None:
    """Record what was answered to runs that have not started again yet.

    A run that was answered may have been marked as crashed since, by a person or by the automation
    that watches its heartbeats.
    """
    not_started = in_state_named(RESUMING, CRASHED)
    runs = all_runs(client, work_pool_filter=of_pool(pool), flow_run_filter=not_started)
    for run_id, has_orders in owners_among([str(run.id) for run in runs]).items():
        if has_orders:
            record_answers_left(client, run_id, orders_of_run(run_id))


def _what_is_under_way(under_way: Sequence[RunUnderWay], giving_back: int) -> str:
    counts = Counter((run.flow, run.state) for run in under_way)
    parts = [f"{count} {flow} {state}" for (flow, state), count in sorted(counts.items())]
    if giving_back:
        parts.append(f"{giving_back} orders that are being compensated")
    return ", ".join(parts) or "nothing"


def _count_suspended(client: SyncPrefectClient, pool: str) -> int:
    return client.count_flow_runs(
        flow_run_filter=in_state_named(SUSPENDED), work_pool_filter=of_pool(pool)
    )


def _count_due(client: SyncPrefectClient, pool: str) -> int:
    return client.count_flow_runs(
        flow_run_filter=in_state(
            StateType.SCHEDULED,
            expected_start_time=FlowRunFilterExpectedStartTime(before_=utc_now()),
        ),
        work_pool_filter=of_pool(pool),
    )


@contextmanager
def _known(pool: str) -> Iterator[None]:
    """Raise WorkPoolNotFound for Prefect's ObjectNotFound.

    For a call in which nothing else can be missing.
    """
    try:
        yield
    except ObjectNotFound as error:
        raise WorkPoolNotFound(f"Prefect has no work pool {pool}") from error
