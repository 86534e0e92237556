"""Processes that end with their owner, whatever ends it.

The owner holds the write end of this process's stdin. When the owner closes it, or dies (an
exception, SIGTERM, even SIGKILL: the kernel closes the pipe), the command and everything it
started is asked to stop and, after a grace period, killed. So nothing depends on signal handlers
or `atexit` in the owner, and there is one place that knows how to end a process tree.

Children of the command that moved to a session of their own are found by a mark in their
environment: a Prefect worker leaves its flow runs behind when it is stopped.

This module is run as a script and imports nothing of the project, so that it starts fast.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NoReturn
from uuid import uuid4

MARK = "STORE_LEASH"
_POLL_SECONDS = 0.05
# Being ready is asked of the command itself, which has better things to do while it starts.
_READY_POLL_SECONDS = 0.2
# What is not gone this long after SIGKILL is stuck in the kernel; waiting on helps nobody.
_KILL_SECONDS = 5.0


class Leashed:
    """A command on a leash, seen from its owner.

    Args:
        command: the program and its arguments.
        log: the file that gets the command's output, appended.
        env: the whole environment of the command.
        cwd: the command's working directory.
        stop_signal: what asks the command to end in an orderly way.
        grace_seconds: how long it may take before it is killed.
        user: name of the user to run it as; None keeps the current one.
        remove: folders to remove once the command is gone.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        env: dict[str, str],
        cwd: Path | None = None,
        stop_signal: signal.Signals = signal.SIGTERM,
        grace_seconds: float = 10.0,
        user: str | None = None,
        remove: Sequence[Path] = (),
    ) -> None:
        self.log = log
        self._grace_seconds = grace_seconds
        order = {
            "command": list(command),
            "signal": stop_signal,
            "grace_seconds": grace_seconds,
            "user": user,
            "remove": [str(folder) for folder in remove],
        }
        # The file may hold the output of earlier starts, which says nothing about this one.
        self._log_start_bytes = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-I", __file__, json.dumps(order)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=cwd,
                # Ctrl-C in a terminal goes to the whole foreground group; the owner decides the
                # order in which things stop, so the leash must not hear it.
                start_new_session=True,
            )

    def listens_on(self, port: int) -> bool:
        """Return whether the command or its child listens on this TCP port."""
        import psutil

        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self._process.pid).children(recursive=True):
                for connection in process.net_connections("tcp"):
                    if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                        return True
        return False

    def exit_status(self) -> int | None:
        """Return the command's exit status, None while it runs."""
        return self._process.poll()

    def wait(self, timeout_seconds: float) -> int:
        """Wait for the command's end and return its exit status.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        return self._process.wait(timeout_seconds)

    def why_not_ready(self, is_ready: Callable[[], bool], within_seconds: float) -> str:
        """Wait until the command is ready.

        Returns:
            Why it is not, with the last lines of its output; empty if it is.
        """
        deadline = time.monotonic() + within_seconds
        while not is_ready():
            if self.exit_status() is not None:
                return f"ended at its start ({self.log}):\n{self.log_tail()}"
            if time.monotonic() > deadline:
                return f"is not ready after {within_seconds:.0f} s ({self.log}):\n{self.log_tail()}"
            time.sleep(_READY_POLL_SECONDS)
        return ""

    def printed(self) -> str:
        """Return the command's output so far."""
        with self.log.open("rb") as file:
            file.seek(self._log_start_bytes)
            return file.read().decode(errors="replace")

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of the command's output so far."""
        return "\n".join(self.printed().splitlines()[-lines:])

    def stop(self) -> None:
        """End the command and all processes that it started.

        Safe to repeat.

        Raises:
            subprocess.TimeoutExpired: something is left that not even SIGKILL ends.
        """
        stdin = self._process.stdin
        if stdin is not None and not stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                stdin.close()
        self._process.wait(timeout=self._grace_seconds + 2 * _KILL_SECONDS)


def _marked_processes(mark: str) -> Iterator[int]:
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                yield process.pid


def _signal_everything(child: subprocess.Popen[bytes], mark: str, number: signal.Signals) -> bool:
    """Signal the command's group and all marked processes.

    Returns whether there was one.
    """
    found = False
    # While the command is not reaped, its group id cannot have been given to anybody else.
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)
            found = True
    for pid in _marked_processes(mark):
        if pid == child.pid:
            continue
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # The group got it already; twice would turn Prefect's orderly exit into an abrupt one.
            if child.returncode is not None or os.getpgid(pid) != child.pid:
                os.kill(pid, number)
            found = True
    return found


def _end(child: subprocess.Popen[bytes], mark: str, number: signal.Signals, grace: float) -> None:
    _signal_everything(child, mark, number)
    deadline = time.monotonic() + grace
    while time.monotonic() < deadline:
        if child.poll() is not None and not any(_marked_processes(mark)):
            return
        time.sleep(_POLL_SECONDS)
    deadline = time.monotonic() + _KILL_SECONDS
    while time.monotonic() < deadline and _signal_everything(child, mark, signal.SIGKILL):
        child.poll()
        time.sleep(_POLL_SECONDS)


def _wait_for_owner(stdin: IO[bytes], owner_gone: threading.Event) -> None:
    while stdin.read(1024):
        pass
    owner_gone.set()


def run(
    command: Sequence[str],
    *,
    stop_signal: signal.Signals,
    grace_seconds: float,
    user: str | None,
    remove: Sequence[str],
) -> NoReturn:
    """Run the command and exit with its status, unless the owner ends."""
    # A handler, not SIG_IGN: what is ignored stays ignored in the command after exec.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)

    mark = uuid4().hex
    group: int | None = None
    if user is not None:
        import pwd

        group = pwd.getpwnam(user).pw_gid
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        env={**os.environ, MARK: mark},
        start_new_session=True,
        user=user,
        group=group,
        extra_groups=None if user is None else [],
    )
    owner_gone = threading.Event()
    threading.Thread(
        target=_wait_for_owner, args=(sys.stdin.buffer, owner_gone), daemon=True
    ).start()
    while child.poll() is None and not owner_gone.wait(_POLL_SECONDS):
        pass
    _end(child, mark, stop_signal, grace_seconds)
    for folder in remove:
        shutil.rmtree(folder, ignore_errors=True)
    status = child.poll()
    # By-pass the interpreter's shutdown: the reading thread may hold stdin's lock.
    sys.stdout.flush()
    os._exit(status if status is not None and status >= 0 else 128 + abs(status or 0))


if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    run(
        order["command"],
        stop_signal=signal.Signals(order["signal"]),
        grace_seconds=order["grace_seconds"],
        user=order["user"],
        remove=order["remove"],
    )
