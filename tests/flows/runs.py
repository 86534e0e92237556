"""Flow runs as a test sees them."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Self, TypeVar
from uuid import UUID

from prefect import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterName,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, State, StateType, TaskRun
from prefect.flow_engine import run_flow
from prefect.states import AwaitingRetry, Cancelled

from flows.checkout import store_checkout
from store.messages import ASSIGNED, NO_COURIER, CheckoutOrder, CourierAnswer
from tests.polling import wait_until

T = TypeVar("T")


class Runs:
    """Starts checkouts in threads of their own, and asks the server about flow runs."""

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(max_workers=8)
        self._since = datetime.now(UTC)
        self._client = get_client(sync_client=True)
        self.client = self._client.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for run in self._found("store-checkout", FlowRunFilter()):
            if run.state_type == StateType.PAUSED:
                self.answer(run, outcome=NO_COURIER, reason="the test is over")
        self._pool.shutdown()
        self._client.__exit__(None, None, None)

    def in_thread(self, call: Callable[[], T]) -> "Future[T]":
        return self._pool.submit(call)

    def check_out(self, order: CheckoutOrder) -> "Future[State[Any]]":
        """Start a checkout; the future gives the run's last state."""

        def execute() -> State[Any]:
            state = store_checkout(order, return_state=True)
            assert isinstance(state, State)
            return state

        return self.in_thread(execute)

    def retry(self, run: FlowRun, order: CheckoutOrder) -> "Future[State[Any]]":
        """Execute a run again from its top under the same id, as the UI's Retry makes a worker."""
        self.client.set_flow_run_state(run.id, AwaitingRetry())
        return self._execute(self.client.read_flow_run(run.id), order)

    def execute(self, run: FlowRun) -> "Future[State[Any]]":
        """Execute a run that was started by deployment, as a worker does."""
        return self._execute(run, CheckoutOrder.model_validate(run.parameters["order"]))

    def _execute(self, run: FlowRun, order: CheckoutOrder) -> "Future[State[Any]]":
        parameters = {"order": order, "wait": "pause"}

        def execute() -> State[Any]:
            state = run_flow(
                store_checkout, flow_run=run, parameters=parameters, return_type="state"
            )
            assert isinstance(state, State)
            return state

        return self.in_thread(execute)

    def end(self, order_id: str) -> None:
        """End the order's one run as cancelled, as one that nobody has executed."""
        self.client.set_flow_run_state(self.run_of(order_id).id, Cancelled(), force=True)

    def end_all(self, order_id: str) -> None:
        """End all runs of the order as cancelled."""
        for run in self.of_order(order_id):
            self.client.set_flow_run_state(run.id, Cancelled(), force=True)

    def of_order(self, order_id: str) -> list[FlowRun]:
        """The checkout runs that are named by the order, oldest first."""
        named = FlowRunFilter(name=FlowRunFilterName(any_=[order_id]))
        return self._found("store-checkout", named)

    def _found(self, flow: str, wanted: FlowRunFilter) -> list[FlowRun]:
        """This test's runs of a flow: the server keeps those of the tests before."""
        found = self.client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])), flow_run_filter=wanted
        )
        mine = [run for run in found if run.created is not None and run.created >= self._since]
        return sorted(mine, key=lambda run: str(run.created))

    def run_of(self, order_id: str) -> FlowRun:
        (run,) = self.of_order(order_id)
        return run

    def paused(self, order_id: str, after: int = 0) -> FlowRun:
        """Wait until a run of the order waits for an answer, with more forms than ``after``."""

        def look() -> FlowRun | None:
            for run in self.of_order(order_id):
                if run.state_type == StateType.PAUSED and len(self.forms(run)) > after:
                    return run
            return None

        return wait_until(look, f"a pause of order {order_id}")

    def forms(self, run: FlowRun) -> list[str]:
        """The descriptions of the forms that the run has put up, in no order."""
        inputs = self.client.filter_flow_run_input(
            run.id, key_prefix="paused-courier-", limit=100, exclude_keys=set()
        )
        return [str(form.value) for form in inputs if form.key.endswith("-description")]

    def answer(self, run: FlowRun, **answer: Any) -> str:
        """Resume a run with an answer; return what the server said to it."""
        said = self.client.resume_flow_run(run.id, run_input=answer)
        return said.status.value

    def assign(self, order_id: str, courier: str = "city-vans") -> FlowRun:
        """Wait for the order's pause and answer that a courier takes it."""
        run = self.paused(order_id)
        answer = CourierAnswer(outcome=ASSIGNED, courier=courier, answered_by="Ada")
        assert self.answer(run, **answer.model_dump()) == "ACCEPT"
        return run

    def state_types(self, run_id: UUID) -> list[str]:
        """The types of the states that the run went through, in their order."""
        states = self.client.read_flow_run_states(run_id)
        return [s.type.value for s in sorted(states, key=lambda s: s.timestamp)]

    def tasks_of(self, run: FlowRun, at_least: int = 0) -> list[str]:
        """The names of the run's task runs by their start; Prefect records them a little late."""

        def look() -> list[TaskRun] | None:
            found = self.client.read_task_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
            )
            found = [task for task in found if task.start_time is not None]
            return found if len(found) >= at_least else None

        found = (
            wait_until(look, f"{at_least} task runs of {run.name}") if at_least else look()
        ) or []
        ordered = sorted(found, key=lambda task: str(task.start_time))
        return [task.name.rsplit("-", 1)[0] for task in ordered]

    def compensations(self, order_id: str) -> list[FlowRun]:
        """The runs of ``compensate`` that are tagged with the order, oldest first."""
        tagged = FlowRunFilter(tags=FlowRunFilterTags(all_=[f"order:{order_id}"]))
        return self._found("compensate", tagged)

    def parent_of(self, run: FlowRun) -> UUID | None:
        """The id of the run under which a subflow run stands."""
        if run.parent_task_run_id is None:
            return None
        return self.client.read_task_run(run.parent_task_run_id).flow_run_id
