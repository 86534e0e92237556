"""A PostgreSQL cluster that Prefect and the store have migrated once, copied for each system.

A new system migrates both databases at its start, which takes most of that start's time. What the
start of an empty system does is tested by `tests/e2e/test_up.py` and `tests/deployments`.
"""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from deployments.local import LocalSystem

READY = "ready"


def prepare(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Put the databases of a system that has been started once into its folder.

    Args:
        data_dir: The folder of a system that has not been started yet.
        tmp_path_factory: Names the folder that all processes of this test session share.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    made = shared / "prepared-cluster"
    made.mkdir(exist_ok=True)
    with (made / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made / READY).exists():
            shutil.rmtree(made / "system", ignore_errors=True)
            with LocalSystem(made / "system", durable=False, preferred_port=0, worker=False):
                pass
            (made / READY).touch()
    data_dir.mkdir(mode=0o700, exist_ok=True)
    # Its files are another user's where root runs the tests, and have to stay so.
    subprocess.run(["/bin/cp", "-a", str(made / "system" / "postgres"), str(data_dir)], check=True)
