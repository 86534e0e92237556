"""Kills its own process, as `kill -9` does, at the first boundary at which none has died yet.

A boundary is the moment after a commit that changed something: of a step, an intent, a record, a
decision, or of the embedded gateway, queue or topic, which are in the same database. All that a
process can leave behind it leaves at one of them; what dies before its commit leaves what it
found. A boundary is known by the lines of the store's code that are under way, so none is listed
here, and a new one is found by itself. Left out is what only tells of an order, or keeps the
queue's own books.

It is in the processes of runs and of recovery alone (`run.py`); the store knows nothing of it.
"""

import json
import os
import signal
import sys
import zlib
from pathlib import Path
from unittest.mock import patch
from urllib.request import urlopen

from sqlalchemy import Engine, event

import store.database
from tests.faults.sessions import WatchedSession

FOLDER = "KILLS_FOLDER"
"""Names the folder in which each death leaves its mark."""
RECOVERY = "KILLS_IN_RECOVERY"
"""Set in a process of recovery, which is no run of a worker's."""

PROJECT = Path(__file__).resolve().parents[2]
CODE = ("flows", "orders", "reports", "tasks", "texts", "store")
NO_PLACES = {"emit_wait", "receive", "hide", "delete"}


def install() -> None:
    """Have this process killed where it is the first to come."""
    killer = Killer(Path(os.environ[FOLDER]) / _victim())
    event.listen(Engine, "before_cursor_execute", killer.before_statement)
    WatchedSession.watcher = killer
    patch.object(store.database, "Session", WatchedSession).start()


def _victim() -> str:
    """Return what this process works for."""
    if RECOVERY in os.environ:
        return "recovery"
    run_id = os.environ["PREFECT__FLOW_RUN_ID"]
    with urlopen(f"{os.environ['PREFECT_API_URL']}/flow_runs/{run_id}", timeout=60) as answer:  # noqa: S310
        parameters = json.load(answer)["parameters"]
    return "checkout" if "order" in parameters else "dispatcher"


class Killer:
    """Decides at each boundary whether the process dies there."""

    def __init__(self, marks: Path) -> None:
        self._marks = marks
        self._has_written = False

    def before_statement(self, _connection: object, _cursor: object, sql: str, *_: object) -> None:
        """Note whether anything is changed."""
        self._has_written |= sql.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE"))

    def before_transaction(self) -> None:
        """Begin to watch."""
        self._has_written = False

    def before_commit(self) -> None:
        """What dies here leaves what it found."""

    def after_commit(self) -> None:
        """Die, if something was changed and nobody has died here."""
        if not self._has_written:
            return
        self._has_written = False
        lines = _lines()
        if NO_PLACES & {line.partition(":")[0] for line in lines}:
            return
        place = " > ".join(lines)
        self._marks.mkdir(parents=True, exist_ok=True)
        try:
            with (self._marks / str(zlib.crc32(place.encode()))).open("x") as mark:
                mark.write(place)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


def _lines() -> list[str]:
    """Return the lines of the store's code that are under way, the outermost first."""
    found = []
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        path = Path(frame.f_code.co_filename)
        path = path if path.is_absolute() else PROJECT / path
        if path.is_relative_to(PROJECT) and path.relative_to(PROJECT).parts[0] in CODE:
            found.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
    return found[::-1]
