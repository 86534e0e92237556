"""The measured process of single checkouts, and of empty flows with as many empty tasks.

Both run in turns. An order finds its courier's decision recorded when it asks for it, and what the
dispatcher takes for that is not in its time; all else is the real flow: intake, six tasks, saga
log, events, timeline.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from prefect import flow, task

from benchmarks.ground import an_order, answer
from flows import checkout
from store.messages import OrderMessage
from store.models import utc_now
from tasks.couriers import find_couriers
from tasks.dispatch import prepare_order
from tasks.steps import SEQUENCE

WARM_UP = 3


def _step(name: str) -> Any:
    @task(name=name)
    def empty() -> None:
        """Do nothing."""

    return empty


STEPS = [_step(name) for name in SEQUENCE]


@flow(name="empty-checkout")
def empty_checkout() -> None:
    """Run as many tasks as a checkout."""
    for step in STEPS:
        step()


def main(times: int) -> None:
    """Measure; the shop is prepared."""
    checkouts, deciding, empty = [], [], []

    def prepare_and_decide(order_ids: list[str]) -> None:
        """Stand for `prepare_order` and a dispatcher that is as fast as can be."""
        prepare_order(order_ids)
        started = time.perf_counter()
        find_couriers.fn([OrderMessage(order_id=id_, attempt=1, copies=1) for id_ in order_ids])
        deciding.append(time.perf_counter() - started)

    vars(checkout)["prepare_order"] = prepare_and_decide
    began_cpu = 0.0
    for number in range(WARM_UP + times):
        if number == WARM_UP:
            began_cpu = time.process_time()
        order = an_order(number).model_copy(update={"redeem": True})
        checkouts.append(_seconds(partial(checkout.store_checkout, order)) - deciding[-1])
        empty.append(_seconds(empty_checkout))
    answer(
        checkouts=checkouts[WARM_UP:],
        empty=empty[WARM_UP:],
        cpu_seconds=time.process_time() - began_cpu,
    )


def _seconds(run: Callable[..., Any]) -> float:
    """Return the time until Prefect has the run as completed.

    The call returns later: Prefect's thread of heartbeats sleeps whole seconds, and is waited for.
    """
    started = utc_now()
    state = run(return_state=True)
    state.result()
    return float((state.timestamp - started).total_seconds())


if __name__ == "__main__":
    main(int(sys.argv[1]))
