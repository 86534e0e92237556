"""Many values through Prefect's tasks, at the cost and the memory of one.

Prefect looks into each collection that goes into a task or comes out of one, and keeps an entry
for each value that came out until the run has ended. It does so to know which task follows from
which, which nobody asks here.
"""

from collections.abc import Sequence
from typing import Any

from prefect.context import FlowRunContext
from prefect.utilities.annotations import quote


def as_one(values: Sequence[Any]) -> Any:
    """Return the argument of a task that gets these values, as one value to Prefect."""
    return quote(values)


def forget_results() -> None:
    """Let the flow run that executes this keep nothing of what its tasks have returned so far."""
    context = FlowRunContext.get()
    if context is not None:
        context.run_results.clear()
