"""A dispatcher that freezes inside its transaction holds nobody up for long, and harms nothing."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import store.blockers
import store.sessions
from store.database import release_connections
from store.sessions import STEP
from store.settings import settings
from tasks.couriers import find_couriers
from tasks.retries import is_transient
from tests.polling import wait_until
from tests.shop import messages_about, placed, status
from tests.store.test_blockers import seen

PROJECT_DIR = Path(__file__).resolve().parents[2]


@contextmanager
def frozen(point: str, *order_ids: str) -> Iterator["subprocess.Popen[str]"]:
    """A dispatcher that has stopped; it goes on, and ends, with the block at the latest."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.tasks.frozen_dispatcher", point, *order_ids],
        cwd=PROJECT_DIR,
        env={**os.environ, "STORE_DATABASE_URL": settings().database_url},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        seen = psutil.Process(process.pid)
        wait_until(lambda: seen.status() == psutil.STATUS_STOPPED, "stop inside the transaction")
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=60)


def decide(*order_ids: str) -> list[str]:
    """Decide as a task does, which is tried again after an outage."""
    for _ in range(4):
        try:
            return find_couriers.fn(messages_about(list(order_ids)))
        except Exception as error:
            if not is_transient(error):
                raise
    raise AssertionError("four tries were not enough")


def test_others_go_on_behind_a_frozen_dispatcher_which_harms_nothing_later(database: str) -> None:
    for order_id in ("o-1", "o-2"):
        placed(order_id, "prepare_order")
    with frozen("locks", "o-1") as dispatcher, ThreadPoolExecutor(1) as another:
        decided = another.submit(decide, "o-2")
        [blocker] = seen(1)
        assert blocker.name.endswith(f":{dispatcher.pid}")
        assert decided.result() == ["o-2"]
        assert decide("o-1") == ["o-1"]
        dispatcher.send_signal(signal.SIGCONT)
        said = dispatcher.communicate(timeout=60)[0]
    assert (said, dispatcher.returncode) == ("0 decided at try 2", 0)
    assert status("o-1") == status("o-2") == "dispatching"


def test_a_dispatcher_frozen_in_a_large_result_is_ended_by_those_who_wait(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.sessions, "STEP", STEP._replace(lock_seconds=4))
    monkeypatch.setattr(store.blockers, "STEP", STEP._replace(idle_seconds=3))
    release_connections()
    placed("o-1", "prepare_order")
    with frozen("result", "o-1") as dispatcher:
        assert decide("o-1") == ["o-1"]
        dispatcher.send_signal(signal.SIGCONT)
        said = dispatcher.communicate(timeout=60)[0]
    assert (said, dispatcher.returncode) == ("0 decided at try 2", 0)
    assert status("o-1") == "dispatching"
    release_connections()
