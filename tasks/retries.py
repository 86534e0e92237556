"""Retry conditions and delays of tasks and flows."""

import functools
import logging
import random
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.tasks import Task

from store.errors import RetryableError
from store.outages import is_outage

logger = logging.getLogger("store.retries")

RETRIES = 3
"""The original retries BillCustomer three times; the same patience serves every step."""
RETRY_DELAYS_SECONDS = [1.0, 4.0, 10.0]
"""Long enough for a restart of a database, short enough for a customer who waits."""
RETRY_JITTER = 0.5
"""Spreads the retries of many runs that were hit by the same outage."""

_tries_left: ContextVar[int | None] = ContextVar("_tries_left", default=None)
"""The retries that :func:`retried` has left for the present call."""

P = ParamSpec("P")
T = TypeVar("T")


def retried_task(work: Callable[P, T]) -> Task[P, T]:
    """Make a Prefect task that is retried after a transient failure.

    Nothing of it is cached: what is done is in the database, and is asked there.
    """
    return task(
        retries=RETRIES,
        retry_delay_seconds=RETRY_DELAYS_SECONDS,
        retry_jitter_factor=RETRY_JITTER,
        retry_condition_fn=if_transient,
        cache_policy=NO_CACHE,
    )(work)


def is_transient(error: BaseException) -> bool:
    """Return whether the same call may succeed later."""
    return isinstance(error, RetryableError) or is_outage(error)


def if_transient(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Return whether Prefect should retry the failed task.

    An order's own error is never retried.
    """
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and is_transient(error)


def is_last_try() -> bool:
    """Return whether the running task, or retried call, has no retry left."""
    if (left := _tries_left.get()) is not None:
        return left == 0
    run = TaskRunContext.get()
    return run is None or run.task_run.run_count > run.task.retries


def retried(call: Callable[P, T]) -> Callable[P, T]:
    """Retry a flow's database call as tasks are retried.

    The call must be safe to repeat: an outage may hide that it was committed.
    """

    @functools.wraps(call)
    def retry(*args: P.args, **kwargs: P.kwargs) -> T:
        for left in range(RETRIES, -1, -1):
            tries_left = _tries_left.set(left)
            try:
                return call(*args, **kwargs)
            except Exception as error:
                if not is_transient(error) or left == 0:
                    raise
                logger.warning("%s is retried: %s", call.__name__, error)
            finally:
                _tries_left.reset(tries_left)
            delay_seconds = RETRY_DELAYS_SECONDS[RETRIES - left]
            time.sleep(delay_seconds * random.uniform(1 - RETRY_JITTER, 1 + RETRY_JITTER))  # noqa: S311
        raise AssertionError("the last try returns or raises")

    return retry
