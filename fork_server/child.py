"""How a fork becomes its client's run, and how it ends."""

import atexit
import contextlib
import ctypes
import gc
import logging
import os
import runpy
import signal
import sys
import threading
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

logger = logging.getLogger("fork_server")

FIRST_TO_BE_KILLED = 100
"""What a child adds to its OOM score: one run ends for want of memory, not the server of all."""
PR_SET_PDEATHSIG = 1
M_ARENA_MAX = -8
"""The numbers of Linux's and glibc's headers."""


@dataclass
class Request:
    """What a client hands over."""

    environment: dict[str, str]
    folder: str
    umask: int
    streams: list[int] = field(default_factory=list)

    def close(self) -> None:
        """Close the streams, which the child has, in the server."""
        for stream in self.streams:
            os.close(stream)


def settings_sources(environment: Mapping[str, str], folder: str) -> tuple[object, ...]:
    """Return what Prefect reads its settings from."""
    home = environment.get("PREFECT_HOME") or Path("~/.prefect").expanduser()
    files = [Path(folder, name) for name in (".env", "prefect.toml", "pyproject.toml")]
    return (
        folder,
        {
            name: value
            for name, value in environment.items()
            if name.startswith("PREFECT_") and not name.startswith("PREFECT__")
        },
        [
            (found.stat().st_mtime_ns, found.stat().st_size)
            for found in (*files, Path(home, "profiles.toml"))
            if found.is_file()
        ],
    )


def die_with(parent: int) -> None:
    """Let the kernel kill this process when the fork server ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(137)


def become(request: Request) -> None:
    """Take over what the client has handed over."""
    # Collecting more often would cost a short run a thirtieth of its time.
    gc.set_threshold(10_000)
    gc.enable()
    # A run's threads wait for each other anyway, and each would have an arena of its own to fill.
    with contextlib.suppress(AttributeError):  # a C library that has no arenas
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
    os.setsid()
    _be_killed_first()
    for number, stream in enumerate(request.streams):
        os.dup2(stream, number)
        os.close(stream)
    os.umask(request.umask)
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    sys.path[0] = ""  # as `python -m` has it
    if processes := sys.modules.get("multiprocessing.process"):
        # A process that is spawned imports from the folder in which that module was imported.
        processes.ORIGINAL_DIR = request.folder  # type: ignore[attr-defined]
    time.tzset()
    if numpy := sys.modules.get("numpy"):
        # Python's own generator is seeded by Python at each fork.
        numpy.random.seed()


def _be_killed_first() -> None:
    score = Path("/proc/self/oom_score_adj")
    try:
        score.write_text(str(min(1000, int(score.read_text()) + FIRST_TO_BE_KILLED)))
    except OSError as error:
        logger.info("the OOM score stays as it is: %s", error)


def status_of(engine: str) -> int:
    """Run the engine and return Python's exit status for it."""
    try:
        run(engine)
    except SystemExit as ending:
        if ending.code is None or isinstance(ending.code, int):
            return ending.code or 0
        sys.stderr.write(f"{ending.code}\n")
        return 1
    except Exception:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def leave(status: int) -> NoReturn:
    """End as Python does, but leave its memory to the kernel.

    To take apart what was imported would copy each page that the child shares with its server.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status & 0xFF)


def refresh_settings() -> None:
    """Have Prefect read its settings from this process's environment and folder."""
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()


def run(engine: str) -> None:
    """Run a module as `python -m` does."""
    sys.argv = [engine]
    with warnings.catch_warnings():
        # It is imported already, which is the point.
        warnings.simplefilter("ignore", RuntimeWarning)
        runpy.run_module(engine, run_name="__main__", alter_sys=True)
