"""A command on a leash ends with its owner, and so does all that it started."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from deployments.leash import Leashed
from tests.polling import wait_until

DEADLINE_SECONDS = 30.0

# A child in a session of its own, as a Prefect worker starts some of its flow runs.
FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""


def leash(tmp_path: Path, code: str, *, grace_seconds: float = 10.0) -> Leashed:
    return Leashed(
        [sys.executable, "-c", code],
        log=tmp_path / "log",
        env=dict(os.environ),
        grace_seconds=grace_seconds,
    )


def test_stopping_ends_children_in_other_sessions_too(tmp_path: Path) -> None:
    leashed = leash(tmp_path, FAMILY)
    wait_until(leashed.log_tail, "line of the process")
    child = psutil.Process(int(leashed.log_tail()))
    leashed.stop()
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    leashed.stop()


def test_what_ignores_the_signal_is_killed_after_the_grace_period(tmp_path: Path) -> None:
    leashed = leash(tmp_path, STUBBORN, grace_seconds=0.2)
    wait_until(leashed.log_tail, "line of the process")
    leashed.stop()
    assert leashed.exit_status() == 128 + 9


def test_the_commands_own_end_gives_its_status_and_output(tmp_path: Path) -> None:
    leashed = leash(tmp_path, "import sys; print('one'); print('two'); sys.exit(3)")
    assert leashed.wait(DEADLINE_SECONDS) == 3
    assert leashed.log_tail(lines=1) == "two"
    leashed.stop()


def test_the_output_is_of_this_start_only(tmp_path: Path) -> None:
    for word in ("first", "second"):
        leashed = leash(tmp_path, f"print({word!r})")
        leashed.wait(DEADLINE_SECONDS)
        leashed.stop()
        assert leashed.printed() == f"{word}\n"
    assert (tmp_path / "log").read_text() == "first\nsecond\n"


def test_waiting_for_a_command_has_an_end(tmp_path: Path) -> None:
    leashed = leash(tmp_path, STUBBORN, grace_seconds=0.0)
    with pytest.raises(subprocess.TimeoutExpired):
        leashed.wait(0.01)
    leashed.stop()


def test_folders_are_removed_at_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "sockets"
    folder.mkdir()
    leashed = Leashed(
        [sys.executable, "-c", ""], log=tmp_path / "log", env=dict(os.environ), remove=[folder]
    )
    leashed.wait(DEADLINE_SECONDS)
    leashed.stop()
    assert not folder.exists()


def test_a_port_is_known_to_belong_to_the_command(tmp_path: Path) -> None:
    serve = (
        "import socket, time; s = socket.create_server(('127.0.0.1', 0));"
        "print(s.getsockname()[1], flush=True); time.sleep(600)"
    )
    mine, other = leash(tmp_path, serve), leash(tmp_path, STUBBORN, grace_seconds=0.0)
    wait_until(lambda: len(mine.log_tail().split()) == 2, "two numbers of the process")
    port = next(int(word) for word in mine.log_tail().split() if word.isdigit())
    assert mine.listens_on(port)
    assert not other.listens_on(port)
    mine.stop()
    other.stop()
