"""Pass large lists to Prefect tasks without per-item overhead.

Prefect looks into each collection that goes into a task or comes out of one, and keeps an entry
for each value that came out until the run has ended. It does so to know which task follows from
which, which is not needed here.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from prefect import Task
from prefect.context import FlowRunContext
from prefect.utilities.annotations import quote

from tasks.retries import retried

T = TypeVar("T")
Call = Callable[[Task[[list[str]], list[str]], list[str]], list[str]]
"""How a task is called for a group of orders."""

USUALLY = gc.get_threshold()
COLLECT_AFTER = 50_000
"""New objects at which the garbage collector looks through them; Python's default is 700. More take
more memory, and save nothing that could be measured."""


def as_one(values: Sequence[Any]) -> Any:
    """Return these values as one task argument, opaque to Prefect."""
    return quote(values)


def as_task_run(task: Task[[list[T]], list[str]], group: list[T]) -> list[str]:
    """Call a task for a group with a task run."""
    return task(as_one(group))


def without_task_run(task: Task[[list[str]], list[str]], order_ids: list[str]) -> list[str]:
    """Call a task for a group, with retries but no task run.

    A task run costs more than the work on a few orders, and thousands of them show people nothing.
    """
    return retried(task.fn)(order_ids)


def forget_results() -> None:
    """Drop what the executing flow run holds of its tasks' results."""
    context = FlowRunContext.get()
    if context is not None:
        context.run_results.clear()


@contextmanager
def few_collections() -> Iterator[None]:
    """Reduce garbage collection while thousands of rows are processed.

    Rows are in no cycle and need no collector, but they are many, and make it look through all
    that Prefect's modules hold, again and again: a third of the processor time of a batch's run.
    So what is there already is left out, and new objects are looked through more seldom.
    """
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, *USUALLY[1:])
    try:
        yield
    finally:
        gc.set_threshold(*USUALLY)
        gc.unfreeze()
