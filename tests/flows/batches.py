"""Batch runs as a test sees them, and dispatchers that follow each other."""

import time
from concurrent.futures import Future
from typing import Any
from uuid import UUID

from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.flow_engine import run_flow
from prefect.states import AwaitingRetry, Crashed

from flows.batch import batch_checkout
from flows.dispatch import dispatch_orders
from orders.batches import begin_batch
from orders.intake import submit_orders
from tests.flows.runs import Runs
from tests.polling import PATIENCE_SECONDS, wait_until
from tests.shop import an_order, queued, status


class Batches:
    """Batch runs in threads of their own, and dispatchers that follow each other."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs

    def start(self, **parameters: Any) -> "Future[State[Any]]":
        def execute() -> State[Any]:
            state = batch_checkout(**parameters, return_state=True)
            assert isinstance(state, State)
            return state

        return self.runs.in_thread(execute)

    def again(self, run: FlowRun, **parameters: Any) -> "Future[State[Any]]":
        """Execute a run again from its top under the same id."""
        self.runs.client.set_flow_run_state(run.id, AwaitingRetry(), force=True)
        again = self.runs.client.read_flow_run(run.id)
        defaults = {"source": None, "failed_of": None, "chunk_size": 3, "concurrency": 2}

        def execute() -> State[Any]:
            state = run_flow(
                batch_checkout,
                flow_run=again,
                parameters={**defaults, "tolerated_failures": 1.0, "wait": "pause", **parameters},
                return_type="state",
            )
            assert isinstance(state, State)
            return state

        return self.runs.in_thread(execute)

    def died(self, source: str | None = None) -> FlowRun:
        """Give the run of a batch that has begun, and whose process has died."""
        run = self.runs.client.create_flow_run(batch_checkout, state=Crashed())
        begin_batch(str(run.id), source)
        return run

    def found(self) -> list[FlowRun]:
        """This test's runs of batches, oldest first."""
        return self.runs._found("batch-checkout", FlowRunFilter())

    def paused(self, after: int = 0) -> FlowRun:
        """Wait until a batch waits for its couriers, with more forms than ``after``."""

        def look() -> FlowRun | None:
            for run in self.found():
                if run.state_type == StateType.PAUSED and len(self.forms(run)) > after:
                    return run
            return None

        return wait_until(look, "a paused batch")

    def dispatched(self, running: "Future[State[Any]]") -> State[Any]:
        """Let dispatchers follow each other until the batch has ended, and the queue is empty."""
        state = self.ended(running)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while left := {id_: status(id_) for id_ in queued()}:
            assert time.monotonic() < deadline, f"{state!r} has left messages about {left}"
            dispatch_orders(listen_seconds=1)
        return state

    def ended(self, running: "Future[State[Any]]") -> State[Any]:
        """Let dispatchers follow each other until the batch has ended."""
        while not running.done():
            dispatch_orders(listen_seconds=1)
        return running.result()

    def forms(self, run: FlowRun) -> list[str]:
        """The descriptions of the forms that the run has put up."""
        inputs = self.runs.client.filter_flow_run_input(
            run.id, key_prefix="paused-batch-", limit=100, exclude_keys=set()
        )
        return [str(form.value) for form in inputs if form.key.endswith("-description")]

    def artifacts(self, run_id: str) -> dict[str, Any]:
        found = self.runs.client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(run_id)]))
        )
        return {artifact.key or "": artifact.data for artifact in found}


def submit(count: int, prefix: str = "o", **options: Any) -> list[str]:
    ids = [f"{prefix}-{number:03d}" for number in range(count)]
    submit_orders([an_order(id_, **options) for id_ in ids])
    return ids


def run_id_of(state: State[Any]) -> str:
    return str(state.state_details.flow_run_id)
