"""Chunks of a batch on a Dask cluster: chosen by settings, carried by other processes."""

import os
import signal
import sys
from collections.abc import Callable

import dask
import pytest
from distributed import Client, LocalCluster
from prefect_dask.task_runners import DaskTaskRunner

from deployments.machine import free_port
from flows import compensation
from flows.batch import task_runner
from flows.batches import cluster
from store.errors import ClusterUnavailable
from tests.flows.batches import Batches, submit
from tests.flows.runs import Runs
from tests.polling import wait_until
from tests.shop import (
    NOWHERE,
    assigned_copies,
    kept_cents,
    order_row,
    queued,
    status,
    stock,
)


def has_carried_a_chunk() -> bool:
    """Asked of a worker's process, which imports the flow with its first chunk."""
    return "flows.batch" in sys.modules


def test_two_processes_of_a_cluster_carry_the_chunks(
    runs: Runs, setting: Callable[[str, object], None]
) -> None:
    submit(7)
    submit(1, "too-large", quantity=201)
    with (
        LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
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
    setting("database_url", NOWHERE)
    setting("batch_task_runner", "dask")
    runner = task_runner(3)
    assert isinstance(runner, DaskTaskRunner)
    assert runner.cluster_kwargs["n_workers"] == 3
    assert runner.cluster_kwargs["processes"] is True


@pytest.fixture
def given_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that are to be started again."""
    runs: list[str] = []
    monkeypatch.setattr(
        compensation, "continue_run", lambda _client, run_id, _orders: runs.append(run_id)
    )
    return runs


def is_started_again_and_ends_well(batches: Batches, given_up: list[str]) -> None:
    [run] = batches.found()
    assert given_up == [str(run.id)]
    assert {status(f"o-{number:03d}") for number in range(3)} == {"started"}
    assert batches.dispatched(batches.again(run)).message == "3 orders: 3 dispatched"
    assert (stock(), kept_cents(), assigned_copies()) == (497, 3 * 20_00, {})


def test_a_chunk_that_does_not_move_is_lost_and_the_run_is_started_again(
    runs: Runs,
    setting: Callable[[str, object], None],
    monkeypatch: pytest.MonkeyPatch,
    given_up: list[str],
) -> None:
    monkeypatch.setattr(cluster, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(cluster, "LOST_AFTER_SECONDS", 1.0)
    submit(3)
    batches = Batches(runs)
    with LocalCluster(  # type: ignore[no-untyped-call]
        n_workers=0, dashboard_address=":0"
    ) as without_workers:
        setting("batch_task_runner", "dask")
        setting("dask_address", without_workers.scheduler_address)
        state = batches.start().result()
    with pytest.raises(ClusterUnavailable, match="3 orders has not moved"):
        state.result()
    setting("batch_task_runner", "threads")
    is_started_again_and_ends_well(batches, given_up)


def test_a_chunk_whose_worker_is_killed_fails_no_order(
    runs: Runs, setting: Callable[[str, object], None], given_up: list[str]
) -> None:
    submit(3)
    batches = Batches(runs)
    with (
        # Else Dask gives the chunk to the next worker.
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as one_worker,
        Client(one_worker) as client,  # type: ignore[no-untyped-call]
    ):
        [worker] = client.run(os.getpid).values()
        os.kill(worker, signal.SIGSTOP)
        setting("batch_task_runner", "dask")
        setting("dask_address", one_worker.scheduler_address)
        running = batches.start()
        wait_until(lambda: any(client.processing().values()), "chunk on the worker")
        os.kill(worker, signal.SIGKILL)
        state = running.result()
    with pytest.raises(ClusterUnavailable, match="KilledWorker"):
        state.result()
    setting("batch_task_runner", "threads")
    is_started_again_and_ends_well(batches, given_up)


def test_a_cluster_that_is_away_fails_no_order(
    runs: Runs, setting: Callable[[str, object], None], given_up: list[str]
) -> None:
    submit(3)
    batches = Batches(runs)
    setting("batch_task_runner", "dask")
    setting("dask_address", f"tcp://127.0.0.1:{free_port(0)}")
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        state = batches.start().result()
    with pytest.raises(ClusterUnavailable):
        state.result()
    setting("batch_task_runner", "threads")
    is_started_again_and_ends_well(batches, given_up)
