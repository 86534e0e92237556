"""One Prefect flow run for each order, as async subflows: the obvious way to write a batch.

The steps are the store's own, for one order each, as tasks of the subflow. As many subflows run
at a time as were found to be fastest, and the garbage collector is spared as in a batch.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from sqlmodel import col, select

from benchmarks.ground import RUN_ID, answer
from flows.batches.bulk import few_collections
from flows.batches.chunk import STEPS as BATCH_STEPS
from orders.batches import begin_batch
from orders.intake import claim_orders
from store.database import reading
from store.messages import OrderMessage
from store.models import Order, OrderStatus
from tasks.couriers import find_couriers
from tasks.dispatch import dispatch_order

AT_ONCE = 8


def _as_task(name: str, step: Callable[[list[str]], Any]) -> Any:
    @task(name=name, cache_policy=NO_CACHE)
    async def run(order_id: str) -> None:
        await asyncio.to_thread(step, [order_id])

    return run


def _decide(order_ids: list[str]) -> None:
    find_couriers.fn(
        [OrderMessage(order_id=order_id, attempt=1, copies=1) for order_id in order_ids]
    )


STEPS = [
    *(_as_task(step.name, step.fn) for step in BATCH_STEPS),
    _as_task("find_couriers", _decide),
    _as_task("dispatch_order", dispatch_order.fn),
]


@flow(name="one-order")
async def one_order(order_id: str) -> None:
    """Carry out one order."""
    for step in STEPS:
        await step(order_id)


@flow(name="orders-as-subflows")
async def all_orders(order_ids: list[str]) -> None:
    """Carry out each order in a subflow of its own."""
    free = asyncio.Semaphore(AT_ONCE)

    async def carry_out(order_id: str) -> None:
        async with free:
            await one_order(order_id)

    await asyncio.gather(*(carry_out(order_id) for order_id in order_ids))


def main() -> None:
    """Measure; the shop is prepared."""
    begin_batch(RUN_ID, None)
    order_ids: list[str] = []
    while claimed := claim_orders(RUN_ID, 1_000):
        order_ids += claimed
    started = time.perf_counter()
    with few_collections():
        asyncio.run(all_orders(order_ids))
    seconds = time.perf_counter() - started
    with reading() as session:
        left = session.scalars(
            select(Order.id).where(col(Order.status) != OrderStatus.DISPATCHED)
        ).all()
    assert not left, f"{len(left)} orders are not dispatched"
    answer(orders=len(order_ids), seconds=seconds)


if __name__ == "__main__":
    main()
