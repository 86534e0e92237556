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


def servers() -> list[Status]:
    """Return this program's fork servers that answer, oldest first.

    One that is told to end answers no more.
    """
    found = {}
    for process in psutil.process_iter():
        try:
            program, path, worker, root = process.cmdline()[1:5]
            # A child has its server's command line, too.
            if program == SERVER and process.uids().effective == os.getuid():
                found[path] = (int(worker), root)
        except (psutil.Error, ValueError):
            continue
    answers = (_ask(Path(path), worker, root) for path, (worker, root) in found.items())
    return sorted((each for each in answers if each is not None), key=lambda each: each.since)


def _ask(path: Path, worker: int, root: str) -> Status | None:
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
