"""The local system's use of its machine, such as ports and signals."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

from store.errors import StoreError

HOST = "127.0.0.1"


class SetupError(StoreError):
    """A part of the system cannot start or has ended by itself.

    The message has the remedy, or the end of the log.
    """


def free_port(preferred: int) -> int:
    """Return the preferred TCP port if it is free, else another one.

    Raises:
        SetupError: there is none.
    """
    for port in (preferred, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            # As the server does; else a port is taken for a minute after its server has ended.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            found: int = probe.getsockname()[1]
            return found
    raise SetupError(f"There is no free TCP port on {HOST}.")


def inherited_environment() -> dict[str, str]:
    """Return the caller's environment without another Prefect server's settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}


@contextmanager
def lock(data_dir: Path) -> Iterator[None]:
    """Lock the data folder until this process ends.

    Raises:
        SetupError: another process holds it.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    path = data_dir / "lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SetupError(_already_running(data_dir, file)) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _already_running(data_dir: Path, file: IO[str]) -> str:
    file.seek(0)
    holder = file.read().strip() or "unknown"
    return (
        f"A local system runs on {data_dir} already (process {holder}). Use that one, or end it "
        "with Ctrl-C where it was started."
    )


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Exit through open `with` blocks on SIGINT, SIGTERM and SIGHUP.

    The status is 128 + n.
    """
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def leave(number: int, _frame: FrameType | None) -> None:
        # Once: the stop takes seconds, and a second Ctrl-C must not leave it half done.
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
