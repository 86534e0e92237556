"""The processes of a system's workers and runs."""

import os

import psutil

from deployments.local import LocalSystem


def environment(process: psutil.Process) -> dict[str, str]:
    """The environment that a process was started with; empty for one that has ended."""
    try:
        return process.environ()
    except psutil.Error:
        return {}


def processes_of(local: LocalSystem) -> list[psutil.Process]:
    """The processes of the workers and of all their runs."""
    return [
        process
        for process in psutil.process_iter()
        if environment(process).get("STORE_DATABASE_URL") == local.store_url
        and process.pid != os.getpid()
    ]
