"""What an order costs while it waits for its courier: memory, in both ways to wait.

    python -m benchmarks.waiting [--orders 12]

So many orders wait on a system of their own, first paused, then as many suspended. Memory is PSS,
which counts what processes share once. It is that of the whole system: server, database, worker,
runs.
"""

import sys
import tempfile
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table
from sqlalchemy import text
from sqlmodel import col, func, select

from deployments.holdings import open_store
from deployments.local import CHECKOUT_DEPLOYMENT, DISPATCH_DEPLOYMENT, LocalSystem
from deployments.prefect_server import PrefectServer
from flows.runs.pause import Wait
from fork_server import status
from seed.catalogue import JOHN_DOE, STRIPED_PAJAMAS
from store.models import Order, OrderStatus
from terminal.command_line import command
from terminal.numbers import WholeNumber

WARM_UP_ORDERS = 4
SETTLE_SECONDS = 10.0
"""What has just started gives some of its memory back."""
POLL_SECONDS = 1.0
DEADLINE_SECONDS = 1200.0
STATES: dict[Wait, str] = {"pause": "Paused", "suspend": "Suspended"}


def start_and_wait(
    local: LocalSystem, api: PrefectServer, prefix: str, count: int, wait: Wait
) -> None:
    """Start orders and return when all of them wait.

    Raises:
        SystemExit: not all of them do in time.
    """
    runs = []
    for number in range(count):
        order = {
            "orderId": f"{prefix}-{number}",
            "userId": JOHN_DOE,
            "bookId": STRIPED_PAJAMAS,
            "quantity": 1,
        }
        runs.append(api.start_run(CHECKOUT_DEPLOYMENT, {"order": order, "wait": wait}).id)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while any(api.read_run(id_).state_name != STATES[wait] for id_ in runs):
        if time.monotonic() > deadline:
            raise SystemExit(f"not all orders wait after {DEADLINE_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)
    time.sleep(SETTLE_SECONDS)
    with open_store(local.store_url) as session:
        waiting = session.scalar(
            select(func.count())
            .select_from(Order)
            .where(col(Order.status) == OrderStatus.WAITING, col(Order.id).startswith(prefix))
        )
    if waiting != count:
        raise SystemExit(f"{waiting} of {count} orders wait")


def memory() -> tuple[int, int]:
    """Return the bytes that the system has (PSS), and how many processes."""
    processes = {*psutil.Process().children(recursive=True)}
    for each in status.servers():
        # It is nobody's child any more, and its own children are runs.
        server = psutil.Process(each.pid)
        processes |= {server, *server.children(recursive=True)}
    found = [process.memory_full_info().pss for process in processes]
    return sum(found), len(found)


def database_bytes(local: LocalSystem) -> int:
    """Return the size of the store's database and of Prefect's."""
    with open_store(local.store_url) as session:
        return int(
            session.execute(
                text("SELECT sum(pg_database_size(datname)) FROM pg_database")
            ).scalar_one()
        )


@command("python -m benchmarks.waiting", __doc__)
def main(*, orders: WholeNumber = 12) -> None:
    """Measure what so many orders cost while they wait, in each way."""
    count = orders
    console = Console()
    free_bytes = psutil.virtual_memory().available
    table = Table(
        *("wait", "processes for each", "MB of memory for each", "KB on disk for each"),
        f"orders in {free_bytes / 2**30:.0f} GB of free memory",
    )
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        LocalSystem(Path(folder), report=console.print, preferred_port=0) as local,
        local.api() as api,
    ):
        for deployment in (DISPATCH_DEPLOYMENT, "recover-orders/local"):
            api.pause(deployment)
        # Server, worker and database keep what the first runs make them load.
        start_and_wait(local, api, "warm-up", WARM_UP_ORDERS, "suspend")
        for wait in STATES:
            bytes_before, processes_before = memory()
            on_disk_before = database_bytes(local)
            start_and_wait(local, api, wait, count, wait)
            bytes_after, processes_after = memory()
            processes = (processes_after - processes_before) / count
            each = (bytes_after - bytes_before) / count
            table.add_row(
                wait,
                f"{processes:.1f}",
                f"{each / 2**20:.1f}",
                f"{(database_bytes(local) - on_disk_before) / count / 2**10:.0f}",
                f"{free_bytes / each:.0f}" if processes else "not limited by it: no process",
            )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
