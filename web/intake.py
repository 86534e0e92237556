"""Group commit of the orders that come in together.

A transaction takes nearly the same time for one order as for fifty, and those that notify are
committed one after the other.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
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
    answer: "asyncio.Future[Answer]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Intake:
    """The task that records the orders."""

    def __init__(self) -> None:
        self._coming: asyncio.Queue[_Coming] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        self._recording = asyncio.create_task(self._record_all())
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._coming.join()
        self._recording.cancel()
        with suppress(asyncio.CancelledError):
            await self._recording

    async def submit(self, order: CheckoutOrder, front_end: str) -> Answer:
        """Record an order with those that come in now.

        Returns:
            Whether it is new, or why it is refused.

        Raises:
            Exception: the database's; the order may be recorded or not.
        """
        coming = _Coming(order, front_end)
        self._coming.put_nowait(coming)
        return await coming.answer

    async def _record_all(self) -> None:
        began = 0.0
        while True:
            group = [await self._coming.get()]
            await asyncio.sleep(max(0.0, began + GATHER_SECONDS - time.monotonic()))
            began = time.monotonic()
            while not self._coming.empty() and len(group) < TOGETHER_AT_MOST:
                group.append(self._coming.get_nowait())
            for front_end in dict.fromkeys(coming.front_end for coming in group):
                await _record([each for each in group if each.front_end == front_end], front_end)
            for _ in group:
                self._coming.task_done()


async def _record(group: Sequence[_Coming], front_end: str) -> None:
    try:
        orders = [coming.order for coming in group]
        answers = await asyncio.to_thread(submit_orders, orders, front_end)
    except Exception as error:
        for coming in group:
            if not coming.answer.done():  # else who asked has gone
                coming.answer.set_exception(error)
        return
    for coming, answer in zip(group, answers, strict=True):
        if not coming.answer.done():
            coming.answer.set_result(answer)
