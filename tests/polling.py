"""Waiting for what comes by itself, in another thread, process or server."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 60.0
"""Much longer than anything takes here; reached only when something is wrong."""


def wait_until(
    look: Callable[[], T | None],
    what: str,
    *,
    patience_seconds: float = PATIENCE_SECONDS,
    poll_seconds: float = 0.05,
) -> T:
    """Look again and again until there is something, and return it; fail if it never comes.

    It looks ever more rarely, since each look takes time from what is waited for.
    """
    longest_seconds = 5 * poll_seconds
    deadline = time.monotonic() + patience_seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, f"no {what} in {patience_seconds:.0f} s"
        time.sleep(poll_seconds)
        poll_seconds = min(poll_seconds * 1.25, longest_seconds)
    return seen
