"""Waits of many callers for changes of orders."""

import asyncio
import logging
import threading
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Self

from orders.lookup import statuses_of
from store.outages import is_outage
from store.wakeups import ORDERS_CHANGED, Listener

logger = logging.getLogger("store.web")

LOOK_SECONDS = 0.1
"""Orders change in groups; a look at all that are waited for is not made more often."""
WAIT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class _Waiting:
    order_id: str
    seen: str
    loop: asyncio.AbstractEventLoop
    changed: asyncio.Event

    def wake(self) -> None:
        with suppress(RuntimeError):  # the server has ended, and nobody waits for it
            self.loop.call_soon_threadsafe(self.changed.set)


class Changes:
    """The thread that looks at the orders that are waited for."""

    def __init__(self) -> None:
        self._waiting: set[_Waiting] = set()
        self._has_waiting = threading.Event()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="changes", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._has_waiting.set()
        self._thread.join()

    async def wait(self, order_id: str, seen: str, seconds: float) -> None:
        """Return when the order's status is another one, or after ``seconds``."""
        waiting = _Waiting(order_id, seen, asyncio.get_running_loop(), asyncio.Event())
        self._waiting.add(waiting)
        self._has_waiting.set()
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(waiting.changed.wait(), seconds)
        finally:
            self._waiting.discard(waiting)

    def _look(self) -> None:
        with closing(Listener(ORDERS_CHANGED)) as listener:
            while not self._is_over.is_set():
                waiting = list(self._waiting)
                if not waiting:
                    listener.close()
                    self._has_waiting.clear()
                    # One may have come since the look.
                    if not self._waiting:
                        self._has_waiting.wait()
                    continue
                try:
                    self._wake_changed(waiting)
                    listener.wait(WAIT_SECONDS)
                except Exception as error:
                    if not is_outage(error):
                        logger.exception("the orders that are waited for cannot be looked at")
                self._is_over.wait(LOOK_SECONDS)

    def _wake_changed(self, waiting: list[_Waiting]) -> None:
        statuses = statuses_of({each.order_id for each in waiting})
        for each in waiting:
            if statuses.get(each.order_id) != each.seen:
                each.wake()
