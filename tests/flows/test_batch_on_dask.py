"""Chunks of a batch on a Dask cluster: chosen by settings, carried by other processes."""

import sys
from collections.abc import Callable

from distributed import Client, LocalCluster
from prefect_dask.task_runners import DaskTaskRunner

from flows.batch import task_runner
from tests.flows.runs import Runs
from tests.flows.test_batch import Batches, submit
from tests.shop import assigned_copies, kept_cents, order_row, postgresql_only, queued, stock


def has_carried_a_chunk() -> bool:
    """Asked of a worker's process, which imports the flow with its first chunk."""
    return "flows.batch" in sys.modules


@postgresql_only
def test_two_processes_of_a_cluster_carry_the_chunks(
    runs: Runs, setting: Callable[[str, object], None]
) -> None:
    submit(7)
    submit(1, "too-large", quantity=201)
    with (
        LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,  # type: ignore[no-untyped-call]
    ):
        setting("batch_task_runner", "dask")
        setting("dask_address", cluster.scheduler_address)
        batches = Batches(runs)
        state = batches.dispatched(batches.start(chunk_size=2, concurrency=2))
        carried = client.run(has_carried_a_chunk)
    assert state.message == "8 orders: 7 dispatched, 1 rejected"
    assert order_row("too-large-000").error == "NoCourierAvailable"
    assert (stock(), kept_cents(), queued(), assigned_copies()) == (493, 7 * 20_00, [], {})
    assert list(carried.values()) == [True, True]


def test_without_an_address_a_cluster_of_this_machine_is_started(
    setting: Callable[[str, object], None],
) -> None:
    setting("database_url", "sqlite://")
    setting("batch_task_runner", "dask")
    runner = task_runner(3)
    assert isinstance(runner, DaskTaskRunner)
    assert runner.cluster_kwargs["n_workers"] == 3
    assert runner.cluster_kwargs["processes"] is True
