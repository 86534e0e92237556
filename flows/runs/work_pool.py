"""The executing run's work pool, and rescheduling the run to it.

A pool is closed when it is paused in Prefect: its workers get no run. A run that was begun before
then does what is quick, and keeps no process for what is long, so that the workers can be stopped.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn
from uuid import UUID

import httpx
from prefect import get_client, runtime
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.responses import OrchestrationResult
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound, Pause, PrefectHTTPStatusError
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Scheduled

from store.errors import RunTakenAway

logger = logging.getLogger("store.work_pool")

SERVER_AWAY = (httpx.TransportError, PrefectHTTPStatusError)
"""What Prefect's client raises, its own retries spent, while the server is away or starting."""
INTERNAL_ERROR = 500
"""From this HTTP status on the server has failed, as while its own database is away."""
UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"
"""What an error has in its text where no authority of PREFECT_API_SSL_CERT_FILE has signed for the
server."""
RESCHEDULED = "rescheduled for when its work pool is resumed"
"""Message of the state in which a run waits for its pool to be open again."""


@contextmanager
def trying_once() -> Iterator[None]:
    """Call Prefect without the client's own retries, which take minutes.

    For calls that do no harm when they fail, and are made again. It copies Prefect's settings,
    which takes some 50 ms: enter it once for a loop.
    """
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        yield


def pool_is_closed(open_client: SyncPrefectClient | None = None) -> bool | None:
    """Return whether this run's work pool is paused, None if unknown.

    A run that was called, not taken from a pool, has none. A server that is away closes nothing:
    the run goes on, and looks again the next time.

    Args:
        open_client: Prefect's client, of a run that asks often.
    """
    run_id = runtime.flow_run.id
    if run_id is None:
        return False
    try:
        with nullcontext(open_client) if open_client else get_client(sync_client=True) as client:
            pool = _pool_of(client, run_id)
            return pool is not None and client.read_work_pool(pool).is_paused
    except ObjectNotFound as error:
        logger.warning("the work pool of this run does not exist: %r", error)
        return False
    except SERVER_AWAY as error:
        logger.warning("it is not known whether the work pool is paused: %r", error)
        return None


def _pool_of(client: SyncPrefectClient, run_id: str) -> str | None:
    """Return the work pool of this run.

    The flow's context knows it; in a thread without one Prefect is asked.
    """
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None:
        return context.flow_run.work_pool_name
    return client.read_flow_run(UUID(run_id)).work_pool_name


def reschedule_run() -> NoReturn:
    """Reschedule this run for when its pool is resumed.

    This process ends, and a worker executes the run from its top.

    Raises:
        Pause: always, for Prefect's engine: the run has its state.
        RunTakenAway: the run is not this process's any more.
    """
    with get_client(sync_client=True) as client:
        # The name of a run that goes on after a suspension: nobody has asked for a new attempt,
        # and one without a process is cancelled at once.
        answer: OrchestrationResult[Any] = client.set_flow_run_state(
            runtime.flow_run.id, Scheduled(name="Resuming", message=RESCHEDULED)
        )
    if answer.state is None or not answer.state.is_scheduled():
        raise RunTakenAway(f"the run cannot be rescheduled: {answer.status.value}")
    raise Pause(state=answer.state)
