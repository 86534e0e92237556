"""Kills its own process, as `kill -9` does, at the first boundary at which none has died yet.

A boundary is the moment after a commit that changed something: of a step, an intent, a record, a
decision, or of the embedded gateway, queue or topic, which are in the same database. All that a
process can leave behind it leaves at one of them; what dies before its commit leaves what it
found. A boundary is known by the lines of the store's code that are under way, so none is listed
here, and a new one is found by itself. What only tells of an order is left out.

It is in the processes of runs and of recovery alone, by PYTHONPATH and the environment of the
system under test; the store knows nothing of it.
"""

import json
import os
import signal
import sys
import zlib
from pathlib import Path
from urllib.request import urlopen

FOLDER = "KILLS_FOLDER"
"""Names the folder in which each death leaves its mark; without it nothing is killed."""
RECOVERY = "KILLS_IN_RECOVERY"
"""Set in the process of recovery that is no run of a worker's."""

PROJECT = Path(__file__).resolve().parents[2]
CODE = ("flows", "tasks", "store")
TELLING = "tell_of_wait"
WITH_ITS_WORKER = "recovery-and-its-worker"


def install() -> None:
    """Have this process killed, if it is one of those that are to be."""
    if FOLDER not in os.environ:
        return
    victim = _victim()
    if victim is None:
        return
    from unittest.mock import patch

    from sqlalchemy import Engine, event

    import store.database
    from tests.faults.sessions import WatchedSession

    killer = Killer(victim, Path(os.environ[FOLDER]) / victim)
    event.listen(Engine, "before_cursor_execute", killer.before_statement)
    WatchedSession.watcher = killer
    patch.object(store.database, "Session", WatchedSession).start()


def _victim() -> str | None:
    """Return what this process works for."""
    if RECOVERY in os.environ:
        return "recovery"
    run_id = os.environ.get("PREFECT__FLOW_RUN_ID")
    # The processes above the one that executes a run only start it and wait for it.
    if run_id is None or "prefect.engine" not in sys.orig_argv:
        return None
    with urlopen(f"{os.environ['PREFECT_API_URL']}/flow_runs/{run_id}", timeout=60) as answer:  # noqa: S310
        parameters = json.load(answer)["parameters"]
    if "order" in parameters:
        return "checkout"
    return "dispatcher" if "listen_seconds" in parameters else WITH_ITS_WORKER


class Killer:
    """Decides at each boundary whether the process dies there."""

    def __init__(self, victim: str, marks: Path) -> None:
        self._victim = victim
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
        place = " > ".join(_lines())
        if TELLING in place:
            return
        self._marks.mkdir(parents=True, exist_ok=True)
        try:
            with (self._marks / str(zlib.crc32(place.encode()))).open("x") as mark:
                mark.write(place)
        except FileExistsError:
            return
        if self._victim == WITH_ITS_WORKER:
            _kill_worker()
        os.kill(os.getpid(), signal.SIGKILL)


def _kill_worker() -> None:
    """Kill the worker and all between it and this process, so that nobody can tell of its death."""
    import psutil

    above = psutil.Process().parents()
    workers = [process for process in above if "worker" in process.cmdline()]
    for process in reversed(above[: above.index(workers[0]) + 1]):
        process.kill()


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
