"""Group commit of the orders that come in together.

A transaction takes nearly the same time for one order as for fifty, and those that notify are
committed one after the other.
"""

import asyncio
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Self

from orders.intake import submit_orders
from store.errors import RefusedOrder
from store.messages import CheckoutOrder

GATHER_SECONDS = 0.1
"""Orders that come in within this time of the last transaction's beginning share the next one."""
TOGETHER_AT_MOST = 200
"""Orders that are recorded in one transaction."""

Answer = bool | RefusedOrder
"""Whether an order is new, or why it is refused."""


@dataclass(frozen=True, slots=True)
class _Coming:
    order: CheckoutOrder
    front_end: str
    loop: asyncio.AbstractEventLoop
    answer: "asyncio.Future[Answer]"

    def settle(self, answer: Answer | Exception) -> None:
        with suppress(RuntimeError):  # the server has ended, and nobody waits for it
            self.loop.call_soon_threadsafe(self._settle, answer)

    def _settle(self, answer: Answer | Exception) -> None:
        if self.answer.done():
            return  # who asked has gone
        if isinstance(answer, RefusedOrder) or not isinstance(answer, Exception):
            self.answer.set_result(answer)
        else:
            self.answer.set_exception(answer)


class Intake:
    """The thread that records the orders."""

    def __init__(self) -> None:
        self._coming: SimpleQueue[_Coming | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._record_all, name="intake", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._coming.put(None)
        self._thread.join()

    async def submit(self, order: CheckoutOrder, front_end: str) -> Answer:
        """Record an order with those that come in now.

        Returns:
            Whether it is new, or why it is refused.

        Raises:
            Exception: the database's; the order may be recorded or not.
        """
        loop = asyncio.get_running_loop()
        coming = _Coming(order, front_end, loop, loop.create_future())
        self._coming.put(coming)
        return await coming.answer

    def _record_all(self) -> None:
        began = 0.0
        while (first := self._coming.get()) is not None:
            time.sleep(max(0.0, began + GATHER_SECONDS - time.monotonic()))
            began = time.monotonic()
            group = [first]
            with suppress(Empty):
                while len(group) < TOGETHER_AT_MOST:
                    following = self._coming.get_nowait()
                    if following is None:
                        self._coming.put(None)
                        break
                    group.append(following)
            for front_end in dict.fromkeys(coming.front_end for coming in group):
                _record([coming for coming in group if coming.front_end == front_end], front_end)


def _record(group: Sequence[_Coming], front_end: str) -> None:
    try:
        answers = submit_orders([coming.order for coming in group], front_end)
    except Exception as error:
        for coming in group:
            coming.settle(error)
        return
    for coming, answer in zip(group, answers, strict=True):
        coming.settle(answer)
