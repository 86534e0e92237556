"""The processes of runs: started, and their death reported, as a worker does it.

A worker has three more Python processes above each of these, which would be most of the time here.
What it does otherwise about a run that is killed is in `tests/e2e/test_crashes.py`.
"""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from prefect.client.schemas.objects import TERMINAL_STATES

from deployments import warm_start
from deployments.local import LocalSystem
from deployments.machine import inherited_environment
from deployments.prefect_server import PrefectServer
from fork_server.status import servers
from tests.kills.killer import PROJECT, RECOVERY

ENGINE = "tests.kills.run"


class Processes:
    """One process for each run that is scheduled, as long as it lives."""

    def __init__(self, local: LocalSystem, api: PrefectServer) -> None:
        self._local = local
        self._api = api
        self._of_run: dict[str, subprocess.Popen[bytes]] = {}
        command = [sys.executable, "-m", ENGINE]
        if warm_start.is_wanted():
            warm = shlex.split(warm_start.run_command(sys.executable, PROJECT))
            command = [ENGINE if part == "prefect.engine" else part for part in warm]
        self._command = command

    def start(self, name: str, extra: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start a process with the settings of the system and these."""
        with self._log(name).open("ab") as log:
            return subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                env={**inherited_environment(), **self._local.settings(), **extra},
                cwd=PROJECT,
            )

    def tend(self, run_ids: Iterable[str]) -> None:
        """Report who has died, and start who is scheduled."""
        for run_id in run_ids:
            process = self._of_run.get(run_id)
            if process is not None and process.poll() is None:
                continue
            run = self._api.read_run(run_id)
            if process is not None:
                assert process.returncode in (0, 1, -signal.SIGKILL), self._log(
                    run.name
                ).read_text()
                del self._of_run[run_id]
                if run.state_type not in TERMINAL_STATES:
                    self._api.set_state(run_id, "CRASHED", "Crashed", "the process was killed")
            elif run.state_type == "SCHEDULED":
                self._of_run[run_id] = self.start(run.name, {"PREFECT__FLOW_RUN_ID": run_id})

    def recover(self) -> bool:
        """Execute a round of recovery, and say whether it came to its end."""
        status = self.start("recovery", {RECOVERY: "1"}).wait(timeout=120)
        assert status in (0, -signal.SIGKILL), self._log("recovery").read_text()
        return status == 0

    def live(self, run_ids: Iterable[str]) -> bool:
        """Say whether any of these runs has a process, or is to have one."""
        return any(
            run_id in self._of_run or self._api.read_run(run_id).state_type not in TERMINAL_STATES
            for run_id in run_ids
        )

    def stop(self) -> None:
        """End them all, and their fork server."""
        for process in self._of_run.values():
            process.kill()
            process.wait()
        for server in servers():
            if server.worker == os.getpid():
                os.kill(server.pid, signal.SIGTERM)

    def _log(self, name: str) -> Path:
        return self._local.logs_dir / f"{name}.log"
