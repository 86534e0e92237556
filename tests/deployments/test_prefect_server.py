"""What is asked of a real Prefect server by its address."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prefect import flow, get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Paused, Pending, Running, Scheduled, Suspended

from deployments.prefect_server import PrefectServer


@flow
def waits() -> None:
    """Only its runs are of interest; nothing executes them."""


@pytest.fixture
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def api(prefect_server: None) -> Iterator[PrefectServer]:
    with PrefectServer(PREFECT_API_URL.value()) as api:
        yield api


@pytest.fixture
def a_run(client: SyncPrefectClient) -> Iterator[Callable[[State[Any]], str]]:
    """Makes a run that stands in a state; gives its id. None is left for other tests to find."""
    made: list[FlowRun] = []

    def make(state: State[Any]) -> str:
        made.append(client.create_flow_run(waits))
        client.set_flow_run_state(made[-1].id, state, force=True)
        return str(made[-1].id)

    yield make
    for run in made:
        client.delete_flow_run(run.id)


def test_the_runs_under_way_are_those_that_have_a_process(
    api: PrefectServer, a_run: Callable[[State[Any]], str]
) -> None:
    with_process: list[State[Any]] = [Pending(), Running(), Paused()]
    without: list[State[Any]] = [Suspended(), Scheduled(), Completed()]
    runs = {a_run(state) for state in with_process + without}
    found = [str(run.state_name) for run in api.runs_under_way() if str(run.id) in runs]
    # A suspended run has given its process back: stopping the system does not interrupt it.
    assert sorted(found) == ["Paused", "Pending", "Running"]
