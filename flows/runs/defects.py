"""Isolation of a defect to the order that causes it."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from flows.runs.work_pool import SERVER_AWAY
from store.errors import CompensationFailed, OrderError, QueueRefused, TopicRefused
from tasks.retries import is_transient

NO_DEFECT = (*SERVER_AWAY, OrderError, CompensationFailed, QueueRefused, TopicRefused)
"""Errors that any order would meet, or that were dealt with order by order."""

T = TypeVar("T")


def is_interruption(error: BaseException) -> bool:
    """Return whether the error is an outage, of Prefect's server too."""
    return is_transient(error) or isinstance(error, SERVER_AWAY)


def narrow_down(
    work: Callable[[list[T]], object],
    group: Sequence[T],
    on_failure: Callable[[list[T], Exception], object],
) -> None:
    """Do work for a group, narrowing a defect down to its order.

    A part that a defect stops is halved, and the work is done for each half.

    Args:
        work: Called with the group, or a part of it; repeating what it has done must be safe.
        group: The orders.
        on_failure: Called where work failed, with the error: with one order for a defect,
            with the whole part for an error that is no order's own.
    """
    part = list(group)
    try:
        work(part)
    except Exception as error:
        if len(part) == 1 or is_transient(error) or isinstance(error, NO_DEFECT):
            on_failure(part, error)
            return
        middle = len(part) // 2
        narrow_down(work, part[:middle], on_failure)
        narrow_down(work, part[middle:], on_failure)
