"""Start many checkouts at once on a system of its own, and see that all end right.

python -m tests.load --orders 50                     couriers are sought from the beginning
python -m tests.load --orders 500 --wait suspend     couriers are sought when all orders wait
python -m tests.load --orders 500 --wait suspend --threads 6
                                                     the same without a process for each run
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil
from rich.console import Console

from deployments.leash import Leashed
from deployments.local import CHECKOUT_DEPLOYMENT, DISPATCH_DEPLOYMENT, PROJECT_DIR, LocalSystem
from deployments.prefect_server import PrefectServer
from deployments.progress import Progress
from flows.runs.pause import Wait
from terminal.command_line import Flag, command
from terminal.numbers import WholeNumber
from tests.load.at_once import at_once, dispatch

DEADLINE_SECONDS = 4 * 3600
TELL_SECONDS = 15.0


@command("python -m tests.load", __doc__)
def main(
    *,
    orders: WholeNumber = 50,
    wait: Wait = "pause",
    workers: WholeNumber = 1,
    all_wait: Flag = False,
    threads: WholeNumber | None = None,
) -> int:
    """Start the checkouts; return 1 if one did not end right.

    Args:
        orders: How many.
        wait: How an order waits.
        workers: How many.
        all_wait: Seek couriers when all orders wait.
        threads: Execute runs in threads, so many for a core.
    """
    tell = Progress(Console(soft_wrap=True))
    last_told = 0.0

    def now_and_then(line: str) -> None:
        nonlocal last_told
        if time.monotonic() - last_told >= TELL_SECONDS:
            last_told = time.monotonic()
            free_gb = psutil.virtual_memory().available / 2**30
            tell(f"{line}, {free_gb:.1f} GB free, load {os.getloadavg()[0]:.0f}")

    waits = wait == "suspend" or all_wait
    with (
        tempfile.TemporaryDirectory(prefix="store-load-", ignore_cleanup_errors=True) as folder,
        LocalSystem(Path(folder), report=tell, preferred_port=0) as local,
        PrefectServer(local.api_url) as api,
        ExitStack() as stack,
    ):
        for _ in range(workers - 1):
            local.start_worker()
        started = at_once(local, api, orders, wait)
        if threads:
            started.deployment = stack.enter_context(thread_workers(local, api, threads))
        if waits:
            api.pause(DISPATCH_DEPLOYMENT)
        else:
            dispatch(api)
        began = time.monotonic()
        started.start(started.expected)
        tell(f"{orders} runs were started in {time.monotonic() - began:.1f} s")
        if waits:
            seconds = started.until(started.all_wait, DEADLINE_SECONDS, now_and_then)
            tell(f"All wait, after {seconds:.0f} s: {dict(started.states())}")
            dispatch(api)
        seconds = started.until(started.all_ended, DEADLINE_SECONDS, now_and_then)
        tell(f"All have ended, after {seconds:.0f} s: {dict(started.statuses())}")
        wrong = started.wrong()
        for line in wrong:
            tell(line)
        _tell_of_errors(local, tell)
    tell("All ended right, and the books balance." if not wrong else f"{len(wrong)} are wrong")
    return 1 if wrong else 0


@contextmanager
def thread_workers(local: LocalSystem, api: PrefectServer, threads: int) -> Iterator[str]:
    """Give a deployment of the checkout whose runs are executed in threads, by a process a core."""
    pool = "threads"
    api.ensure_work_pool(pool, "process")
    with httpx.Client(base_url=local.api_url, timeout=60) as http:
        checkout = http.get(f"/deployments/name/{CHECKOUT_DEPLOYMENT}").raise_for_status().json()
        kept = ("flow_id", "parameter_openapi_schema", "enforce_parameter_schema")
        deployment = {key: checkout[key] for key in kept} | {"name": pool, "work_pool_name": pool}
        http.post("/deployments/", json=deployment).raise_for_status()
    workers = [
        Leashed(
            [sys.executable, "-m", "tests.load.thread_worker", pool, str(threads)],
            log=local.logs_dir / f"thread-worker-{number}.log",
            env={**os.environ, **local.settings()},
            cwd=PROJECT_DIR,
        )
        for number in range(os.cpu_count() or 1)
    ]
    try:
        yield f"store-checkout/{pool}"
    finally:
        for worker in workers:
            worker.stop()


def _tell_of_errors(local: LocalSystem, tell: Progress) -> None:
    """Count what the logs of server and workers call an error."""
    for log in sorted(local.logs_dir.glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()
        bad = [line for line in lines if "| ERROR" in line or " 503" in line or "Traceback" in line]
        tell(f"{log.name}: {len(bad)} errors in {len(lines)} lines")
        for line in bad[:5]:
            tell(f"    {line[:160]}")


if __name__ == "__main__":
    sys.exit(main())
