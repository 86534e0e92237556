"""A small model of Prefect: its server, its worker, its engine, as the store sees them.

The rules are those of Prefect 3.8's orchestration: which state may follow which, what a resume
answers, what the engine does when a flow ends, and when which hook runs where, if at all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import SimpleNamespace, TracebackType
from typing import Any, Self
from uuid import UUID

import httpx
from prefect import Flow, Task
from prefect._internal.result_records import ResultRecord, ResultRecordMetadata
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import FlowPauseTimeout, ObjectNotFound, Pause, TerminationSignal

from flows.batch import batch_checkout
from flows.batches.wait import BatchDecision
from flows.checkout import store_checkout
from flows.order.courier_wait import DispatchDecision
from flows.runs.pause import Form, Wait
from store.errors import RefusedOrder
from store.messages import CheckoutOrder
from tests.faults.world import Killed, Process, World
from tests.shop import unquoted

FINAL = {StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.CRASHED}
AFTER_PAUSE = FINAL | {StateType.RUNNING, StateType.SCHEDULED, StateType.CANCELLING}
WORK_POOL = "local"
QUEUE = UUID(int=3)
SERVER_PATIENCE_SECONDS = 60.0
"""About how long Prefect's client tries again before it gives a server up."""
CANCELLATION_SECONDS = 300.0
"""After this the server calls a cancelling run cancelled, whoever still executes it."""


@dataclass(frozen=True)
class Input:
    """What a run was given while it ran: the answer to a form."""

    key: str
    value: str
    created: datetime


@dataclass(eq=False)
class Run:
    """A flow run of the checkout, or of a batch without an order, as the server knows it."""

    id: UUID
    name: str
    order: CheckoutOrder | None
    wait: Wait
    states: list[State[Any]]
    deployment_id: UUID | None
    tags: list[str] = field(default_factory=list)
    pause_keys: set[str] = field(default_factory=set)
    pause_key: str = ""
    pause_until: float = 0.0
    forms: set[str] = field(default_factory=set)
    inputs: dict[str, Input] = field(default_factory=dict)
    process: Process | None = None
    started: bool = False
    changed_at: float = 0.0
    listen_seconds: int = 0

    @property
    def order_id(self) -> str:
        return (self.order.order_id or "") if self.order else ""

    @property
    def state(self) -> State[Any]:
        return self.states[-1]

    @property
    def is_suspended(self) -> bool:
        return self.state.name == "Suspended"


@dataclass
class Answer:
    """The server's answer to a proposed state."""

    status: SetStateStatus
    state: State[Any] | None


class Server:
    """Prefect's server: the runs, and the rules by which their states change."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.runs: dict[UUID, Run] = {}
        self.away_until = 0.0
        self.pool_is_closed = False
        self._by_key: dict[str, Run] = {}

    def create(
        self,
        order: CheckoutOrder | None,
        wait: Wait,
        *,
        key: str | None = None,
        tags: Sequence[str] = (),
        listen_seconds: int = 0,
    ) -> Run:
        """Create a scheduled run; the same idempotency key gives the same run."""
        if key is not None and key in self._by_key:
            return self._by_key[key]
        run = Run(
            id=self.world.new_id(),
            name=f"run {len(self.runs) + 1}",
            order=order,
            wait=wait,
            states=[self._state(StateType.SCHEDULED, "Scheduled")],
            deployment_id=UUID(int=1),
            tags=list(tags),
            changed_at=self.world.now,
            listen_seconds=listen_seconds,
        )
        self.runs[run.id] = run
        if key is not None:
            self._by_key[key] = run
        self.world.tell(f"{run.name} is created for {run.order_id or 'a batch'}")
        return run

    def _state(
        self, kind: StateType, name: str, message: str | None = None, data: Any = None
    ) -> State[Any]:
        return State(
            id=self.world.new_id(),
            type=kind,
            name=name,
            message=message,
            data=data,
            timestamp=self.world.today(),
        )

    def put(self, run: Run, kind: StateType, name: str, message: str | None = None) -> None:
        """Set a state without asking any rule, as services of the server do."""
        self._set(run, self._state(kind, name, message))

    def propose(self, run: Run, state: State[Any], *, force: bool = False) -> Answer:
        """Set a state, if the rules allow it."""
        old, new = run.state.type, state.type
        if not force:
            if old in FINAL and new in (StateType.CANCELLING, StateType.PAUSED, StateType.CRASHED):
                return Answer(SetStateStatus.ABORT, None)
            if old == StateType.CANCELLING and new != StateType.CANCELLED:
                return Answer(SetStateStatus.REJECT, run.state)
            if new == StateType.CANCELLING and (
                run.is_suspended
                or run.state.name == "Resuming"
                or (old == StateType.SCHEDULED and not run.started)
            ):
                self.put(run, StateType.CANCELLED, "Cancelled")
                return Answer(SetStateStatus.REJECT, run.state)
            if new == StateType.PAUSED and (
                old != StateType.RUNNING or state.state_details.pause_key in run.pause_keys
            ):
                return Answer(SetStateStatus.REJECT, run.state)
            if old == StateType.PAUSED:
                if new not in AFTER_PAUSE:
                    return Answer(SetStateStatus.REJECT, run.state)
                if new != StateType.CANCELLING and self.world.now > run.pause_until:
                    self.put(run, StateType.FAILED, "Failed", "The flow was paused, not resumed.")
                    return Answer(SetStateStatus.REJECT, run.state)
        if old in FINAL and new not in FINAL:
            run.pause_keys.clear()
        self._set(run, self._state(new, state.name or new.value, state.message, state.data))
        return Answer(SetStateStatus.ACCEPT, run.state)

    def _set(self, run: Run, state: State[Any]) -> None:
        run.states.append(state)
        run.changed_at = self.world.now
        message = f" ({state.message})" if state.message else ""
        self.world.tell(f"{run.name} is {state.name}{message}")

    def resume(self, run: Run, run_input: dict[str, Any] | None) -> SetStateStatus:
        """Resume a paused run with an answer; it is accepted whether its process lives or not."""
        if run.state.type != StateType.PAUSED:
            return SetStateStatus.ABORT
        if run.pause_key not in run.forms or not run_input or "outcome" not in run_input:
            return SetStateStatus.REJECT
        prefix = run.state.name.lower() if run.state.name else ""
        kind, name = (
            (StateType.SCHEDULED, "Resuming")
            if run.is_suspended
            else (StateType.RUNNING, "Running")
        )
        status = self.propose(run, self._state(kind, name)).status
        if status == SetStateStatus.ACCEPT:
            form = DispatchDecision if run.order else BatchDecision
            answer = form.model_validate(run_input)
            key = f"{prefix}-{run.pause_key}-response"
            run.inputs[key] = Input(key, answer.model_dump_json(), self.world.today())
        return status

    def end_expired_pauses(self) -> None:
        """Fail the runs whose pause is over and end old cancellations, as the server does."""
        for run in self.runs.values():
            if run.state.type == StateType.PAUSED and self.world.now > run.pause_until:
                self.put(run, StateType.FAILED, "Failed", "The flow was paused and never resumed.")
            if (
                run.state.type == StateType.CANCELLING
                and self.world.now > run.changed_at + CANCELLATION_SECONDS
            ):
                self.put(run, StateType.CANCELLED, "Cancelled")


class Client:
    """Prefect's client, as far as the store uses it; each call may fail on its way."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._world = server.world

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None

    def _call(self) -> None:
        world = self._world
        world.boundary("a call to Prefect")
        if world.current is None:
            return
        if world.now < self._server.away_until:
            raise httpx.ConnectError("Prefect's server is away")
        if world.fault(world.rates.prefect, ["a call to Prefect does not arrive"]):
            raise httpx.ConnectError("Prefect's server is away")

    def _answer(self) -> None:
        world = self._world
        if world.fault(world.rates.prefect, ["Prefect's answer is lost"]):
            raise httpx.ReadTimeout("Prefect's server did not answer")

    def _run(self, run_id: UUID | str) -> Run:
        run = self._server.runs.get(UUID(str(run_id)))
        if run is None:
            raise ObjectNotFound(http_exc=Exception("404"), help_message=f"no run {run_id}")
        return run

    def read_flow_run(self, run_id: UUID) -> Any:
        self._call()
        return _seen(self._run(run_id))

    def read_deployment(self, _deployment_id: UUID) -> Any:
        self._call()
        return SimpleNamespace(work_pool_name=WORK_POOL, work_queue_id=QUEUE)

    def read_flow(self, _flow_id: UUID) -> Any:
        self._call()
        return SimpleNamespace(name=store_checkout.name)

    def read_work_pool(self, work_pool_name: str) -> Any:
        self._call()
        assert work_pool_name == WORK_POOL
        return SimpleNamespace(is_paused=self._server.pool_is_closed)

    def read_flow_run_states(self, run_id: UUID) -> list[State[Any]]:
        self._call()
        return list(self._run(run_id).states)

    def read_flow_runs(
        self, flow_run_filter: Any, limit: int, flow_filter: Any = None, **_: object
    ) -> list[Any]:
        self._call()
        flows = flow_filter.name.any_ if flow_filter else ["batch-checkout", "store-checkout"]
        wanted = flow_run_filter.id.any_ if flow_run_filter.id else list(self._server.runs)
        states = flow_run_filter.state.type.any_ if flow_run_filter.state else list(StateType)
        runs = sorted((self._server.runs[i] for i in wanted if i in self._server.runs), key=_id)
        of_flows = (run for run in runs if _flow(run) in flows)
        return [_seen(run) for run in of_flows if run.state.type in states][:limit]

    def set_flow_run_state(self, run_id: UUID, state: State[Any], *, force: bool = False) -> Answer:
        self._call()
        answer = self._server.propose(self._run(run_id), state, force=force)
        self._answer()
        return answer

    def resume_flow_run(self, run_id: UUID, run_input: dict[str, Any] | None = None) -> Answer:
        self._call()
        run = self._run(run_id)
        status = self._server.resume(run, run_input)
        self._answer()
        return Answer(status, run.state)

    def filter_flow_run_input(
        self,
        run_id: UUID,
        key_prefix: str,
        limit: int,
        exclude_keys: set[str],
    ) -> list[Any]:
        self._call()
        run = self._server.runs.get(run_id)
        # Prefect does not say that the run is gone: it has no inputs.
        inputs = run.inputs if run is not None else {}
        found = [
            given
            for key, given in inputs.items()
            if key.startswith(key_prefix) and key not in exclude_keys
        ]
        return list(found[:limit])

    def delete_flow_run_input(self, run_id: UUID, key: str) -> None:
        self._call()
        self._run(run_id).inputs.pop(key, None)


def _id(run: Run) -> int:
    return run.id.int


def _flow(run: Run) -> str:
    return "store-checkout" if run.order else "batch-checkout"


def _seen(run: Run) -> Any:
    """Return what Prefect's client shows of a run."""
    due = run.state.timestamp
    return SimpleNamespace(
        id=run.id,
        name=run.name,
        state=run.state,
        flow_id=UUID(int=2),
        deployment_id=run.deployment_id,
        tags=run.tags,
        parameters={} if run.order else {"wait": run.wait, "listen_seconds": run.listen_seconds},
        work_pool_name=WORK_POOL,
        work_queue_id=QUEUE,
        next_scheduled_start_time=due,
        expected_start_time=due,
    )


class Prefect:
    """Worker and engine: they start the runs' processes and end their states."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.server = Server(world)
        self.worker_alive = True
        self.poison: set[str] = set()

    # What production calls instead of Prefect

    def call_task(self, task: Task[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a task as Prefect's engine does, with its own retries."""
        args = tuple(map(unquoted, args))
        process = self.world.current
        if process is None:
            return task.fn(*args, **kwargs)
        self._be_poisoned(process, task.name)
        before = process.task_try
        try:
            for run_count in range(1, task.retries + 2):
                process.task_try = SimpleNamespace(
                    task=task, task_run=SimpleNamespace(run_count=run_count)
                )
                try:
                    return task.fn(*args, **kwargs)
                except Exception as error:
                    ended = SimpleNamespace(result=_gives(error))
                    condition: Any = task.retry_condition_fn
                    if run_count > task.retries or not condition(task, None, ended):
                        raise
                delays: Any = task.retry_delay_seconds
                self.world.sleep(delays[min(run_count, len(delays)) - 1])
            raise AssertionError("a task always returns or raises")
        finally:
            process.task_try = before

    def _be_poisoned(self, process: Process, step: str) -> None:
        """Kill the process of an order that kills its process each time it is billed."""
        run = process.owner
        if isinstance(run, Run) and run.order_id in self.poison and step == "bill_customer":
            self.world.tell(f"{process.name} dies of its order")
            process.doomed = True
            raise Killed

    def call_flow(self, flow: Flow[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a flow as part of the process that calls it."""
        return flow.fn(*args, **kwargs)

    def get_client(self, **_: object) -> Client:
        return Client(self.server)

    def in_a_run(self) -> bool:
        """Say whether the process at its turn is a flow run's own."""
        return self.world.current is not None and isinstance(self.world.current.owner, Run)

    def running(self) -> Run:
        """Return the flow run whose process is at its turn."""
        run = self._process().owner
        assert isinstance(run, Run), f"{run!r} is no flow run"
        return run

    def running_id(self) -> UUID:
        return self.running().id

    def task_try(self) -> Any:
        """Return what Prefect's TaskRunContext says of the task that runs now."""
        return self._process().task_try

    def in_main_thread(self) -> bool:
        return self._process().in_main_thread

    def run_deployment(
        self,
        _name: str,
        *,
        parameters: dict[str, Any],
        idempotency_key: str | None,
        tags: Sequence[str] = (),
        **_: object,
    ) -> FlowRun:
        self.get_client()._call()
        order = CheckoutOrder.model_validate(parameters["order"]) if "order" in parameters else None
        run = self.server.create(
            order,
            parameters.get("wait", "pause"),
            key=idempotency_key,
            tags=tags,
            listen_seconds=parameters.get("listen_seconds", 0),
        )
        self.get_client()._answer()
        return FlowRun.model_construct(id=run.id, name=run.name, flow_id=UUID(int=2))

    def pause_flow_run(
        self, wait_for_input: type[Form], timeout: int, poll_interval: int, key: str
    ) -> Form:
        """Pause as ``prefect.pause_flow_run`` does: poll for Running, then read the answer."""
        client, run_id = self.get_client(), self.running_id()
        run = self._pause(client, "Paused", timeout, key)
        if run is not None:
            deadline = self.world.now + timeout
            self.world.sleep(min(timeout / 2, poll_interval))
            while True:
                if client.read_flow_run(run_id).state.is_running():
                    break
                if self.world.now >= deadline:
                    raise FlowPauseTimeout("Flow run was paused and never resumed.")
                self.world.sleep(poll_interval)
        client._call()
        return self._answer_to(f"paused-{key}", wait_for_input)

    def suspend_flow_run(self, wait_for_input: type[Form], timeout: int, key: str) -> Form:
        """Suspend as ``prefect.suspend_flow_run`` does: the process ends here."""
        if self._pause(self.get_client(), "Suspended", timeout, key) is not None:
            raise Pause
        return self._answer_to(f"suspended-{key}", wait_for_input)

    def _answer_to(self, key: str, form: type[Form]) -> Form:
        """Read the answer; where there is none, Prefect makes an empty one, which may be wrong."""
        given = self.server.runs[self.running_id()].inputs.get(f"{key}-response")
        return form.model_validate_json(given.value if given is not None else "{}")

    def _pause(self, client: Client, name: str, timeout: int, key: str) -> Run | None:
        """Put the run into a pause with a form; none, if it is running and was answered."""
        paused: State[Any] = State(type=StateType.PAUSED, name=name)
        paused.state_details.pause_key = key
        run_id = self.running_id()
        answer = client.set_flow_run_state(run_id, paused)
        if answer.state is None:
            raise RuntimeError("Flow run cannot be paused: aborted")
        if answer.state.is_running():
            return None
        if not answer.state.is_paused():
            raise RuntimeError(f"Flow run cannot be paused: it is {answer.state.name}")
        run = self.server.runs[run_id]
        if answer.status == SetStateStatus.ACCEPT:
            run.pause_key = key
            run.pause_until = self.world.now + timeout
            run.pause_keys.add(key)
        # Prefect sets the state first and saves the form afterwards.
        client._call()
        run.forms.add(key)
        return run

    def _process(self) -> Process:
        process = self.world.current
        if process is None:
            raise AssertionError("no process is at its turn")
        return process

    # The worker

    def work(self) -> None:
        """Let the worker take up what is scheduled and what is to be cancelled."""
        if not self.worker_alive or self.world.now < self.server.away_until:
            return
        for run in list(self.server.runs.values()):
            if run.state.type == StateType.SCHEDULED and not self.server.pool_is_closed:
                self.server.put(run, StateType.PENDING, "Pending")
                run.started = True
                delay = self.world.chance.weighted([0.0, 2.0, 40.0, 1200.0], [8, 8, 3, 1])
                run.process = self.world.start(
                    run.name, _of(self.execute, run), delay=delay, owner=run
                )
            elif run.state.type == StateType.CANCELLING and run.changed_at < self.world.now:
                self._cancel(run)

    def _cancel(self, run: Run) -> None:
        """Kill the run's process, run the hook in another one, report the run cancelled."""
        cancelling = run.state
        run.changed_at = self.world.now + CANCELLATION_SECONDS
        if run.process is not None and not run.process.ended:
            self.world.tell(f"the worker ends {run.process.name}")
            process, run.process = run.process, None
            self.world.kill(process)

        def hook() -> None:
            self._run_hooks(store_checkout.on_cancellation_hooks, run, cancelling)
            self.get_client().set_flow_run_state(
                run.id, State(type=StateType.CANCELLED, name="Cancelled")
            )

        self.world.start(f"{run.name}'s cancellation", hook, owner=run, in_main_thread=False)

    def process_was_killed(self, process: Process) -> None:
        """Have the worker notice, if it lives, that a run's process is gone."""
        run = process.owner
        if not isinstance(run, Run) or run.process is not process:
            return
        run.process = None
        if not self.worker_alive:
            return

        def mark() -> None:
            crashed: State[Any] = State(type=StateType.CRASHED, name="Crashed")
            client = self.get_client()
            client.set_flow_run_state(run.id, crashed)
            self._run_hooks(store_checkout.on_crashed_hooks, run, run.state)
            client.set_flow_run_state(run.id, crashed)

        self.world.start(f"{run.name}'s crash", mark, delay=1.0, owner=run, in_main_thread=False)

    # The engine

    def execute(self, run: Run) -> None:
        """Execute the run in this process, from its top, as Prefect's engine does."""
        if not self._report(run, State(type=StateType.RUNNING, name="Running")).is_running():
            return
        try:
            returned = _carry_out(run)
        except Pause:
            return
        except TerminationSignal:
            if run.state.type not in FINAL:
                self._report(run, State(type=StateType.CRASHED, name="Crashed"), force=True)
                self._run_hooks(store_checkout.on_crashed_hooks, run, run.state)
        except Exception as error:
            failed: State[Any] = State(
                type=StateType.FAILED,
                name="Failed",
                message=f"{error!r}"[:200],
                # As the engine hands it to the hooks of the run's own process.
                data=ResultRecord(metadata=ResultRecordMetadata(), result=error),
            )
            state = self._report(run, failed)
            if not isinstance(error, RefusedOrder):
                self.world.when_failed(error)
            if state.is_failed():
                self._run_hooks(store_checkout.on_failure_hooks, run, state)
        else:
            # The flow gives a state where the order is not its own, or could not be recorded.
            completed: State[Any] = State(type=StateType.COMPLETED, name="Completed")
            ended = returned if isinstance(returned, State) else completed
            self._report(run, ended)
            if ended.is_crashed():
                self._run_hooks(store_checkout.on_crashed_hooks, run, run.state)

    def _report(self, run: Run, state: State[Any], *, force: bool = False) -> State[Any]:
        """Propose a state and try again while the server is away, for a time."""
        deadline = self.world.now + SERVER_PATIENCE_SECONDS
        while True:
            try:
                answer = self.get_client().set_flow_run_state(run.id, state, force=force)
            except httpx.TransportError:
                if self.world.now >= deadline:
                    raise
                self.world.sleep(10.0)
            else:
                return answer.state or run.state

    def _run_hooks(self, hooks: Sequence[Callable[..., Any]], run: Run, state: State[Any]) -> None:
        """Run a flow's hooks; what they raise is logged by Prefect and swallowed."""
        for hook in hooks:
            try:
                hook(store_checkout, run, state)
            except Exception as error:
                self.world.tell(f"the hook of {run.name} failed: {error!r}"[:200])
                self.world.when_failed(error)


def _carry_out(run: Run) -> Any:
    if run.order is not None:
        return store_checkout.fn(run.order, run.wait)
    return batch_checkout.fn(
        wait=run.wait,
        chunk_size=2,
        concurrency=1,
        tolerated_failures=1.0,
        listen_seconds=run.listen_seconds,
    )


def _gives(value: object) -> Callable[..., object]:
    return lambda **_: value


def _of(call: Callable[[Run], None], run: Run) -> Callable[[], None]:
    return lambda: call(run)
