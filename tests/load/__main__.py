"""Start many checkouts at once on a system of its own, and see that all end right.

python -m tests.load --orders 50                     couriers are sought from the beginning
python -m tests.load --orders 500 --wait suspend     couriers are sought when all orders wait
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from rich.console import Console

from deployments.local import DISPATCH_DEPLOYMENT, LocalSystem, Progress
from deployments.prefect_api import PrefectApi
from tests.load.at_once import at_once, dispatch

DEADLINE_SECONDS = 4 * 3600
TELL_SECONDS = 15.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; the exit status says whether all ended right."""
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--orders", type=int, default=50, help="how many (50)")
    parser.add_argument("--wait", choices=["pause", "suspend"], default="pause")
    parser.add_argument("--workers", type=int, default=1, help="how many (1)")
    parser.add_argument("--all-wait", action="store_true", help="before couriers are sought")
    asked = parser.parse_args(arguments)
    tell = Progress(Console(soft_wrap=True))
    last_told = 0.0

    def now_and_then(line: str) -> None:
        nonlocal last_told
        if time.monotonic() - last_told >= TELL_SECONDS:
            last_told = time.monotonic()
            free_gb = psutil.virtual_memory().available / 2**30
            tell(f"{line}, {free_gb:.1f} GB free, load {os.getloadavg()[0]:.0f}")

    with (
        tempfile.TemporaryDirectory(prefix="store-load-", ignore_cleanup_errors=True) as folder,
        LocalSystem(Path(folder), report=tell, preferred_port=0) as local,
        PrefectApi(local.api_url) as api,
    ):
        for _ in range(asked.workers - 1):
            local.start_worker()
        orders = at_once(local, api, asked.orders, asked.wait)
        if asked.wait == "suspend" or asked.all_wait:
            api.pause_deployment(DISPATCH_DEPLOYMENT)
        else:
            dispatch(api)
        began = time.monotonic()
        orders.start()
        tell(f"{asked.orders} runs were started in {time.monotonic() - began:.1f} s")
        if asked.wait == "suspend" or asked.all_wait:
            seconds = orders.until(orders.all_wait, DEADLINE_SECONDS, now_and_then)
            tell(f"All wait, after {seconds:.0f} s: {dict(orders.states())}")
            dispatch(api)
        seconds = orders.until(orders.all_ended, DEADLINE_SECONDS, now_and_then)
        tell(f"All have ended, after {seconds:.0f} s: {dict(orders.statuses())}")
        wrong = orders.wrong()
        for line in wrong:
            tell(line)
        _tell_of_errors(local, tell)
    tell("All ended right, and the books balance." if not wrong else f"{len(wrong)} are wrong")
    return 1 if wrong else 0


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
