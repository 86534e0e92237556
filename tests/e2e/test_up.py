"""`python -m deployments.up` as a person uses it, and how it ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from sqlmodel import select

from deployments.example_order import FIRST_ORDER
from deployments.holdings import open_store
from deployments.local import CHECKOUT_DEPLOYMENT, PROJECT_DIR
from store.models import Order, OrderStatus
from tests.prepared_cluster import prepare

from .conftest import wait_until

pytestmark = pytest.mark.timeout(900)


def of_the_system(data_dir: Path) -> list[str]:
    """The processes that work on this folder, by their command or their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
            if any(str(data_dir) in word for word in words):
                found.append(" ".join(process.cmdline()))
        except (psutil.Error, OSError):
            continue
    return found


@contextmanager
def up(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "deployments.up", "--data", str(data_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=PROJECT_DIR,
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """What it prints up to and with the line that has these words."""
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        printed += line
        if words in line:
            return printed
    raise AssertionError(f"it ended without {words!r}:\n{printed}")


def in_its_environment(data_dir: Path, *command: str) -> subprocess.CompletedProcess[str]:
    script = '. "$0" && exec "$@"'
    return subprocess.run(
        ["/bin/sh", "-c", script, str(data_dir / "env"), *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=PROJECT_DIR,
        env={"PATH": os.environ["PATH"], "HOME": str(data_dir.parent)},
    )


def test_up_takes_the_printed_order_refuses_a_second_start_and_leaves_nothing_running(
    tmp_path: Path,
) -> None:
    data_dir = tmp_path / "data"
    with up(data_dir) as process:
        printed = read_until(process, "Ctrl-C here ends all of it")
        assert f"--param order='{FIRST_ORDER}'" in printed

        second = subprocess.run(
            [sys.executable, "-m", "deployments.up", "--data", str(data_dir)],
            capture_output=True,
            text=True,
            check=False,
            cwd=PROJECT_DIR,
        )
        assert second.returncode == 1
        assert f"process {process.pid}" in " ".join(second.stderr.split())

        started = in_its_environment(
            data_dir,
            *("prefect", "deployment", "run", CHECKOUT_DEPLOYMENT),
            *("--param", f"order={FIRST_ORDER}"),
        )
        assert started.returncode == 0, started.stdout + started.stderr
        url = in_its_environment(data_dir, "sh", "-c", 'printf %s "$STORE_DATABASE_URL"').stdout

        def the_order_is_dispatched() -> bool:
            with open_store(url) as session:
                return session.exec(select(Order.status)).all() == [OrderStatus.DISPATCHED]

        wait_until(the_order_is_dispatched, "dispatched order")
        shown = in_its_environment(data_dir, "checkout", "show", "first")
        assert (shown.returncode, "Order first: dispatched" in shown.stdout) == (0, True)
        listed = in_its_environment(data_dir, "checkout", "list")
        assert listed.returncode == 0, listed.stderr
        assert "dispatched" in listed.stdout

        assert len(of_the_system(data_dir)) > 3
        process.send_signal(signal.SIGINT)
        process.wait()
        assert of_the_system(data_dir) == []
        assert process.returncode == 0


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGTERM, "Starting PostgreSQL"),
        (signal.SIGINT, "Starting a worker"),
    ],
)
def test_a_start_that_is_interrupted_leaves_nothing_running(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    number: signal.Signals,
    moment: str,
) -> None:
    data_dir = tmp_path / "data"
    prepare(data_dir, tmp_path_factory)
    with up(data_dir) as process:
        read_until(process, moment)
        process.send_signal(number)
        process.wait()
        assert of_the_system(data_dir) == []
        assert process.returncode == 128 + number


def test_a_killed_start_leaves_nothing_running(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data_dir = tmp_path / "data"
    prepare(data_dir, tmp_path_factory)
    with up(data_dir) as process:
        read_until(process, "Waiting for the Prefect server")
        process.kill()
        process.wait()
        wait_until(lambda: of_the_system(data_dir) == [], "end of all processes")
