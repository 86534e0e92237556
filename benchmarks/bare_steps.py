"""The measured process of the steps alone: the same tasks, without Prefect around them.

One chunk after the other, and then the messages as the dispatcher handles them.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.ground import RUN_ID, answer
from flows.batches.chunk import STEPS
from flows.dispatch import GROUP
from orders.batches import begin_batch, pages_of_run
from orders.decisions import decisions_of, runs_of_open_orders
from orders.intake import claim_orders
from store.messages import OrderMessage
from store.models import OrderStatus
from store.partners import order_queue
from tasks.couriers import find_couriers
from tasks.dispatch import dispatch_order


def main(chunk_size: int) -> None:
    """Measure; the shop is prepared."""
    begin_batch(RUN_ID, None)
    seconds: defaultdict[str, float] = defaultdict(float)
    cpu_seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        started, cpu = time.perf_counter(), time.process_time()
        yield
        seconds[step] += time.perf_counter() - started
        cpu_seconds[step] += time.process_time() - cpu

    while True:
        with timed("claim_orders"):
            claimed = claim_orders(RUN_ID, chunk_size)
        if not claimed:
            break
        for step in STEPS:
            with timed(step.name):
                step.fn(claimed)
    queue = order_queue()
    while True:
        with timed("receive"):
            received = queue.receive(GROUP, 0)
        if not received:
            break
        with timed("find_couriers"):
            messages = [OrderMessage.model_validate_json(message.body) for message in received]
            runs_of_open_orders(messages)
            find_couriers.fn(messages)
            decisions_of(messages)
        with timed("delete"):
            queue.delete(received)
    for page in pages_of_run(RUN_ID, [OrderStatus.DISPATCHING], chunk_size):
        with timed(dispatch_order.name):
            dispatch_order.fn(page)
    answer(seconds=seconds, cpu_seconds=cpu_seconds)


if __name__ == "__main__":
    main(int(sys.argv[1]))
