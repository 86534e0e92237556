"""Execution of a batch's chunks on a Dask cluster.

An outage of the cluster fails no order. Dask may lose a chunk without an error when a worker's
process dies, so that its result never comes. The run then gives up and is started again; it finds
the chunk's orders in the database.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from prefect.task_runners import TaskRunner

from orders.batches import last_move_of, touch_batch
from store.errors import ClusterUnavailable
from store.models import utc_now
from store.settings import settings

LOOK_SECONDS = 20.0
"""How often a chunk is looked after, which is the batch's heartbeat; recovery waits for longer."""
LOST_AFTER_SECONDS = 600.0
"""A cluster may take minutes to start a worker, and a gateway to answer for a chunk."""


def dask_runner(concurrency: int) -> TaskRunner[Any]:
    """Return the Dask task runner of the settings, or a local one."""
    from prefect_dask.task_runners import DaskTaskRunner

    if settings().dask_address:
        return DaskTaskRunner(address=settings().dask_address)
    return DaskTaskRunner(
        cluster_kwargs={"n_workers": concurrency, "threads_per_worker": 1, "processes": True}
    )


@contextmanager
def asking_cluster() -> Iterator[None]:
    """Raise ClusterUnavailable for Dask's errors of a lost scheduler or worker."""
    from distributed.scheduler import KilledWorker

    try:
        yield
    except (KilledWorker, CancelledError, OSError) as error:
        raise ClusterUnavailable(
            f"the Dask cluster failed: {type(error).__name__}: {error}; the run is started again"
        ) from error


def result_on_cluster(run_id: str, order_ids: Sequence[str], future: Any) -> dict[str, float]:
    """Return a chunk's result as soon as it has ended.

    Args:
        run_id: The batch's run, whose heartbeat this is.
        order_ids: The chunk.
        future: Prefect's, of the chunk's task on the cluster.

    Raises:
        ClusterUnavailable: the chunk was lost: an error of Dask's, or no order of it has moved for
            LOST_AFTER_SECONDS.
    """
    began = utc_now()
    while not _has_ended(future):
        idle = utc_now() - max(began, last_move_of(order_ids) or began)
        if idle > timedelta(seconds=LOST_AFTER_SECONDS):
            raise ClusterUnavailable(
                f"a chunk of {len(order_ids)} orders has not moved for {LOST_AFTER_SECONDS:.0f} s "
                "on the Dask cluster; the run is started again"
            )
        touch_batch(run_id)
    taken: dict[str, float] = future.result()
    return taken


def _has_ended(future: Any) -> bool:
    on_cluster = future.wrapped_future
    with asking_cluster():
        try:
            on_cluster.result(timeout=LOOK_SECONDS)
        except TimeoutError:
            if on_cluster.done():
                raise
            return False
    return True
