"""What a message costs the dispatcher, from a hundred waiting orders to ten thousand.

Each round gets a shop of its own with so many orders that wait, each with a paused run of its own;
then the dispatcher is measured from the first message until every order is decided and every run
resumed. The runs have no process: what a run does after its resume is not the dispatcher's cost.
`own` is the part that is not spent in resuming, which Prefect's server sets the pace of.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from statistics import median_low
from threading import Lock
from typing import Any

from prefect import flow, get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW,
    temporary_settings,
)
from prefect.states import Paused
from rich.console import Console
from rich.table import Table

from benchmarks.ground import RUN_ID, Ground, put_orders
from flows import dispatch
from flows.batches.chunk import STEPS as BATCH_STEPS
from flows.dispatch import IN_HAND_AT_MOST, RESUMERS, DispatchReport, InHand, look_after, take_in
from orders.intake import claim_orders
from store.bulk import update_rows
from store.database import transaction
from store.models import Order
from store.partners import order_queue

ROUNDS = {100: 5, 1_000: 3, 10_000: 1}
"""How often each number of messages is measured: a small one has more chance in it."""
WARM_UP = 100
SETTLED_SHARE = 0.1
"""Of a core: below it, Prefect's server has taken up what came of making the runs."""
SETTLE_SECONDS = 300.0
WINDOW_SECONDS = 3.0
SETUP_THREADS = 16


@flow(name="paused-order")
def paused_order() -> None:
    """Stand for a checkout that waits; never executed."""


def run(ground: Ground, console: Console) -> None:
    """Measure each size; medians of its rounds."""
    table = Table("messages", "ms for each", "ratio to the first", "own, ms", "own, ratio")
    first = None
    outside = {
        PREFECT_API_URL: ground.system.api_url,
        # The steps are called outside a flow run here.
        PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW: "ignore",
    }
    with temporary_settings(outside):
        _measure(ground, WARM_UP)
        for size, rounds in ROUNDS.items():
            measured = [_measure(ground, size) for _ in range(rounds)]
            each = [median_low(column) / size * 1000 for column in zip(*measured, strict=True)]
            first = first or each
            table.add_row(
                f"{size:,}",
                f"{each[0]:.1f}",
                f"{each[0] / first[0]:.2f}",
                f"{each[1]:.2f}",
                f"{each[1] / first[1]:.2f}",
            )
    console.print(table)


def _measure(ground: Ground, size: int) -> tuple[float, float]:
    """Return the seconds in which all was decided and resumed, and those without the resumes."""
    put_orders(ground.store_url, size)
    resuming = started_resuming = 0.0
    under_way, lock = 0, Lock()

    class Resumers(ThreadPoolExecutor):
        """The dispatcher's pool, with a clock that goes while any run is being resumed."""

        def submit(self, *call: Any, **options: Any) -> Any:
            nonlocal under_way, started_resuming
            with lock:
                if not under_way:
                    started_resuming = time.perf_counter()
                under_way += 1
            answer = super().submit(*call, **options)
            answer.add_done_callback(stop)
            return answer

    def stop(_: Future[Any]) -> None:
        nonlocal under_way, resuming
        with lock:
            under_way -= 1
            if not under_way:
                resuming += time.perf_counter() - started_resuming

    with get_client(sync_client=True) as client, Resumers(RESUMERS) as resumers:
        _let_orders_wait(client)
        _let_server_settle(ground)
        queue, report, in_hand = order_queue(), DispatchReport(), dict[str, InHand]()
        started = time.perf_counter()
        while report.resumed < size:
            if len(in_hand) < IN_HAND_AT_MOST:
                take_in(queue, in_hand, 0.0, report)
            look_after(queue, in_hand, client, resumers, report)
            if len(in_hand) >= IN_HAND_AT_MOST:
                # The runs have no process that would end their orders, and so free the hands.
                in_hand.clear()
        seconds = time.perf_counter() - started
    return seconds, seconds - resuming


def _let_orders_wait(client: SyncPrefectClient) -> None:
    """Carry all orders up to their wait, each owned by a paused run of its own."""
    while order_ids := claim_orders(RUN_ID, dispatch.GROUP):
        _own(client, order_ids)
        for step in BATCH_STEPS:
            step.fn(order_ids)


def _let_server_settle(ground: Ground) -> None:
    """Wait until Prefect's server has nothing left to do."""
    deadline = time.monotonic() + SETTLE_SECONDS
    share = 1.0
    while share > SETTLED_SHARE:
        if time.monotonic() > deadline:
            raise RuntimeError("Prefect's server does not come to rest")
        before = ground.cpu_seconds()["Prefect's server"]
        time.sleep(WINDOW_SECONDS)
        share = (ground.cpu_seconds()["Prefect's server"] - before) / WINDOW_SECONDS


def _own(client: SyncPrefectClient, order_ids: Sequence[str]) -> None:
    def pause(order_id: str) -> dict[str, str]:
        run = client.create_flow_run(paused_order, state=Paused(timeout_seconds=7200))
        return {"id": order_id, "run_id": str(run.id)}

    with ThreadPoolExecutor(SETUP_THREADS) as threads:
        owned = list(threads.map(pause, order_ids))
    with transaction() as session:
        update_rows(session, Order, owned)
