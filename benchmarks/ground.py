"""What every benchmark stands on: one real system, shops with orders, processes to measure.

What is measured runs in a process of its own, so that its time and its memory are its own: a
measured process is `python -m benchmarks.<name>`, and its last line is one JSON object.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import text, update
from sqlmodel import SQLModel, col

from deployments.leash import Leashed
from deployments.local import PROJECT_DIR, LocalSystem
from deployments.machine import inherited_environment
from orders.intake import submit_orders
from seed.catalogue import popularity, put_catalogue, put_shop
from store.database import engine, reading, transaction
from store.messages import CheckoutOrder
from store.models import Book, Courier
from store.settings import settings

BOOKS = 1_000
CUSTOMERS = 5_000
ENOUGH = 10_000_000
"""Copies of each title, and of what each courier carries: no order fails."""
GROUP = 1_000
CART_SHARE = 0.2
REDEEM_SHARE = 0.25
MEASURED_SECONDS = 1_800.0
START_SECONDS = 120.0
WEIGHTS = popularity(BOOKS)
RUN_ID = "00000000-0000-0000-0000-000000000000"
"""Owns the orders where no run of Prefect's does."""


@dataclass
class Ground:
    """A Prefect server and a PostgreSQL, and what is run against them."""

    system: LocalSystem
    folder: Path

    @property
    def store_url(self) -> str:
        """The address of the store's database."""
        return self.system.store_url

    def environment(self, code: Path = PROJECT_DIR) -> dict[str, str]:
        """Return the environment of a measured process, which works with the code of a folder."""
        return {**inherited_environment(), **self.system.settings(), "PYTHONPATH": str(code)}

    def measure(self, module: str, *arguments: object, code: Path = PROJECT_DIR) -> dict[str, Any]:
        """Run a measured process to its end.

        Args:
            module: This folder's module.
            arguments: The process's arguments.
            code: The folder of the code that is measured, such as an earlier build.

        Returns:
            What it has measured, by its `answer`.

        Raises:
            RuntimeError: it failed; the message has the last of its errors.
            subprocess.TimeoutExpired: it does not come to an end.
        """
        finished = subprocess.run(
            [sys.executable, Path(__file__).with_name(f"{module}.py"), *map(str, arguments)],
            cwd=code,
            env=self.environment(code),
            capture_output=True,
            text=True,
            timeout=MEASURED_SECONDS,
            check=False,
        )
        if finished.returncode:
            raise RuntimeError(f"benchmarks.{module} failed:\n{finished.stderr[-4_000:]}")
        measured: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
        return measured

    @contextmanager
    def dispatcher(self, code: Path = PROJECT_DIR) -> Iterator[None]:
        """Have a dispatcher that listens, in a process of its own as in production.

        Raises:
            RuntimeError: it does not listen in time; the message has the last of its log.
        """
        log = self.folder / "dispatcher.log"
        log.unlink(missing_ok=True)
        process = Leashed(
            [sys.executable, str(Path(__file__).with_name("listener.py"))],
            log=log,
            env=self.environment(code),
        )
        try:
            deadline = time.monotonic() + START_SECONDS
            while "Beginning flow run" not in process.printed():
                if process.exit_status() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the dispatcher does not listen:\n{process.log_tail()}")
                time.sleep(0.1)
            yield
        finally:
            process.stop()

    def cpu_seconds(self) -> dict[str, float]:
        """Return the processor time that each part of the system has used up to now."""
        seconds: defaultdict[str, float] = defaultdict(float)
        for process in psutil.Process().children(recursive=True):
            try:
                command, times = " ".join(process.cmdline()), process.cpu_times()
                name = process.name()
            except psutil.NoSuchProcess:
                continue
            if "benchmarks/listener" in command:
                part = "dispatcher"
            elif "benchmarks.listening" in command:
                part = "the batch"
            elif "console.main serve" in command:
                part = "the door"
            elif "uvicorn" in command or "server start" in command:
                part = "Prefect's server"
            elif name.startswith("postgres"):
                part = "PostgreSQL"
            else:
                continue
            seconds[part] += times.user + times.system
            if part == "PostgreSQL":
                # The backends that have ended, since their client has.
                seconds[part] += times.children_user + times.children_system
        return seconds


@contextmanager
def ground() -> Iterator[Ground]:
    """Start what the benchmarks stand on; nothing else runs on it, neither worker nor schedule."""

    def report(line: str) -> None:
        print(line, file=sys.stderr)  # noqa: T201  (progress, apart from the results)

    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        LocalSystem(Path(folder), report=report, preferred_port=0, worker=False) as system,
    ):
        yield Ground(system, Path(folder))


def use(database_url: str) -> None:
    """Make this process work on a database of the store."""
    os.environ["STORE_DATABASE_URL"] = database_url
    settings.cache_clear()


def put_orders(database_url: str, count: int) -> None:
    """Put a fresh shop of which ``count`` orders are submitted, the same ones each time."""
    use(database_url)
    tables = [table.name for table in reversed(SQLModel.metadata.sorted_tables)]
    with transaction() as session:
        # First what a dispatcher locks first: it may still be at the round before.
        session.execute(text("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE"))
        session.execute(text(f"TRUNCATE {', '.join(tables)}"))
    put_shop()
    put_catalogue(BOOKS, CUSTOMERS)
    with transaction() as session:
        session.execute(
            update(Book).values(
                quantity=ENOUGH,
                initial_quantity=ENOUGH,
                # No total is a whole unit, which points alone could pay: by the order of a batch's
                # chunks another of a customer's orders has the points, and one more is billed.
                price_cents=col(Book.price_cents) - col(Book.price_cents) % 100 + 1,
            )
        )
        session.execute(update(Courier).values(capacity_copies=ENOUGH))
    submit(0, count)


def submit(first: int, count: int) -> None:
    """Submit the orders from number ``first`` on."""
    for start in range(first, first + count, GROUP):
        submit_orders([an_order(n) for n in range(start, min(start + GROUP, first + count))])
    outside = engine(settings().database_url).execution_options(isolation_level="AUTOCOMMIT")
    # As autovacuum would before the night; else it comes in the middle of a measurement.
    with outside.connect() as connection:
        connection.execute(text("VACUUM ANALYZE"))


def an_order(number: int) -> CheckoutOrder:
    """Return an order as they come: mostly one title, sometimes a cart, popular ones more often."""
    chance = random.Random(f"order {number}")  # noqa: S311  (reproducible, not secret)
    titles = 1 if chance.random() >= CART_SHARE else chance.choice([2, 3])
    books = {chance.choices(range(BOOKS), WEIGHTS)[0] for _ in range(titles)}
    return CheckoutOrder.model_validate(
        {
            "orderId": f"order-{number:07d}",
            "userId": f"customer-{chance.randrange(CUSTOMERS):06d}",
            "items": [
                {"bookId": f"book-{rank:06d}", "quantity": chance.choice([1, 1, 1, 2])}
                for rank in sorted(books)
            ],
            "redeem": chance.random() < REDEEM_SHARE,
        }
    )


def rows_written() -> dict[str, int]:
    """Return how many rows of each kind there are: contenders must have written the same ones."""
    kinds = {
        "orders": "status",
        "saga_log": "step || ' ' || state",
        "ledger": "status",
        "decisions": "outcome",
        "notifications": "'sent'",
        "order_queue": "'left'",
    }
    with reading() as session:
        return {
            f"{table} {kind}": count
            for table, by in kinds.items()
            for kind, count in session.execute(
                text(f"SELECT {by}, count(*) FROM {table} GROUP BY 1")  # noqa: S608
            )
        }


def await_empty_queue() -> None:
    """Wait for what a dispatcher does after the last decision: it deletes the messages.

    Raises:
        RuntimeError: messages are left.
    """
    deadline = time.monotonic() + START_SECONDS
    while rows_written().get("order_queue left"):
        if time.monotonic() > deadline:
            raise RuntimeError("the dispatcher does not delete its messages")
        time.sleep(0.1)


def bytes_on_disk() -> int:
    """Return the size of the store's PostgreSQL database, indexes included."""
    with reading() as session:
        return int(
            session.execute(text("SELECT pg_database_size(current_database())")).scalar_one()
        )


def peak_mb() -> float:
    """Return the most memory that this process has had resident, in MB."""
    # Not getrusage: its maximum has the parent's in it, from before the program was loaded.
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def answer(**measured: Any) -> None:
    """Print what a measured process has measured."""
    print(json.dumps(measured))  # noqa: T201  (this is how it is handed over)
