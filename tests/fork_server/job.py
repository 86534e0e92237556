"""What the tests' runs execute; JOB says what it does."""

import atexit
import importlib
import json
import multiprocessing
import os
import random
import signal
import sys
import threading
import time

import lib  # type: ignore[import-not-found]

VERSION = lib.VERSION


def report() -> None:
    """Print what this process has."""
    print(
        json.dumps(
            {
                "environment": dict(os.environ),
                "folder": os.getcwd(),
                "typed": sys.stdin.read(),
                "threads": threading.active_count(),
                "files": sorted(os.listdir("/proc/self/fd"), key=int),
                "random": random.random(),
                "umask": os.umask(0),
                "argv": sys.argv,
                "path": sys.path[0],
                "pid": os.getpid(),
                "session": os.getsid(0),
                "version": VERSION,
                "name": __name__,
            }
        )
    )


def stay() -> None:
    """Print the process id and the server's, and stay until a signal comes."""

    def leave(*_: object) -> None:
        print("told to end", flush=True)
        sys.exit(3)

    signal.signal(signal.SIGTERM, leave)
    print(os.getpid(), os.getppid(), VERSION, flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    what, _, argument = os.environ["JOB"].partition(" ")
    match what:
        case "report":
            report()
        case "stay":
            stay()
        case "linger":
            atexit.register(print, "at its exit")
            threading.Timer(0.2, print, ["its thread"]).start()
        case "exit":
            sys.exit(int(argument) if argument.isdigit() else argument)
        case "kill":
            os.kill(os.getpid(), int(argument))
        case "spawn":
            process = multiprocessing.get_context("spawn").Process(
                target=importlib.import_module(argument).leave
            )
            process.start()
            process.join()
            sys.exit(process.exitcode)
        case "raise":
            raise ValueError(argument)
