"""Restarts of crashed runs, since a crash does not fail an order.

The same run goes on under its own id where Prefect still has it and a worker can take it;
otherwise a new run of the checkout's deployment takes the order over. Each order is continued a
bounded number of times, so that one which kills its process every time is compensated in the end.
"""

import logging
import threading
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.responses import OrchestrationResult, SetStateStatus
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow
from prefect.states import AwaitingRetry, Crashed

from flows.runs.run_states import deployments, mark_replaced, worker_can_take
from orders.batches import batches_among, change_batch_owner, read_batch
from orders.lookup import read_order
from orders.ownership import change_owner, continuations_of_run, count_continuation, orders_of_run
from store.errors import DeploymentNotFound
from store.models import Order
from store.settings import settings

CONTINUATION = "store:continuation"
"""Tag of a run that takes over a crashed run's order. It never begins a new attempt."""

CONTINUED = "a crash is not a failure of the order; it goes on"
"""Message of the state with which the store starts a run again, unlike a person's Retry."""

logger = logging.getLogger("store.continuation")


def continue_crashed_run(
    flow: Flow[..., Any],  # noqa: ARG001  (the name by which Prefect gives it)
    flow_run: FlowRun,
    state: State[Any],  # noqa: ARG001
) -> None:
    """Restart a run that received SIGTERM, as Prefect's hook.

    A run whose process was killed is left to `recover_orders`: its worker runs this hook in a
    thread of another process and reports the crash once more afterwards, which would end the run
    that was just started again.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    orders = orders_of_run(str(flow_run.id))
    if orders:
        with get_client(sync_client=True) as client:
            continue_run(client, str(flow_run.id), list(orders))


def who_asked(run_id: str) -> str | None:
    """Return the state by which a person started this execution.

    It is the state's id. None is returned for a run that the store started or restarted by itself,
    and for one that was resumed. An execution is started by the last state in which the run was
    scheduled. The process may be slow to come: others may have been started since.
    """
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(UUID(run_id))
        states = client.read_flow_run_states(UUID(run_id))
    started_by = (_scheduled(states) or states)[-1]
    if started_by.message == CONTINUED:
        # The store restarts a run for the person whose execution never began. Of two processes
        # that may have come of it, the first one begins the attempt.
        since = since_asked(states)
        restarted = since.index(started_by)
        began_before = any(s.is_running() for s in since[:restarted])
        if began_before or sum(s.is_running() for s in since[restarted:]) > 1:
            return None
        started_by = since[0]
    is_first = not any(s.is_running() for s in states[: states.index(started_by)])
    takes_over = is_first and CONTINUATION in run.tags
    return None if takes_over or started_by.name == "Resuming" else str(started_by.id)


def since_asked(states: Sequence[State[Any]]) -> Sequence[State[Any]]:
    """Return a run's states since its last start by a person."""
    by_people = [s for s in _scheduled(states) if s.message != CONTINUED]
    # A run that was called, not scheduled, was asked for by its first state.
    return states[states.index(by_people[-1]) :] if by_people else states


def _scheduled(states: Sequence[State[Any]]) -> list[State[Any]]:
    return [s for s in states if s.is_scheduled() and s.name != "AwaitingConcurrencySlot"]


def continue_run(
    client: SyncPrefectClient, run_id: str, order_ids: list[str], seen: int | None = None
) -> bool:
    """Restart the run of these orders, up to the limit of continuations.

    Args:
        client: Prefect's client.
        run_id: The run that owns the orders and is dead.
        order_ids: The orders, unfinished.
        seen: The highest number of continuations among them when the run was found dead; left
            out by the dying run itself.

    Returns:
        Whether the orders go on, by this call or another one's; if not, they have had their
        number of continuations.
    """
    continuations = continuations_of_run(run_id) if seen is None else seen
    if continuations >= settings().max_continuations:
        return False
    # Whoever counts it first does it: a hook and any number of recoveries may be here at once.
    if not count_continuation(run_id, continuations):
        return True
    try:
        if restart(client, client.read_flow_run(UUID(run_id))):
            return True
    except ObjectNotFound:
        logger.warning("Prefect has no run %s any more", run_id)
    if batches_among([run_id]):
        _start_batch_anew(client, run_id, continuations + 1)
    else:
        for id_ in order_ids:
            _start_anew(client, read_order(id_), continuations + 1)
    return True


def restart(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Reschedule the run and return whether a worker will execute it."""
    if run.state is None or not worker_can_take(run, deployments(client)):
        return False
    if not run.state.is_final():
        client.set_flow_run_state(run.id, Crashed(message="the run's process is gone"))
    answer: OrchestrationResult[Any] = client.set_flow_run_state(
        run.id, AwaitingRetry(message=CONTINUED)
    )
    logger.warning("run %s goes on after a crash: %s", run.name, answer.status.value)
    return answer.status == SetStateStatus.ACCEPT


def _start_anew(client: SyncPrefectClient, order: Order, continuation: int) -> None:
    """Hand the order over to a new run, once for each crash.

    The idempotency key makes repeated calls return the same run.
    """
    run = new_run(
        settings().checkout_deployment,
        {**parameters_of(order), **({"wait": order.wait} if order.wait else {})},
        f"{order.id}:{order.attempt}:{continuation}",
        tags=[CONTINUATION],
    )
    change_owner(order.id, from_run=order.run_id, to_run=str(run.id))
    if order.run_id is not None:
        mark_replaced(client, order.run_id, str(run.id))
    logger.warning(
        "order %s goes on in a new run, %s", order.id, run.id, extra={"order_id": order.id}
    )


def _start_batch_anew(client: SyncPrefectClient, run_id: str, continuation: int) -> None:
    """Hand a batch's unfinished orders over to one new run."""
    try:
        parameters = client.read_flow_run(UUID(run_id)).parameters
    except ObjectNotFound:
        wait = read_batch(run_id).wait
        parameters = {"wait": wait} if wait else {}
    run = new_run(
        settings().batch_deployment,
        # The batch owns orders, so its file was read to the end; it may not be there any more.
        {name: value for name, value in parameters.items() if name != "source"},
        f"{run_id}:{continuation}",
        tags=[CONTINUATION],
    )
    change_batch_owner(from_run=run_id, to_run=str(run.id))
    mark_replaced(client, run_id, str(run.id))
    logger.warning("the batch of run %s goes on in a new run, %s", run_id, run.id)


def parameters_of(order: Order) -> dict[str, Any]:
    """Return the parameters for a run of a recorded order.

    They are those with which the order was accepted.
    """
    given = {name: value for name, value in order.request.items() if value is not None}
    return {"order": {**given, "orderId": order.id}}


def new_run(
    deployment: str,
    parameters: dict[str, Any],
    idempotency_key: str | None,
    *,
    name: str | None = None,
    tags: Sequence[str] = (),
) -> FlowRun:
    """Create a run of a deployment, or return the idempotency key's run.

    Raises:
        DeploymentNotFound: there is no such deployment.
    """
    try:
        run = run_deployment(
            deployment,
            parameters=parameters,
            flow_run_name=name,
            idempotency_key=idempotency_key,
            tags=tags,
            timeout=0,
            as_subflow=False,
        )
    except ObjectNotFound as error:
        raise DeploymentNotFound(
            f"Prefect has no deployment {deployment}; `prefect deployment ls` shows those there "
            "are, `python -m deployments.apply` makes them. STORE_CHECKOUT_DEPLOYMENT and "
            "STORE_BATCH_DEPLOYMENT name other ones."
        ) from error
    if not isinstance(run, FlowRun):
        raise TypeError(f"run_deployment gave {run!r}")
    return run
