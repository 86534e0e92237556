"""Asks the fork servers of this user how they are.

They are found among the processes, wherever their sockets are.
"""

import json
import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from fork_server.client import code_version

SERVER = str(Path(__file__).with_name("server.py"))
PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Status:
    """A fork server.

    Attributes:
        worker: The process id of the worker whose runs it starts.
        since: When it was ready for them.
        children: How many runs it has now.
        code: The version of the code that it has imported, as its client found it.
        is_current: Whether the code of its project is still the same.
    """

    pid: int
    worker: int
    since: datetime
    children: int
    code: str
    is_current: bool


@dataclass(frozen=True)
class Silent:
    """A fork server that has not answered in `PATIENCE_SECONDS`.

    Attributes:
        worker: The process id of the worker whose runs it starts.
    """

    pid: int
    worker: int


def servers() -> list[Status | Silent]:
    """Return this program's fork servers, oldest first.

    One that is told to end is left out: it takes no more runs.
    """
    found: dict[str, tuple[float, int, int, str]] = {}
    for process in psutil.process_iter():
        try:
            program, path, worker, root = process.cmdline()[1:5]
            if program == SERVER and process.uids().effective == os.getuid():
                # A child has its server's command line, too, but is younger.
                this = (process.create_time(), process.pid, int(worker), root)
                found[path] = min(this, found.get(path, this))
        except (psutil.Error, ValueError):
            continue
    oldest_first = sorted((server, path) for path, server in found.items())
    answers = (_ask(Path(path), pid, worker, root) for (_, pid, worker, root), path in oldest_first)
    return [answer for answer in answers if answer is not None]


def _ask(path: Path, pid: int, worker: int, root: str) -> Status | Silent | None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_SECONDS)
        try:
            folder = os.open(path.parent, os.O_PATH)
            try:
                connection.connect(f"/proc/self/fd/{folder}/{path.name}")
            finally:
                os.close(folder)
            connection.sendall(b'"status"\n')
            answer = json.loads(connection.makefile().readline() or "null")
        except TimeoutError:
            return Silent(pid, worker)
        except OSError:
            return None
    if answer is None:
        return None
    code = path.name.partition("-")[0]
    return Status(
        pid=answer["pid"],
        worker=worker,
        since=datetime.fromtimestamp(answer["since"], UTC),
        children=answer["children"],
        code=code,
        is_current=code == code_version(root),
    )
