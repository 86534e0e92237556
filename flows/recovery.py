"""The flow ``recover_orders``, the guarantee behind the hooks.

It goes through all unfinished orders and finishes those whose run has ended or has stopped moving,
forwards or backwards, from the saga log alone. Running it twice, or two at once, does no harm:
whatever it does is guarded by the order's own status.

It listens: each minute it makes a round, and sooner when a run of a checkout has ended badly.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import Any
from uuid import UUID

from prefect import flow, get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelled, Completed, Failed
from pydantic import BaseModel

from flows.batches.bulk import forget_results
from flows.compensation import compensate_tagged, fail_and_compensate
from flows.dispatch import wake_batch
from flows.order.events import form_url, report_orders
from flows.runs.answers_left import record_answers_left
from flows.runs.continuation import continue_run
from flows.runs.defects import narrow_down
from flows.runs.lost_runs import HOOK_TIME, have_ended_badly, lost_runs, start_again
from flows.runs.names import name_by_time
from flows.runs.run_states import deployments, is_cancelled_by_person, is_stranded
from flows.runs.searches import PAGE, all_runs, in_state, of_flows, runs_among
from flows.runs.stand_by import StandBy
from flows.runs.work_pool import SERVER_AWAY, pool_is_closed
from orders.batches import batches_among, waits_until
from orders.lookup import read_order
from orders.ownership import finished_orders_of_run
from orders.unfinished import UnfinishedOrder, unfinished_orders
from orders.waits import expire_waits
from reports.compensations import next_try_at
from reports.notices import remind
from store.database import release_connections
from store.errors import CheckoutFailed, DeploymentNotFound, OrderCancelled
from store.models import BEFORE_PIVOT, UNDOING, Order, OrderStatus, utc_now
from store.settings import settings
from tasks.dispatch import dispatch_order, send_again
from tasks.retries import is_transient

logger = logging.getLogger("store.recovery")

ROUND_SECONDS = 60.0
LOOK_SECONDS = 10.0
"""How soon it is seen that a run has ended badly, or that the work pool is paused."""
CANCELLING_TIME = timedelta(seconds=45)
"""How long a worker has to end a cancelled run's process, which has 30 s for that, and its hook."""


REFUSED = (409, 422)
"""With these Prefect's server refuses parameters that are not of the deployment's schema."""


class Move(StrEnum):
    """What recovery does with an order."""

    LEAVE = "leave"
    DISPATCH = "dispatch"
    COMPENSATE = "compensate"
    CANCEL = "cancel"
    EXPIRE = "expire"
    CONTINUE = "continue"
    SEND_AGAIN = "send again"
    REMIND = "remind"


class RecoveryReport(BaseModel):
    """The order ids that one round of recovery found and moved."""

    unfinished: int = 0
    moves: dict[str, list[str]] = {}
    runs_started_again: dict[str, str] = {}
    """Runs that no process had before they recorded an order, each with the reason."""
    failed: dict[str, str] = {}


@flow(
    name="recover-orders",
    flow_run_name=partial(name_by_time, "recovery"),
    retries=0,
    persist_result=False,
)
def recover_orders(limit: int = 500, listen_seconds: int = 0) -> RecoveryReport:
    """Finish or compensate orders that their own runs will not finish.

    It ends early when its work pool is paused, when its schedule is switched off, and when another
    run of its deployment is due. When it dies, a stand-by follows it (see `flows.runs.stand_by`).

    Args:
        limit: With how many orders at most each move is made in a round, so that none keeps
            another from its turn; the rest is for the next round.
        listen_seconds: How long to make rounds, a minute apart at most; 0 for one round.

    Returns:
        What the last round did, by order, and what failed; a failure is tried again in the next
        round.
    """
    report = RecoveryReport()
    deadline = time.monotonic() + listen_seconds
    with get_client(sync_client=True) as client:
        stand_by = StandBy(client)
        while stand_by.goes_on():
            ended_before = utc_now() - HOOK_TIME
            try:
                report = _round(client, limit)
            except Exception as error:
                away = is_transient(error) or isinstance(error, SERVER_AWAY)
                if not listen_seconds or not away:
                    raise
                logger.warning("the next round does what this one could not: %r", error)
            forget_results()
            if not _is_next_round(client, stand_by, ended_before, deadline):
                break
    return report


def _is_next_round(
    client: SyncPrefectClient, stand_by: StandBy, ended_before: datetime, deadline: float
) -> bool:
    """Wait, and return whether this run makes another round.

    Args:
        client: Prefect's client.
        stand_by: The looks of this run.
        ended_before: The last round has seen the runs that ended until then.
        deadline: When this run ends, by the monotonic clock.
    """
    next_round = time.monotonic() + ROUND_SECONDS
    release_connections()
    while (left := min(next_round, deadline) - time.monotonic()) > 0:
        time.sleep(min(left, LOOK_SECONDS))
        if pool_is_closed(client) or not stand_by.goes_on():
            return False
        if have_ended_badly(client, ended_before, utc_now() - HOOK_TIME):
            return True
    return time.monotonic() < deadline


def _round(client: SyncPrefectClient, limit: int) -> RecoveryReport:
    """Move unfinished orders and lost runs on, once."""
    report = RecoveryReport()
    moves: dict[Move, list[UnfinishedOrder]] = defaultdict(list)
    deployment_of = deployments(client)
    last = ""
    while page := unfinished_orders(after=last, limit=PAGE):
        last = page[-1].id
        report.unfinished += len(page)
        runs = _runs(client, {order.run_id for order in page})
        for order in page:
            run = runs.get(order.run_id or "")
            stranded = run is not None and is_stranded(run, utc_now(), deployment_of)
            move = next_move(order, run.state if run else None, utc_now(), stranded=stranded)
            if move != Move.LEAVE and len(moves[move]) < limit:
                moves[move].append(order)
    for move, orders in moves.items():
        # The rest is for the next round, which is when the pool is resumed.
        if pool_is_closed(client):
            break
        _make_move(move, orders, client, report)
    _start_lost_runs(client, report)
    moved = {order.run_id for orders in moves.values() for order in orders}
    close_runs(client, moved | _paused_batches(client))
    if report.moves or report.runs_started_again:
        logger.warning("recovered: %s", report.model_dump())
    return report


def next_move(
    order: UnfinishedOrder, run: State | None, now: datetime, *, stranded: bool = False
) -> Move:
    """Return what is to be done with an order.

    Args:
        order: The order.
        run: The state of its run; none if Prefect has no such run.
        now: The present moment.
        stranded: Whether its run is scheduled where no worker takes it.
    """
    moved_at = max(order.moved_at, run.timestamp) if run is not None else order.moved_at
    idle = now - moved_at
    ended = run is None or run.is_final()
    stalled = idle > timedelta(seconds=settings().stalled_seconds)
    match OrderStatus(order.status):
        case OrderStatus.COMPENSATION_FAILED:
            due = now > next_try_at(order.undo_tries, order.moved_at)
            return Move.COMPENSATE if due else Move.LEAVE
        case OrderStatus.COMPENSATING:
            return Move.COMPENSATE if stalled or (ended and idle > HOOK_TIME) else Move.LEAVE
        case OrderStatus.DISPATCHING:
            return Move.DISPATCH if stalled or (ended and idle > HOOK_TIME) else Move.LEAVE
    # A run that lives ends the wait by itself, within two of its polls.
    own_time = HOOK_TIME + 2 * timedelta(seconds=settings().pause_poll_seconds)
    if order.wait_until is not None and now > order.wait_until + own_time:
        return Move.EXPIRE
    if run is not None and is_cancelled_by_person(run):
        own_time = CANCELLING_TIME if run.is_cancelling() else HOOK_TIME
        return Move.CANCEL if idle > own_time else Move.LEAVE
    if stranded:
        return Move.CONTINUE
    if ended:
        return Move.CONTINUE if idle > HOOK_TIME else Move.LEAVE
    if run is not None and (run.is_running() or run.is_pending()) and stalled:
        return Move.CONTINUE
    if order.status == OrderStatus.WAITING and order.asked_at is not None:
        if now - order.asked_at > timedelta(seconds=settings().ask_again_seconds):
            return Move.SEND_AGAIN
        left = order.wait_until - now if order.wait_until is not None else None
        if left is not None and left < timedelta(seconds=settings().reminder_seconds):
            return Move.LEAVE if order.reminded else Move.REMIND
    return Move.LEAVE


def _make_move(
    move: Move, orders: Sequence[UnfinishedOrder], client: SyncPrefectClient, report: RecoveryReport
) -> None:
    """Make a move for its orders and report its failure without raising."""
    acts: dict[Move, Callable[[list[UnfinishedOrder]], object]] = {
        Move.DISPATCH: lambda part: report_orders(dispatch_order(_ids(part))),
        Move.COMPENSATE: lambda part: compensate_tagged(_ids(part)),
        Move.CANCEL: lambda part: _cancel(client, part),
        Move.EXPIRE: lambda part: _expire(client, part),
        Move.SEND_AGAIN: lambda part: send_again(_ids(part)),
        Move.CONTINUE: lambda part: _continue(client, part),
        Move.REMIND: lambda part: remind({id_: form_url(read_order(id_)) for id_ in _ids(part)}),
    }

    def fail(part: list[UnfinishedOrder], error: Exception) -> None:
        logger.error("move “%s” failed", move, exc_info=error, extra={"order_ids": _ids(part)})
        report.failed[move] = f"{type(error).__name__}: {error}"

    narrow_down(acts[move], orders, fail)
    report.moves[move] = _ids(orders)


def _ids(orders: Sequence[UnfinishedOrder]) -> list[str]:
    return [order.id for order in orders]


def _attempts(orders: Sequence[UnfinishedOrder]) -> dict[str, int]:
    return {order.id: order.attempt for order in orders}


def _cancel(client: SyncPrefectClient, orders: Sequence[UnfinishedOrder]) -> None:
    """Cancel the orders of cancelled runs unless a courier has accepted."""
    _record_answers_left(client, orders)
    fail_and_compensate(_attempts(orders), OrderCancelled("the run was cancelled in Prefect"))


def _expire(client: SyncPrefectClient, orders: Sequence[UnfinishedOrder]) -> None:
    """End expired waits after recording the answers that came in time."""
    _record_answers_left(client, orders)
    order_ids = _ids(orders)
    expire_waits(order_ids)
    to_undo = [id_ for id_ in order_ids if read_order(id_).status in UNDOING]
    if to_undo:
        compensate_tagged(to_undo)


def _continue(client: SyncPrefectClient, orders: Sequence[UnfinishedOrder]) -> None:
    """Restart the orders' runs after recording their unread answers."""
    _record_answers_left(client, orders)
    seen: dict[str, int] = defaultdict(int)
    for order in orders:
        if order.run_id is not None:
            seen[order.run_id] = max(seen[order.run_id], order.continuations)
    before_pivot = [order for order in orders if read_order(order.id).status in BEFORE_PIVOT]
    exhausted = [
        order
        for run_id, its in _by_run(before_pivot).items()
        if not continue_run(client, run_id, _ids(its), seen[run_id])
        for order in its
    ]
    if exhausted:
        fail_and_compensate(
            _attempts(exhausted),
            CheckoutFailed(f"its run ended {settings().max_continuations + 1} times unfinished"),
        )


def _record_answers_left(client: SyncPrefectClient, orders: Sequence[UnfinishedOrder]) -> None:
    for run_id, its in _by_run(orders).items():
        record_answers_left(client, run_id, _ids(its))


def _by_run(orders: Sequence[UnfinishedOrder]) -> dict[str, list[UnfinishedOrder]]:
    """Return the orders that a run owns, by their run."""
    by_run: dict[str, list[UnfinishedOrder]] = defaultdict(list)
    for order in orders:
        if order.run_id is not None:
            by_run[order.run_id].append(order)
    return by_run


def _start_lost_runs(client: SyncPrefectClient, report: RecoveryReport) -> None:
    """Restart the lost runs and report failures for the next round."""
    for run, why in lost_runs(client, utc_now()):
        if pool_is_closed():
            return
        try:
            start_again(client, run, why)
        except (ObjectNotFound, DeploymentNotFound) as error:
            logger.error("run %s cannot be started again: %s", run.name, error)
            report.failed[str(run.id)] = f"{why}; its deployment is not there"
        except PrefectHTTPStatusError as error:
            # One that is refused for its own sake keeps no other from its start.
            if error.response.status_code not in REFUSED:
                raise
            logger.error("run %s cannot be started again: %r", run.name, error)
            report.failed[str(run.id)] = f"{why}; its deployment refuses its parameters"
        else:
            report.runs_started_again[str(run.id)] = why


def _paused_batches(client: SyncPrefectClient) -> set[str | None]:
    """Return the batches' runs that are paused.

    One may have paused when its last waiting order had just been cancelled or handed over.
    """
    paused = all_runs(
        client, flow_filter=of_flows("batch-checkout"), flow_run_filter=in_state(StateType.PAUSED)
    )
    return {str(run.id) for run in paused}


def close_runs(client: SyncPrefectClient, run_ids: set[str | None]) -> None:
    """Set the final state of dead runs whose orders recovery has finished.

    A batch's run that has nothing left to wait for is woken, so that it ends by itself.
    """
    batches = batches_among([id_ for id_ in run_ids if id_ is not None])
    for run_id, run in _runs(client, run_ids).items():
        state = run.state
        if state is None:
            continue
        if run_id in batches:
            # It has its report to make; one that has died is marked as crashed without heartbeats.
            if state.is_paused() and waits_until(run_id) is None:
                wake_batch(client, run_id)
            continue
        orders = finished_orders_of_run(run_id)
        all_well = all(order.status == OrderStatus.DISPATCHED for order in orders)
        # An ending that its order has survived is none that a person should have to look into.
        ended = state.is_completed() or (state.is_final() and not all_well)
        if ended or not orders or _has_started_since(state, orders):
            continue
        message = "; ".join(f"order {o.id} is {o.status}" for o in orders[:3])
        client.set_flow_run_state(UUID(run_id), _ending(state, message, all_well), force=True)


def _has_started_since(state: State[Any], orders: Sequence[Order]) -> bool:
    """Return whether the run was started again after its orders ended.

    Retry in the UI does that.

    It ends by itself. A start that no process begins is found among the lost runs.
    """
    is_to_run = state.is_scheduled() or state.is_pending() or state.is_running()
    return is_to_run and state.timestamp > max(order.updated_at for order in orders)


def _ending(state: State[Any], message: str, all_well: bool) -> State[Any]:
    """Return the final state for a run whose process is dead."""
    if is_cancelled_by_person(state):
        if all_well:
            return Completed(message=f"a courier had accepted before the cancellation: {message}")
        return Cancelled(message=f"cancelled in Prefect: {message}")
    ended = f"finished without its process: {message}"
    return Completed(message=ended) if all_well else Failed(message=ended)


def _runs(client: SyncPrefectClient, run_ids: set[str | None]) -> dict[str, FlowRun]:
    """Return the runs that Prefect still has, by their ids."""
    known = [id_ for id_ in run_ids if id_ is not None]
    return {str(run.id): run for run in runs_among(client, known)}


if __name__ == "__main__":
    recover_orders()
