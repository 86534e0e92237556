"""The dispatcher is switched off, so that people answer, and on again."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import State
from prefect.states import Pending, Running, Scheduled

from console.main import main
from flows.actions.switches import DISPATCHER
from flows.dispatch import dispatch_orders
from store.errors import DeploymentNotFound
from tests.flows.pool import Pool
from tests.flows.runs import Runs


@pytest.fixture
def pool(runs: Runs) -> Iterator[Pool]:
    """A work pool with a deployment of the dispatcher, the only one of the server."""
    with Pool(runs) as pool:
        for deployment in runs.client.read_deployments():
            if deployment.name.startswith("of-pool-"):
                runs.client.delete_deployment(deployment.id)
        pool.deploy(dispatch_orders)
        yield pool


def states(pool: Pool) -> list[str]:
    """The states of this test's runs of the dispatcher, the oldest first."""
    found = pool.runs._found("dispatch-orders", FlowRunFilter())
    return [run.state.type.value for run in found if run.state]


def test_off_pauses_the_deployment_and_cancels_the_runs_and_on_starts_one(pool: Pool) -> None:
    client = pool.client
    running, scheduled = (pool.start(dispatch_orders) for _ in range(2))
    under_way: list[State[Any]] = [Pending(), Running()]
    for state in under_way:
        client.set_flow_run_state(running.id, state)
    later = datetime.now(UTC) + timedelta(hours=1)
    client.set_flow_run_state(scheduled.id, Scheduled(scheduled_time=later), force=True)
    assert DISPATCHER.status(client).running == [running.name]
    off = DISPATCHER.off(client)
    assert not off.is_on
    assert states(pool) == ["CANCELLING", "CANCELLED"]
    # Again, it changes nothing.
    assert DISPATCHER.off(client) == off
    on = DISPATCHER.on(client)
    assert on.is_on
    assert states(pool) == ["CANCELLING", "CANCELLED", "SCHEDULED"]


def test_the_command_says_which_holds(pool: Pool, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dispatcher", "off"]) == 0
    assert "The dispatcher is off: answer each waiting order" in capsys.readouterr().out
    assert main(["dispatcher", "status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"is_on": False, "running": []}
    assert main(["dispatcher", "on"]) == 0
    assert "The dispatcher is on" in capsys.readouterr().out


def test_without_a_deployment_nothing_is_switched(pool: Pool) -> None:
    for deployment in pool.client.read_deployments():
        pool.client.delete_deployment(deployment.id)
    with pytest.raises(DeploymentNotFound, match=r"python -m deployments\.apply"):
        DISPATCHER.off(pool.client)
