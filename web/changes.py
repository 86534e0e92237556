"""Waits of many callers for changes of orders."""

import asyncio
import logging
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Self

from orders.lookup import statuses_of
from store.outages import is_outage
from store.wakeups import ORDERS_CHANGED, Listener

logger = logging.getLogger("store.web")

LOOK_SECONDS = 0.1
"""Orders change in groups; a look at all that are waited for is not made more often."""
WAIT_SECONDS = 2.0


@dataclass(eq=False, slots=True)
class _Waiting:
    order_id: str
    seen: str
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Changes:
    """The task that looks at the orders that are waited for."""

    def __init__(self) -> None:
        self._waiting: set[_Waiting] = set()
        self._has_waiting = asyncio.Event()
        self._is_over = False

    async def __aenter__(self) -> Self:
        self._looking = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._is_over = True
        self._has_waiting.set()
        await self._looking

    async def wait(self, order_id: str, seen: str, seconds: float) -> None:
        """Return when the order's status is another one, or after ``seconds``."""
        waiting = _Waiting(order_id, seen)
        self._waiting.add(waiting)
        self._has_waiting.set()
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(waiting.changed.wait(), seconds)
        finally:
            self._waiting.discard(waiting)

    async def _look(self) -> None:
        with closing(Listener(ORDERS_CHANGED)) as listener:
            while not self._is_over:
                if not self._waiting:
                    listener.close()
                    self._has_waiting.clear()
                    await self._has_waiting.wait()
                    continue
                try:
                    await self._wake_changed()
                    await asyncio.to_thread(listener.wait, WAIT_SECONDS)
                except Exception as error:
                    if not is_outage(error):
                        logger.exception("the orders that are waited for cannot be looked at")
                await asyncio.sleep(LOOK_SECONDS)

    async def _wake_changed(self) -> None:
        waiting = list(self._waiting)
        statuses = await asyncio.to_thread(statuses_of, {each.order_id for each in waiting})
        for each in waiting:
            if statuses.get(each.order_id) != each.seen:
                each.changed.set()
