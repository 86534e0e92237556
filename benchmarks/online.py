"""Orders as they come, through the door and a batch that listens, beside DBOS and single runs.

    python -m benchmarks --only online

At each rate orders arrive for a minute (`ONLINE_SECONDS` in the environment: another time), with
skewed titles, while door, batch and dispatcher run in processes of their own. The latencies are
those of the orders' own records, from acceptance on.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from secrets import token_hex

import httpx
from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from benchmarks.ground import START_SECONDS, Ground, put_orders
from benchmarks.runs import warm_at_once
from deployments.leash import Leashed
from deployments.machine import free_port
from store.database import reading

RATES = (10, 50, 100, 200)
SECONDS = float(os.environ.get("ONLINE_SECONDS", "60"))
ORDERS_OF_DBOS = 600
SINGLE_CHECKOUTS = 50
PARTS = ("the door", "the batch", "dispatcher", "PostgreSQL", "Prefect's server")
ENDED_SECONDS = 120.0
LATENCIES = """
    SELECT percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (
               ORDER BY extract(epoch FROM sent.at - orders.created_at)),
           percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (
               ORDER BY extract(epoch FROM orders.updated_at - orders.created_at))
    FROM orders JOIN saga_log AS sent ON sent.order_id = orders.id AND sent.step = 'prepare_order'
"""
OPEN = "SELECT count(*) FROM orders WHERE status <> 'dispatched'"


def run(ground: Ground, console: Console) -> None:
    """Measure each rate, and print latencies, processor time and backlog."""
    table = Table("orders/s", "sent/s", "to waiting: p50 p95 p99, s", "to dispatched, s")
    for title in ("open at the end", *(f"{part}, ms" for part in PARTS), "CPU for each order, ms"):
        table.add_column(title, justify="right")
    for rate in RATES:
        put_orders(ground.store_url, 0)
        with ground.dispatcher(), _batch(ground), _door(ground) as door:
            before = ground.cpu_seconds()
            measured = ground.measure("arrivals", *door, rate, SECONDS)
            left = _open()
            _await_end()
            after = ground.cpu_seconds()
        orders = measured["orders"]
        each = {part: (after[part] - before[part]) / orders * 1000 for part in PARTS}
        waiting, dispatched = _latencies()
        table.add_row(
            str(rate),
            f"{orders / measured['seconds']:.1f}",
            waiting,
            dispatched,
            str(left),
            *(f"{each[part]:.2f}" for part in PARTS),
            f"{sum(each.values()):.2f}",
        )
    console.print(table)
    put_orders(ground.store_url, ORDERS_OF_DBOS)
    before = ground.cpu_seconds()
    measured = ground.measure("dbos_orders")
    postgres = ground.cpu_seconds()["PostgreSQL"] - before["PostgreSQL"]
    each_ms = (measured["cpu_seconds"] + postgres) / ORDERS_OF_DBOS * 1000
    console.print(
        f"DBOS's library at its best: {ORDERS_OF_DBOS / measured['seconds']:.1f} orders/s, "
        f"{each_ms:.2f} ms of CPU for each order, PostgreSQL's included."
    )
    put_orders(ground.store_url, 0)
    ground.system.deploy()
    ground.system.start_worker()
    a_second, each_ms = warm_at_once(ground.system, SINGLE_CHECKOUTS)
    ground.system.workers.pop().stop()
    console.print(
        f"{SINGLE_CHECKOUTS} single checkouts at once through a worker, warm: "
        f"{a_second:.1f} orders/s, {each_ms:.0f} ms of CPU for each order."
    )


@contextmanager
def _started(ground: Ground, *module: str) -> Iterator[Leashed]:
    log = ground.folder / f"{module[0]}.log"
    log.unlink(missing_ok=True)
    process = Leashed([sys.executable, "-m", *module], log=log, env=ground.environment())
    try:
        yield process
    finally:
        process.stop()


@contextmanager
def _batch(ground: Ground) -> Iterator[None]:
    """Have a batch that listens.

    Raises:
        RuntimeError: it does not listen in time.
    """
    with _started(ground, "benchmarks.listening") as process:
        _await(lambda: "Beginning flow run" in process.printed(), process)
        yield


@contextmanager
def _door(ground: Ground) -> Iterator[tuple[int, str]]:
    """Have the door served; yield its port and a token.

    Raises:
        RuntimeError: it does not answer in time.
    """
    port, token = free_port(0), token_hex(20)
    os.environ["STORE_FRONT_END_TOKENS"] = f"bench:{token}"
    with _started(ground, "console.main", "serve", "--port", str(port)) as process:
        _await(lambda: _answers(port), process)
        yield port, token
    del os.environ["STORE_FRONT_END_TOKENS"]


def _await(is_ready: Callable[[], bool], process: Leashed) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_ready():
        if process.exit_status() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"a part does not start:\n{process.log_tail()}")
        time.sleep(0.1)


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health").is_success
    except httpx.TransportError:
        return False


def _open() -> int:
    with reading() as session:
        return int(session.execute(text(OPEN)).scalar_one())


def _await_end() -> None:
    deadline = time.monotonic() + ENDED_SECONDS
    while left := _open():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{left} orders do not come to their end")
        time.sleep(0.2)


def _latencies() -> list[str]:
    with reading() as session:
        found = session.execute(text(LATENCIES)).one()
    return [" ".join(f"{seconds:.2f}" for seconds in column) for column in found]
