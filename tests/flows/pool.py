"""A work pool of the test server: threads of the test stand for the processes of its worker."""

import asyncio
import gc
import warnings
from concurrent.futures import Future, wait
from datetime import UTC, datetime
from typing import Any, Self
from uuid import UUID, uuid4

from prefect import Flow
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.flow_engine import run_flow
from prefect.states import Pending
from prefect.workers.process import ProcessWorker

from flows.actions.drain import DrainReport, ReopenReport, drain, reopen
from flows.checkout import store_checkout
from flows.dispatch import dispatch_orders
from flows.runs.pause import Wait
from tests.flows.runs import Runs
from tests.polling import PATIENCE_SECONDS, wait_until
from tests.shop import an_order, queued


class Pool:
    """A work pool of the server, and what a worker of it does."""

    def __init__(self, runs: Runs) -> None:
        self.runs, self.client = runs, runs.client
        self.name = f"pool-{uuid4().hex[:8]}"
        self.queue: str | None = None
        self.flows: dict[UUID, Flow[..., Any]] = {}
        self.executions: list[Future[Any]] = []

    def __enter__(self) -> Self:
        self.create()
        return self

    def __exit__(self, *error: object) -> None:
        if not all(execution.done() for execution in self.executions):
            self.drain()

    def create(self) -> None:
        """Create the work pool, or create it again after it was deleted."""
        self.client.create_work_pool(WorkPoolCreate(name=self.name, type="process"))

    def deploy(self, flow: Flow[..., Any]) -> UUID:
        """Apply the deployment of a flow to this pool; return its id."""
        flow_id = self.client.create_flow(flow)
        self.flows[flow_id] = flow
        return self.client.create_deployment(
            flow_id,
            f"of-{self.name}",
            work_pool_name=self.name,
            work_queue_name=self.queue,
            enforce_parameter_schema=False,
        )

    def start(self, flow: Flow[..., Any], **parameters: Any) -> FlowRun:
        """Start a run of the flow by a deployment to this pool; a worker is to take it."""
        return self.client.create_flow_run_from_deployment(self.deploy(flow), parameters=parameters)

    def check_out(self, order_id: str, quantity: int = 1, how: Wait = "pause") -> FlowRun:
        order = an_order(order_id, quantity).model_dump(by_alias=True, exclude_none=True)
        return self.start(store_checkout, order=order, wait=how)

    def worker_looks(self) -> None:
        """Have Prefect's own worker look once; it cancels runs whose deployment is gone."""

        async def look() -> None:
            async with ProcessWorker(work_pool_name=self.name) as worker:
                await worker.get_and_submit_flow_runs()

        asyncio.run(look())
        with warnings.catch_warnings():
            # Prefect's worker leaves a connection of its event loop to the garbage collector.
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()

    def work(self) -> int:
        """Execute what a worker gets now, each run in a thread of its own; return how many."""
        taken = self._due()
        for run in taken:
            self._execute(run)
        return len(taken)

    def work_in_hand_at_closing(self) -> DrainReport:
        """Drain the pool when a worker has a run in hand, which it executes all the same."""
        (run,) = self._due()
        report = self.drain()
        self._execute(run)
        return report

    def _due(self) -> list[FlowRun]:
        given = self.client.get_scheduled_flow_runs_for_work_pool(
            self.name, scheduled_before=datetime.now(UTC)
        )
        return [response.flow_run for response in given]

    def _execute(self, run: FlowRun) -> None:
        flow = self.flows[run.flow_id]
        self.client.set_flow_run_state(run.id, Pending())
        self.executions.append(
            self.runs.in_thread(
                lambda: run_flow(flow, flow_run=run, parameters=run.parameters, return_type="state")
            )
        )

    def ended(self) -> list[Any]:
        """Wait until no execution goes on; return what each has given, or how it left."""
        ended, going_on = wait(self.executions, timeout=PATIENCE_SECONDS)
        assert not going_on
        return [e.exception() or e.result() for e in self.executions if e in ended]

    def state_of(self, run: FlowRun) -> str:
        return self.client.read_flow_run(run.id).state_name or ""

    def drain(self, timeout_seconds: float = PATIENCE_SECONDS) -> DrainReport:
        return drain(self.client, self.name, timeout_seconds, lambda _: None)

    def reopen(self) -> ReopenReport:
        return reopen(self.client, self.name)

    def finish(self) -> None:
        """Open the pool, find couriers, and work until every run has ended."""
        self.reopen()

        def look() -> bool:
            self.work()
            dispatch_orders(listen_seconds=1)
            return not queued() and all(execution.done() for execution in self.executions)

        wait_until(look, "the end of all runs")
