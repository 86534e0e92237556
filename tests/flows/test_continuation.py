"""Who asked for an execution: a person's start or Retry begins an attempt, a restart does not."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import (
    AwaitingConcurrencySlot,
    AwaitingRetry,
    Completed,
    Crashed,
    Failed,
    Late,
    Paused,
    Pending,
    Running,
    Scheduled,
)

from flows.batch import batch_checkout
from flows.checkout import store_checkout
from flows.runs.continuation import CONTINUATION, CONTINUED, continue_run, who_asked
from orders.batches import begin_batch
from tests.flows.runs import Runs
from tests.shop import an_order, order_row, placed

RETRY: State[Any] = AwaitingRetry(message="From the Prefect UI")
RETRY_BY_CLI: State[Any] = Scheduled(message="Retried via CLI")
RESTART: State[Any] = AwaitingRetry(message=CONTINUED)
RESUMING: State[Any] = Scheduled(name="Resuming")


@pytest.fixture
def a_run(runs: Runs) -> Callable[..., FlowRun]:
    """Makes a run of the checkout that nobody executes, and puts it through its states."""

    def make(*states: State[Any], tags: list[str] | None = None) -> FlowRun:
        run = runs.client.create_flow_run(
            store_checkout, parameters={"order": an_order()}, tags=tags, state=Scheduled()
        )
        put(runs, run.id, *states)
        return run

    return make


def put(runs: Runs, run_id: UUID, *states: State[Any]) -> None:
    for state in states:
        runs.client.set_flow_run_state(run_id, state.fresh_copy(), force=True)


@pytest.mark.parametrize(
    "states",
    [
        [],
        [Late(), AwaitingConcurrencySlot(), Pending(), Running()],
        [Running(), Failed(), RETRY, Pending(), Running()],
        [Running(), Failed(), RETRY_BY_CLI, Pending(), Running()],
        [Running(), Crashed(), RESTART, Running(), Failed(), RETRY, Running()],
    ],
    ids=["a start", "a late start", "Retry", "Retry by command", "Retry after a restart"],
)
def test_a_person_asks_with_each_start_and_retry(
    runs: Runs, a_run: Callable[..., FlowRun], states: list[State[Any]]
) -> None:
    run = a_run(*states)
    asked = who_asked(str(run.id))
    assert asked is not None
    # However often a slow process looks, and whatever else its execution does, it is one asking.
    put(runs, run.id, AwaitingConcurrencySlot(), Running())
    assert who_asked(str(run.id)) == asked
    put(runs, run.id, Completed(), RETRY, Running())
    assert who_asked(str(run.id)) not in (None, asked)


@pytest.mark.parametrize(
    ("states", "tags"),
    [
        ([Running(), Crashed(), RESTART, Pending(), Running()], None),
        ([Running(), Failed(), RETRY, Running(), Crashed(), RESTART, Running()], None),
        ([Running(), Paused(), RESUMING, Pending(), Running()], None),
        ([Pending(), Running()], [CONTINUATION]),
        ([Running(), Paused(), RESUMING, Running()], [CONTINUATION]),
    ],
    ids=[
        "a restart",
        "a restart after a Retry",
        "a resume",
        "a new run in place of another",
        "its resume",
    ],
)
def test_nobody_asks_with_what_the_store_or_a_resume_starts(
    a_run: Callable[..., FlowRun], states: list[State[Any]], tags: list[str] | None
) -> None:
    assert who_asked(str(a_run(*states, tags=tags).id)) is None


def test_a_person_may_retry_a_run_that_took_another_ones_place(
    a_run: Callable[..., FlowRun],
) -> None:
    run = a_run(Running(), Failed(), RETRY, Running(), tags=[CONTINUATION])
    assert who_asked(str(run.id)) is not None


def test_a_run_that_takes_a_batch_over_has_its_parameters(
    runs: Runs, setting: Callable[[str, object], None]
) -> None:
    client = runs.client
    client.create_deployment(
        client.create_flow(batch_checkout), "of-this-test", enforce_parameter_schema=False
    )
    setting("batch_deployment", "batch-checkout/of-this-test")
    # A run without a deployment, as of a command: no worker can take it up again.
    dead = client.create_flow_run(
        batch_checkout,
        parameters={"source": "gone.jsonl", "chunk_size": 7, "tolerated_failures": 0.5},
        state=Crashed(),
    )
    begin_batch(str(dead.id), "gone.jsonl")
    placed("o-1", "prepare_order", run_id=str(dead.id))
    assert continue_run(client, str(dead.id), ["o-1"])
    heir = order_row("o-1").run_id
    assert heir not in (None, str(dead.id))
    assert client.read_flow_run(UUID(heir)).parameters == {
        "chunk_size": 7,
        "tolerated_failures": 0.5,
    }
