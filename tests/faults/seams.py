"""Where the simulated world is put under the store: every name that is replaced, in one place.

The flows, tasks, hooks, saga log and database are production's own. What is replaced is Prefect
below them, the clock, ids, sleeping, and the partners. A name that production gives up fails here.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import patch

from prefect import Flow, Task

import flows.batch
import flows.batches.listening
import flows.batches.wait
import flows.checkout
import flows.compensation
import flows.dispatch
import flows.order.courier_wait
import flows.order.events
import flows.recovery
import flows.runs.continuation
import flows.runs.pause
import flows.runs.work_pool
import reports.notices
import store.database
import store.models
import store.table_queue
import tasks.billing
import tasks.dispatch
import tasks.retries
from tests.faults.partners import BadLineGateway, BadLineQueue, BadLineTopic
from tests.faults.prefect_model import Prefect
from tests.faults.sessions import WatchedSession
from tests.faults.world import Today, World
from tests.shop import unquoted

A = TypeVar("A")
B = TypeVar("B")


class OneAfterAnother:
    """Stands in for a pool of threads, which no seed could replay."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def __enter__(self) -> "OneAfterAnother":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def submit(self, call: Callable[..., B], *args: Any) -> "Future[B]":
        done: Future[B] = Future()
        done.set_result(call(*args))
        return done


@contextmanager
def installed(world: World, prefect: Prefect) -> Iterator[None]:
    """Put the world under the store for as long as the block lasts."""
    WatchedSession.watcher = world
    Today.world = world
    clock = SimpleNamespace(sleep=world.sleep, monotonic=world.monotonic)
    runtime = SimpleNamespace(flow_run=_FlowRun(prefect))
    threads = SimpleNamespace(current_thread=prefect.in_main_thread, main_thread=lambda: True)

    def call_task(task: Task[..., Any], *args: Any, **kwargs: Any) -> Any:
        return prefect.call_task(task, *args, **kwargs)

    def call_flow(flow: Flow[..., Any], *args: Any, **kwargs: Any) -> Any:
        return prefect.call_flow(flow, *args, **kwargs)

    replaced: list[tuple[Any, str, Any]] = [
        (store.database, "Session", WatchedSession),
        # A message for each transaction that reads. Nothing stands still here by the real clock.
        (store.database, "limit", lambda *_, **__: None),
        (store.models, "datetime", Today),
        (store.table_queue, "time", clock),
        (store.table_queue, "uuid4", world.new_id),
        (store.table_queue, "Listener", lambda _: _Poll(world)),
        (tasks.billing, "payment_gateway", lambda: BadLineGateway(world)),
        (tasks.dispatch, "order_queue", lambda: BadLineQueue(world)),
        (tasks.dispatch, "topic", lambda: BadLineTopic(world)),
        (reports.notices, "topic", lambda: BadLineTopic(world)),
        (tasks.retries, "TaskRunContext", SimpleNamespace(get=prefect.task_try)),
        (tasks.retries, "time", clock),
        (tasks.retries, "random", SimpleNamespace(uniform=lambda low, high: (low + high) / 2)),
        (Task, "__call__", call_task),
        (Flow, "__call__", call_flow),
        (flows.batch, "runtime", runtime),
        (flows.batch, "few_collections", nullcontext),
        (
            flows.batch,
            "Progress",
            lambda *_, **__: SimpleNamespace(show=lambda **_: None, ended=[]),
        ),
        (flows.batch, "publish", lambda *_: None),
        (flows.batch, "task_runner", lambda _: _Runner(prefect)),
        (flows.batches.listening, "time", clock),
        (flows.batches.listening, "Listener", lambda _: _Poll(world)),
        (flows.batches.wait, "time", clock),
        (flows.batches.listening, "ThreadPoolExecutor", OneAfterAnother),
        (flows.batches.listening, "trying_once", nullcontext),
        (flows.dispatch, "trying_once", nullcontext),
        (
            flows.batches.wait.BatchDecision,
            "with_initial_data",
            classmethod(lambda form, **_: form),
        ),
        (flows.checkout, "runtime", runtime),
        (flows.checkout, "time", clock),
        (flows.runs.pause, "runtime", runtime),
        (flows.runs.pause, "time", clock),
        (flows.runs.pause, "uuid4", world.new_id),
        (flows.runs.pause, "pause_flow_run", prefect.pause_flow_run),
        (flows.runs.pause, "suspend_flow_run", prefect.suspend_flow_run),
        # Prefect makes a new model for each form, which would take most of the time here.
        (
            flows.order.courier_wait,
            "form_for",
            lambda *_: flows.order.courier_wait.DispatchDecision,
        ),
        # A thread by the real clock, for a picture of the wait.
        (flows.order.courier_wait, "show_wait", lambda *_, **__: nullcontext()),
        (flows.runs.continuation, "run_deployment", prefect.run_deployment),
        (flows.runs.continuation, "threading", threads),
        (flows.compensation, "tags", lambda *_: nullcontext()),
        (flows.dispatch, "time", clock),
        (flows.dispatch, "order_queue", lambda: BadLineQueue(world)),
        (flows.dispatch, "ThreadPoolExecutor", OneAfterAnother),
        (flows.runs.work_pool, "runtime", runtime),
        (flows.order.events, "emit_event", lambda **_: None),
        (flows.order.events, "_publish_timeline", lambda _: None),
        (flows.order.events, "url_for", lambda *_, **__: "http://prefect/run"),
        *(
            (module, "get_client", prefect.get_client)
            for module in (
                flows.batch,
                flows.batches.listening,
                flows.compensation,
                flows.runs.continuation,
                flows.order.courier_wait,
                flows.dispatch,
                flows.runs.pause,
                flows.recovery,
                flows.runs.work_pool,
            )
        ),
    ]
    with ExitStack() as stack:
        for owner, name, stand_in in replaced:
            stack.enter_context(patch.object(owner, name, stand_in))
        yield


class _Poll:
    """Stands in for a listener of whom no notification comes through."""

    def __init__(self, world: World) -> None:
        self._world = world

    def wait(self, _seconds: float) -> None:
        self._world.sleep(1.0)

    def close(self) -> None:
        pass


class _Runner:
    """Stands in for a task runner: a chunk is carried out when it is submitted."""

    def __init__(self, prefect: Prefect) -> None:
        self._prefect = prefect

    def __enter__(self) -> "_Runner":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def submit(self, task: Task[..., Any], parameters: dict[str, Any]) -> SimpleNamespace:
        given = {name: unquoted(value) for name, value in parameters.items()}
        result = self._prefect.call_task(task, **given)
        return SimpleNamespace(result=lambda: result)


class _FlowRun:
    """Stands in for ``prefect.runtime.flow_run``."""

    def __init__(self, prefect: Prefect) -> None:
        self._prefect = prefect

    @property
    def id(self) -> str | None:
        return str(self._prefect.running_id()) if self._prefect.in_a_run() else None

    @property
    def tags(self) -> list[str]:
        return self._prefect.running().tags
