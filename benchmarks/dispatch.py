"""What a message costs the dispatcher, from a few waiting orders to thousands.

    python -m benchmarks.dispatch [--sizes 100 1000 10000]

Each size gets a shop of its own with so many orders that wait, each with a paused run of its own on
a real Prefect server; then `dispatch_orders` is measured from the first message until every order
is decided and every run resumed. The runs have no process: what a run does after its resume is not
the dispatcher's cost. Read the ratios, not the times: all sizes share one machine and one server.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

from prefect import flow, get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Paused, Running
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sqlalchemy import update
from sqlmodel import col, select

from deployments.local import LocalSystem
from flows.dispatch import DispatchReport, InHand, look_after, take_in
from seed.catalogue import JOHN_DOE, TEN_X_RULE, empty, put_shop
from store.database import reading, transaction
from store.messages import CheckoutOrder
from store.models import Book, Courier, Order, OrderStatus
from store.queue import order_queue
from store.settings import settings
from tasks.billing import bill_customer
from tasks.dispatch import prepare_order
from tasks.inventory import check_inventory
from tasks.orders import accept_order
from tasks.pricing import calculate_total

SETUP_THREADS = 8
CHUNK = 500


@flow(name="paused-order")
def paused_order() -> None:
    """Stand for a checkout that waits; never executed."""


def measure(size: int) -> float:
    """Return the seconds in which ``size`` orders were decided and their runs resumed."""
    order_ids = _prepare_orders(size)
    with get_client(sync_client=True) as client:
        _pause_runs(client, order_ids)
        queue, report, in_hand = order_queue(), DispatchReport(), dict[str, InHand]()
        with ThreadPoolExecutor(8) as resumers:
            started = time.perf_counter()
            while report.resumed < size:
                take_in(queue, in_hand, 0.0, report)
                look_after(queue, in_hand, client, resumers, report)
            return time.perf_counter() - started


def _prepare_orders(size: int) -> list[str]:
    """Put a fresh shop with ``size`` orders that wait, their messages in the queue."""
    empty()
    put_shop()
    with transaction() as session:
        session.execute(update(Book).values(quantity=size, initial_quantity=size))
        session.execute(update(Courier).values(capacity_copies=size))
    order = CheckoutOrder(user_id=JOHN_DOE, book_id=TEN_X_RULE, quantity=1)
    ids = [f"order-{number:06d}" for number in range(size)]
    for order_id in track(ids, description=f"{size} orders"):
        accept_order(order.model_copy(update={"order_id": order_id}), order_id[:36])
    for start in range(0, size, CHUNK):
        for step in (check_inventory, calculate_total, bill_customer, prepare_order):
            step.fn(ids[start : start + CHUNK])
    return ids


def _pause_runs(client: SyncPrefectClient, order_ids: Sequence[str]) -> None:
    """Give each order a paused run."""

    def pause(order_id: str) -> None:
        run = client.create_flow_run(paused_order, state=Running())
        client.set_flow_run_state(run.id, Paused(timeout_seconds=3600))
        with transaction() as session:
            session.execute(
                update(Order).where(col(Order.id) == order_id).values(run_id=str(run.id))
            )

    with ThreadPoolExecutor(SETUP_THREADS) as threads:
        for _ in track(threads.map(pause, order_ids), total=len(order_ids), description="runs"):
            pass
    with reading() as session:
        run_ids = session.exec(
            select(Order.run_id).where(col(Order.status) == OrderStatus.WAITING)
        ).all()
    assert len({UUID(id_) for id_ in run_ids if id_}) == len(order_ids)  # noqa: S101


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dispatch", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1_000, 10_000])
    sizes = parser.parse_args(arguments).sizes
    console = Console()
    table = Table("messages", "ms for each", "ratio to the first")
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        LocalSystem(Path(folder), report=console.print, preferred_port=0) as system,
        temporary_settings({PREFECT_API_URL: system.api_url}),
    ):
        os.environ["STORE_DATABASE_URL"] = system.store_url
        settings.cache_clear()
        first = 0.0
        for size in sizes:
            milliseconds = measure(size) / size * 1000
            first = first or milliseconds
            table.add_row(str(size), f"{milliseconds:.1f}", f"{milliseconds / first:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
