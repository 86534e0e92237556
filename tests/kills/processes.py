"""The processes of runs: started, and their death reported, as a worker does it.

A worker has three more Python processes above each of these, which would be most of the time here.
What it does otherwise about a run that is killed is in `tests/e2e/test_crashes.py`.
"""

import sys
from collections.abc import Iterable

from prefect.client.schemas.objects import TERMINAL_STATES

from deployments.leash import Leashed
from deployments.local import LocalSystem
from deployments.machine import inherited_environment
from deployments.prefect_server import PrefectServer
from tests.kills.killer import PROJECT

KILLED = 128 + 9
"""How a leash tells that what it held was killed."""


class Processes:
    """One process for each run that is scheduled, as long as it lives."""

    def __init__(self, local: LocalSystem, api: PrefectServer) -> None:
        self._local = local
        self._api = api
        self._of_run: dict[str, Leashed] = {}

    def tend(self, run_ids: Iterable[str]) -> None:
        """Report who has died, and start who is scheduled."""
        for run_id in run_ids:
            process = self._of_run.get(run_id)
            if process is not None and process.exit_status() is None:
                continue
            run = self._api.read_run(run_id)
            if process is not None:
                assert process.exit_status() in (0, 1, KILLED), process.log_tail()
                process.stop()
                del self._of_run[run_id]
                if run.state_type not in TERMINAL_STATES:
                    self._api.set_state(run_id, "CRASHED", "Crashed", "the process was killed")
            elif run.state_type == "SCHEDULED":
                self._of_run[run_id] = Leashed(
                    [sys.executable, "-m", "prefect.engine"],
                    log=self._local.logs_dir / f"{run.name}.log",
                    env={
                        **inherited_environment(),
                        **self._local.settings(),
                        "PREFECT__FLOW_RUN_ID": run_id,
                    },
                    cwd=PROJECT,
                )

    def live(self, run_ids: Iterable[str]) -> bool:
        """Say whether any of these runs has a process, or is to have one."""
        return any(
            run_id in self._of_run or self._api.read_run(run_id).state_type not in TERMINAL_STATES
            for run_id in run_ids
        )

    def stop(self) -> None:
        """End them all."""
        for process in self._of_run.values():
            process.stop()
