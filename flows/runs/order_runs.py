"""Finding, starting once and ending the Prefect runs of an order.

Prefect is asked and told here, never believed: whatever an act means for an order is decided in the
store's own database before.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterName,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_SSL_CERT_FILE,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)
from prefect.states import Cancelling

from flows.order.events import run_url
from flows.recovery import close_runs
from flows.runs.continuation import new_run, parameters_of
from flows.runs.lost_runs import order_id_of, start_again, why_lost
from flows.runs.run_states import deployments
from flows.runs.searches import PAGE, of_flows
from flows.runs.unbegun import CHECKOUT, is_unbegun, unbegun_runs, why_unbegun
from flows.runs.work_pool import INTERNAL_ERROR, SERVER_AWAY, UNTRUSTED
from orders.acceptance import known_order, require_same
from orders.batches import batches_among
from orders.lookup import read_order
from store.errors import NoPrefectServer, OrderNotFailed
from store.messages import CheckoutOrder
from store.models import FAILED, Order, OrderStatus, utc_now
from store.settings import settings

FLOWS = (CHECKOUT, "batch-checkout", "compensate")
ANSWER_SECONDS = 10.0
"""A frozen server accepts connections. With Prefect's own 60 s a command would seem to hang."""
CALL_SECONDS = 20.0
"""A busy server may take longer than its first answer did."""


@contextmanager
def prefect_client(*, patient: bool = False) -> Iterator[SyncPrefectClient]:
    """Yield Prefect's client after the server has read from its database.

    Args:
        patient: Whether calls outlast an outage, as those of a run. Otherwise each call inside is
            tried twice, since a person waits for it.

    Raises:
        NoPrefectServer: no server is named, or it does not answer; nothing was asked of it.
    """
    address = PREFECT_API_URL.value()
    if not address:
        raise NoPrefectServer(
            "PREFECT_API_URL names no Prefect server. For the system of `make up`: . .local/env"
        )
    quick = {PREFECT_CLIENT_MAX_RETRIES: 1, PREFECT_API_REQUEST_TIMEOUT: CALL_SECONDS}
    with temporary_settings({} if patient else quick):
        try:
            opened = get_client(sync_client=True)
        except OSError as error:
            # Each client reads it, that of an http address as well.
            raise NoPrefectServer(
                f"PREFECT_API_SSL_CERT_FILE: {PREFECT_API_SSL_CERT_FILE.value()} cannot be read as "
                f"certificates: {error.strerror}"
            ) from error
        with opened as client:
            with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 1}):
                try:
                    client.request("GET", "/hello", timeout=ANSWER_SECONDS)
                    # The greeting needs no database of the server.
                    client.read_flows(limit=1)
                except SERVER_AWAY as error:
                    raise NoPrefectServer(
                        f"Prefect's server at {address} does not answer {_why_away(error)}"
                    ) from error
            yield client


def _why_away(error: Exception) -> str:
    """Return why a server does not answer, with the remedy."""
    if isinstance(error, PrefectHTTPStatusError):
        code = error.response.status_code
        if code in (401, 403):
            remedy = "Does PREFECT_API_AUTH_STRING have its PREFECT_SERVER_API_AUTH_STRING?"
        elif code >= INTERNAL_ERROR:
            remedy = "It runs: is its own PostgreSQL there? Its log has the reason."
        else:
            remedy = "Does PREFECT_API_URL name it, with /api at its end?"
        return f"as it should (HTTP {code}). {remedy}"
    if UNTRUSTED in str(error):
        return f"({error!r}). Does PREFECT_API_SSL_CERT_FILE name a file with its authority?"
    return f"({error!r}). Is it running, and does PREFECT_API_URL name it?"


@dataclass(frozen=True, slots=True)
class OrderRun:
    """A present or past run of an order, with its states.

    ``lost`` is why no process will execute it, as long as it owns no order. ``unbegun`` is why it
    has not begun. Each is empty otherwise.
    """

    run: FlowRun
    flow: str
    states: list[State[Any]]
    lost: str
    unbegun: str

    @property
    def id(self) -> str:
        """Return the run's id."""
        return str(self.run.id)

    @property
    def url(self) -> str:
        """Return its address in the Prefect UI."""
        return run_url(self.id)


def runs_of_order(
    client: SyncPrefectClient, order_id: str, owner: str | None = None
) -> list[OrderRun]:
    """Return the order's runs and its compensations' runs, oldest first.

    Args:
        client: Prefect's client.
        order_id: The order; its own runs are named by it, those of its undos tagged.
        owner: The run that owns it, which may be a batch's and named otherwise; left out for an
            order that no run has recorded.
    """
    # An order without an id of its own has that of its first run, at the end of the run's name.
    owners = {id_ for id_ in (owner, order_id) if id_ and _is_run_id(id_)}
    owned_or_named = [
        FlowRunFilter(name=FlowRunFilterName(any_=[order_id])),
        FlowRunFilter(tags=FlowRunFilterTags(all_=[f"order:{order_id}"])),
        *(
            [FlowRunFilter(id=FlowRunFilterId(any_=[UUID(id_) for id_ in owners]))]
            if owners
            else []
        ),
    ]
    found = {
        run.id: run
        for wanted in owned_or_named
        for run in client.read_flow_runs(
            flow_filter=of_flows(*FLOWS), flow_run_filter=wanted, limit=PAGE
        )
        # A person may take the id of a run for that of its order, or that of a batch's run.
        if str(run.id) != order_id
        or order_id == owner
        or ("order" in run.parameters and order_id_of(run) == order_id)
    }
    if owner is None:
        found |= {run.id: run for run in unbegun_runs(client) if order_id_of(run) == order_id}
    flows = {
        flow_id: client.read_flow(flow_id).name for flow_id in {r.flow_id for r in found.values()}
    }
    deployment_of = deployments(client)
    return [
        OrderRun(
            run=run,
            flow=flows[run.flow_id],
            states=sorted(client.read_flow_run_states(run.id), key=lambda state: state.timestamp),
            lost=why_lost(run, utc_now(), deployment_of) or "",
            unbegun=why_unbegun(client, run, utc_now()) if is_unbegun(run) else "",
        )
        for run in sorted(found.values(), key=lambda run: str(run.created))
    ]


def _is_run_id(id_: str) -> bool:
    try:
        return str(UUID(id_)) == id_
    except ValueError:
        return False


def submit(order: CheckoutOrder) -> tuple[str, FlowRun | None, Order | None]:
    """Start a checkout of the order unless it is recorded or running.

    Returns:
        The order's id; its run, started now or by the first who sent it; and the order as it
        stands if it is recorded already, and nothing was started.

    Raises:
        UserNotFound, BookNotFound, OrderIdConflict: it cannot be meant so; nothing was started.
        NoPrefectServer, DeploymentNotFound: there is nothing to start it in.
    """
    with prefect_client():
        known = known_order(order)
        if known is not None and _is_taken_up(known):
            return known.id, None, known
        parameters = {"order": order.model_dump(mode="json", by_alias=True, exclude_none=True)}
        if order.order_id is None:
            run = new_run(settings().checkout_deployment, parameters, None)
            return str(run.id), run, None
        run = _start_once(
            parameters,
            key=f"submit:{order.order_id}",
            name=order.order_id,
            is_used=lambda: _is_taken_up(known_order(order)),
        )
        # Prefect gives the old run for a known key, whatever it was asked to do.
        started = CheckoutOrder.model_validate(run.parameters["order"])
        require_same(order.content(), started.content(), order.order_id)
        return order.order_id, run, None


def _is_taken_up(known: Order | None) -> bool:
    """Return whether a checkout or a batch has begun the order."""
    return known is not None and known.status != OrderStatus.SUBMITTED


def retry(order_id: str) -> FlowRun:
    """Start a run for a new attempt of a failed order.

    Repeated calls return the same run.

    Raises:
        OrderNotFound: no order has the id.
        OrderNotFailed: the order goes on, is dispatched, or is still being given back.
        NoPrefectServer, DeploymentNotFound: there is nothing to start it in.
    """
    with prefect_client():
        order = read_order(order_id)
        if order.status not in FAILED:
            raise OrderNotFailed(
                f"order {order_id} is {order.status}; only a rejected or compensated order is "
                f"tried again. `checkout show {order_id}` says what happens next."
            )
        return _start_once(
            parameters_of(order),
            key=f"retry:{order_id}:{order.attempt}",
            name=order_id,
            is_used=lambda: read_order(order_id).attempt > order.attempt,
        )


def _start_once(
    parameters: dict[str, Any], *, key: str, name: str, is_used: Callable[[], bool]
) -> FlowRun:
    """Start the one run of a key, or find it.

    A run that ended, or is being cancelled, without having recorded what it was started for is no
    use to anybody, and its key would give it again for ever; the next one's key is made from it, so
    that all who ask agree. A run that no process has is started again.
    """
    start = partial(new_run, settings().checkout_deployment, parameters, name=name)
    run = start(key)
    while _has_ended(run) and not is_used():
        run = start(f"{key}:{run.id}")
    with get_client(sync_client=True) as client:
        why = why_lost(run, utc_now(), deployments(client))
        return start_again(client, run, why) if why and not is_used() else run


def _has_ended(run: FlowRun) -> bool:
    return run.state is not None and (run.state.is_final() or run.state.is_cancelling())


def is_to_come(run: OrderRun) -> bool:
    """Return whether an unfinished checkout run may still record its order."""
    state = run.run.state
    return run.flow == CHECKOUT and state is not None and not state.is_final()


def cancel_runs_to_come(order_id: str, reason: str = "") -> list[str]:
    """Cancel the runs of an order that no run has recorded yet.

    A run that has recorded the order since is cancelled with it, as by the UI's Cancel.

    Args:
        order_id: The order.
        reason: Why; it becomes a part of the state's message.

    Returns:
        The ids of the runs that were cancelled.

    Raises:
        NoPrefectServer: the runs cannot be reached; nothing changed.
    """
    message = f"order {order_id} was cancelled by a person{f': {reason}' if reason else ''}"
    with prefect_client() as client:
        to_come = [run for run in runs_of_order(client, order_id) if is_to_come(run)]
        for run in to_come:
            client.set_flow_run_state(UUID(run.id), Cancelling(message=message))
        return [run.id for run in to_come]


def end_run(client: SyncPrefectClient, order: Order) -> None:
    """Stop the execution of an order that a person has ended.

    A run with a process is cancelled by its worker, one without is cancelled by Prefect itself. The
    run of a batch goes on with its other orders; it is woken if it waited for this one alone.
    """
    if order.run_id is None:
        return
    if batches_among([order.run_id]):
        close_runs(client, {order.run_id})
        return
    try:
        state = client.read_flow_run(UUID(order.run_id)).state
    except ObjectNotFound:
        return
    if state is not None and not state.is_final():
        client.set_flow_run_state(
            UUID(order.run_id), Cancelling(message=f"order {order.id} was cancelled")
        )
