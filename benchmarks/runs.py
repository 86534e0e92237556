"""A run that starts cold, in a new Python, against one that starts warm, as a fork.

    python -m benchmarks.runs [--rounds 3] [--orders 50] [--idle-seconds 300]

Both start in turns on one system, and each figure is the median of the rounds. No dispatcher looks
for a courier: an order is answered as soon as its run has paused. States are read from Prefect's
database, since a read through its server takes the server 7 ms. What the system takes while it is
idle is not counted to an order.
"""

import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil
import psycopg
from rich.console import Console
from rich.table import Table
from sqlalchemy import make_url, update

from benchmarks.ground import ENOUGH, Ground
from deployments.holdings import open_store
from deployments.local import (
    CHECKOUT_DEPLOYMENT,
    DISPATCH_DEPLOYMENT,
    WORK_POOL,
    LocalSystem,
)
from deployments.prefect_server import PrefectServer
from deployments.warm_start import run_command, set_run_command
from fork_server import status
from seed.catalogue import JOHN_DOE, STRIPED_PAJAMAS
from store.models import Book, Courier
from terminal.command_line import command
from terminal.numbers import WholeNumber
from terminal.output import AsJson

ROUNDS = 3
ORDERS = 50
SINGLES = 5
"""Orders one at a time in a round."""
WAITING = 12
IDLE_SECONDS = 120.0
"""An hour is extrapolated from it: recovery and dispatcher listen for two, nothing comes often."""
CLIENTS = 16
POLL_SECONDS = 0.05
DEADLINE_SECONDS = 1_800.0
ANSWER_SECONDS = 60.0
SETTLE_SECONDS = 10.0
QUIET_SECONDS = 20.0
"""How long the idle system is watched, to subtract its share from the orders'."""
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
WORKER_LOOKS_SECONDS = 45.0
"""After so long at most a worker has seen that its pool's command has changed."""
UPKEEP_LISTENS_SECONDS = 120.0
"""After so long at most recovery and the dispatcher listen."""
MODES = ("cold", "warm")
DEPLOYMENTS = (
    DISPATCH_DEPLOYMENT,
    "recover-orders/local",
    "batch-checkout/nightly",
    "audit-books/daily",
)
ANSWER = {"outcome": "courier assigned", "courier": "night-rail", "answered_by": "the benchmark"}

PAUSED = "trigger to Paused, one at a time, s"
COMPLETED = "trigger to Completed, one at a time, s"
RESUMED = "answer to Completed, suspended, s"
AT_ONCE = "{orders} at once, until all have ended, s"
CPU = "CPU for each order, {part}, ms"
MEMORY = "memory (PSS) of an order that waits, MB"
IDLE = "CPU of the idle system, s an hour (extrapolated)"
PARTS = ("Prefect's server", "PostgreSQL", "the worker", "the run's own processes")
ALL = "all processes"
TARGETS = {
    PAUSED: 0.35,
    AT_ONCE: 0.25,
    CPU.format(part=ALL): 0.25,
    CPU.format(part=PARTS[-1]): 0.10,
    MEMORY: 0.33,
    IDLE: 0.35,
}
Figures = dict[str, dict[str, list[float]]]


@dataclass
class Runs:
    """Starts runs on a system, cold or warm, and looks at what its processes take."""

    local: LocalSystem
    api: PrefectServer
    prefect: psycopg.Connection[tuple[str, str, str]]
    command: str
    deployment_id: str
    started: int = 0
    forks: dict[int, float] = field(default_factory=dict)
    figures: Figures = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))

    def start(self, mode: str, wait: str = "pause") -> str:
        """Start an order's run; return its id."""
        self.started += 1
        order = {
            "orderId": f"{mode}-{time.time_ns()}",
            "userId": JOHN_DOE,
            "bookId": STRIPED_PAJAMAS,
            "quantity": 1,
        }
        variables = {"command": self.command} if mode == "warm" else {}
        answer = httpx.post(
            f"{self.api.url}/deployments/{self.deployment_id}/create_flow_run",
            json={"parameters": {"order": order, "wait": wait}, "job_variables": variables},
            timeout=60,
        )
        run_id: str = answer.raise_for_status().json()["id"]
        return run_id

    def reach(self, run_id: str, state: str) -> None:
        """Return when the run is in this state.

        Raises:
            SystemExit: it is not in time, or has ended in another one.
        """
        deadline = time.monotonic() + DEADLINE_SECONDS
        while (found := self.states([run_id])[run_id])[0] != state:
            if time.monotonic() > deadline or found[1] in ENDED:
                raise SystemExit(f"the run {run_id} is {found[0]}, not {state}")
            time.sleep(POLL_SECONDS)

    def states(self, run_ids: list[str]) -> dict[str, tuple[str, str]]:
        """Return the name and the type of each run's state."""
        found = self.prefect.execute(
            "SELECT id::text, state_name, state_type::text FROM flow_run"
            " WHERE id = ANY(%s::uuid[])",
            [run_ids],
        )
        return {run_id: (name, kind) for run_id, name, kind in found}

    def await_process_ends(self) -> None:
        """Return when the processes of all runs have ended.

        A cold one takes a third of a second of a core after its run's end.

        Raises:
            SystemExit: they have not in time.
        """
        deadline = time.monotonic() + DEADLINE_SECONDS
        while any(len(_tree(worker)) > 1 for worker in self._trees()[2]):
            if time.monotonic() > deadline:
                raise SystemExit("the processes of ended runs have not ended")
            time.sleep(POLL_SECONDS)

    def carry_out(self, mode: str) -> tuple[float, float]:
        """Carry one order out; return the seconds to its pause and to its end."""
        began = time.monotonic()
        run_id = self.start(mode)
        self.reach(run_id, "Paused")
        paused = time.monotonic() - began
        self.answer(run_id)
        self.reach(run_id, "Completed")
        return paused, time.monotonic() - began

    def answer(self, run_id: str) -> None:
        """Resume a run; one that has just paused may not take its answer yet.

        Raises:
            SystemExit: it takes none in time.
        """
        deadline = time.monotonic() + ANSWER_SECONDS
        while (answer := self.api.resume(run_id, ANSWER)) != "ACCEPT":
            if time.monotonic() > deadline:
                raise SystemExit(f"the run {run_id} takes no answer: {answer}")
            time.sleep(POLL_SECONDS)

    def cpu(self) -> dict[str, float]:
        """Return the seconds of a core that each part has taken since its start."""
        server, postgres, workers = self._trees()
        for fork in fork_servers():
            # One that has ended, or is too busy to answer, has taken what it had taken.
            self.forks[fork.pid] = sum(map(_with_ended_children, _tree(fork)))
        worker = sum(_own(process) for process in workers)
        return {
            PARTS[0]: sum(map(_with_ended_children, server)),
            PARTS[1]: sum(map(_with_ended_children, postgres)),
            PARTS[2]: worker,
            # What a worker's ended children took is in its own times, apart.
            PARTS[3]: sum(_ended_children(process) for process in workers)
            + sum(
                _with_ended_children(process) for worker in workers for process in _tree(worker)[1:]
            )
            + sum(self.forks.values()),
        }

    def _trees(self) -> tuple[list[psutil.Process], list[psutil.Process], list[psutil.Process]]:
        """Return the processes of the server, of PostgreSQL, and the workers alone."""
        server: list[psutil.Process] = []
        postgres: list[psutil.Process] = []
        workers: list[psutil.Process] = []
        for leash in psutil.Process().children():
            tree = _tree(leash)
            words = _words(tree[1]) if len(tree) > 1 else ""
            if " server start" in words:
                server += tree
            elif " worker start" in words:
                workers += tree[1:2]
            elif "postgres" in words:
                postgres += tree
        return server, postgres, workers

    def memory(self) -> float:
        """Return the megabytes (PSS) of all processes of the system."""
        processes = {*_tree(psutil.Process())[1:]}
        processes |= {process for fork in fork_servers() for process in _tree(fork)}
        return sum(p.memory_full_info().pss for p in processes) / 2**20

    def note(self, name: str, mode: str, value: float) -> None:
        """Keep a figure of a round."""
        self.figures[name][mode].append(value)


def fork_servers() -> list[psutil.Process]:
    """Return the fork servers of this user's workers."""
    return [psutil.Process(found.pid) for found in status.servers()]


def _tree(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _own(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _ended_children(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.children_user + times.children_system)


def _with_ended_children(process: psutil.Process) -> float:
    try:
        return _own(process) + _ended_children(process)
    except psutil.NoSuchProcess:
        return 0.0


def cost(runs: Runs, orders: int, work: Callable[[], None]) -> dict[str, float]:
    """Return the milliseconds of a core that each part takes for an order.

    What the idle system takes in as many seconds is subtracted.
    """
    runs.await_process_ends()
    time.sleep(SETTLE_SECONDS)
    idle, idle_since = runs.cpu(), time.monotonic()
    time.sleep(QUIET_SECONDS)
    before, began = runs.cpu(), time.monotonic()
    work()
    runs.await_process_ends()
    # What the worker and the server do about the end of a run comes after it.
    time.sleep(SETTLE_SECONDS)
    after = runs.cpu()
    share = (time.monotonic() - began) / (began - idle_since)
    used = {p: after[p] - before[p] - share * (before[p] - idle[p]) for p in PARTS}
    return {part: seconds / orders * 1e3 for part, seconds in used.items()}


def one_at_a_time(runs: Runs, mode: str) -> None:
    """Measure the times and the processor time of orders that come one by one."""

    def come() -> None:
        for _ in range(SINGLES):
            paused, completed = runs.carry_out(mode)
            runs.note(PAUSED, mode, paused)
            runs.note(COMPLETED, mode, completed)

    parts = cost(runs, SINGLES, come)
    for part, milliseconds in (parts | {ALL: sum(parts.values())}).items():
        runs.note(CPU.format(part=part), mode, milliseconds)


def resumed(runs: Runs, mode: str) -> None:
    """Measure how soon a suspended order ends after its answer."""
    run_id = runs.start(mode, "suspend")
    runs.reach(run_id, "Suspended")
    time.sleep(SETTLE_SECONDS)
    began = time.monotonic()
    runs.answer(run_id)
    runs.reach(run_id, "Completed")
    runs.note(RESUMED, mode, time.monotonic() - began)


def at_once(runs: Runs, mode: str, orders: int) -> None:
    """Measure how long many orders take that come at the same time."""
    began = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as clients:
        waiting = set(clients.map(lambda _: runs.start(mode), range(orders)))
    under_way = set(waiting)
    while under_way:
        if time.monotonic() - began > DEADLINE_SECONDS:
            raise SystemExit(f"{len(under_way)} of {orders} {mode} runs have not ended")
        for run_id, (state, kind) in runs.states(sorted(under_way)).items():
            if state == "Paused" and run_id in waiting:
                if runs.api.resume(run_id, ANSWER) == "ACCEPT":
                    waiting.remove(run_id)
            elif state == "Completed":
                under_way.remove(run_id)
            elif kind in ENDED:
                raise SystemExit(f"the run {run_id} is {state}")
        time.sleep(POLL_SECONDS)
    runs.note(AT_ONCE, mode, time.monotonic() - began)


def memory_of_waiting(runs: Runs, mode: str) -> None:
    """Measure what the system takes more with orders that wait."""
    time.sleep(SETTLE_SECONDS)
    before = runs.memory()
    started = [runs.start(mode) for _ in range(WAITING)]
    for run_id in started:
        runs.reach(run_id, "Paused")
    time.sleep(SETTLE_SECONDS)
    runs.note(MEMORY, mode, (runs.memory() - before) / WAITING)
    for run_id in started:
        runs.answer(run_id)
    for run_id in started:
        runs.reach(run_id, "Completed")


def idle(runs: Runs, mode: str, seconds: float) -> None:
    """Measure the processor time of a system whose schedules alone make runs."""
    set_run_command(runs.api, WORK_POOL, runs.command if mode == "warm" else None)
    time.sleep(WORKER_LOOKS_SECONDS)
    for deployment in DEPLOYMENTS:
        runs.api.unpause(deployment)
    # It starts recovery, which has the dispatcher started.
    runs.local.run_module("deployments.automations")
    time.sleep(UPKEEP_LISTENS_SECONDS)
    before, began = sum(runs.cpu().values()), time.monotonic()
    time.sleep(seconds)
    used = sum(runs.cpu().values()) - before
    runs.note(IDLE, mode, used / (time.monotonic() - began) * 3600)
    for deployment in DEPLOYMENTS:
        runs.api.pause(deployment)


@contextmanager
def starting(local: LocalSystem) -> Iterator[Runs]:
    """Prepare a system with deployments and a worker; yield what starts runs on it."""
    with open_store(local.store_url) as session:
        session.execute(update(Book).values(quantity=ENOUGH, initial_quantity=ENOUGH))
        session.execute(update(Courier).values(capacity_copies=ENOUGH))
        session.commit()
    prefect = make_url(local.store_url).set(drivername="postgresql", database="prefect")
    with (
        local.api() as api,
        psycopg.connect(prefect.render_as_string(hide_password=False), autocommit=True) as states,
    ):
        for deployment in DEPLOYMENTS:
            api.pause(deployment)
        command = run_command(local.python, local.project_dir)
        set_run_command(api, WORK_POOL, None)
        time.sleep(WORKER_LOOKS_SECONDS)
        deployment_id = str(api.read_deployment_by_name(CHECKOUT_DEPLOYMENT).id)
        yield Runs(local, api, states, command, deployment_id)


def warm_at_once(local: LocalSystem, orders: int) -> tuple[float, float]:
    """Return the orders a second of warm runs at once, and an order's milliseconds of a core."""
    with starting(local) as runs:
        runs.carry_out("warm")
        each = cost(runs, orders, lambda: at_once(runs, "warm", orders))
        (seconds,) = runs.figures[AT_ONCE]["warm"]
    return orders / seconds, sum(each.values())


def measure(
    local: LocalSystem,
    report: Callable[[str], None],
    rounds: int = ROUNDS,
    orders: int = ORDERS,
    idle_seconds: float = IDLE_SECONDS,
) -> Figures:
    """Measure both ways in turns on a system that has deployments and a worker."""
    with starting(local) as runs:
        for mode in MODES:
            runs.carry_out(mode)
        for number in range(rounds):
            for mode in MODES:
                report(f"round {number + 1} of {rounds}, {mode}: one at a time")
                one_at_a_time(runs, mode)
                resumed(runs, mode)
                report(f"round {number + 1} of {rounds}, {mode}: {orders} at once")
                at_once(runs, mode, orders)
        for mode in MODES:
            report(f"{mode}: {WAITING} orders that wait")
            memory_of_waiting(runs, mode)
        if idle_seconds:
            for mode in MODES:
                report(f"{mode}: idle for {idle_seconds:.0f} s")
                idle(runs, mode, idle_seconds)
    return runs.figures


def show(figures: Figures, orders: int) -> Table:
    """Return the table of both ways with their ratios and targets."""
    table = Table("", *MODES, "warm ÷ cold", "target")
    for name, modes in figures.items():
        cold, warm = (median(modes[mode]) for mode in MODES)
        target = TARGETS.get(name)
        table.add_row(
            name.format(orders=orders),
            f"{cold:.1f}",
            f"{warm:.1f}",
            f"{warm / cold:.2f}",
            "" if target is None else f"≤ {target:.2f}",
        )
    return table


def run(ground: Ground, console: Console) -> None:
    """Measure and print."""
    ground.system.deploy()
    ground.system.start_worker()
    console.print(show(measure(ground.system, console.print), ORDERS))


@command("python -m benchmarks.runs", __doc__)
def main(
    *,
    rounds: WholeNumber = ROUNDS,
    orders: WholeNumber = ORDERS,
    idle_seconds: float = IDLE_SECONDS,
    as_json: AsJson = False,
) -> None:
    """Measure cold and warm runs in turns.

    Args:
        rounds: How many.
        orders: Orders at once.
        idle_seconds: How long the system is watched idle; 0 for not at all.
        as_json: Print each figure, too.
    """
    console = Console(width=120)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        LocalSystem(Path(folder), report=console.print, preferred_port=0) as local,
    ):
        figures = measure(local, console.print, rounds, orders, idle_seconds)
    console.print(show(figures, orders))
    if as_json:
        every: dict[str, Any] = {name: dict(modes) for name, modes in figures.items()}
        console.print(json.dumps(every, indent=1))


if __name__ == "__main__":
    sys.exit(main())
