"""The whole system on this machine, from database to worker.

Owns every process it starts (each on a leash, see `deployments.leash`) and the folder with their
data and logs. Refuses to start twice on one folder. `deployments.up` starts it by hand.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self
from uuid import uuid4

import httpx
import psycopg
from sqlalchemy.exc import DBAPIError

from deployments import warm_start
from deployments.embedded import EmbeddedPostgres
from deployments.leash import Leashed
from deployments.local_settings import run_settings, server_settings
from deployments.machine import HOST, SetupError, free_port, inherited_environment, lock
from deployments.prefect_server import PrefectServer

PROJECT_DIR = Path(__file__).resolve().parent.parent
PREFERRED_PORT = 4200
WORK_POOL = "local"
ORDERS_QUEUE = "default"
"""The work queue of checkouts and batches; the shop's own flows have another one, without limit."""
DISPATCH_DEPLOYMENT = "dispatch-orders/local"
ONLINE_DEPLOYMENT = "batch-checkout/online"
CHECKOUT_DEPLOYMENT = "store-checkout/local"

# The server migrates its empty database first: 10 to 25 s were seen, on a loaded machine more.
_SERVER_SECONDS = 180.0
_WORKER_SECONDS = 120.0
_COMMAND_SECONDS = 180.0
# Prefect's runner gives a flow run 30 s of its own to end; a stop of the whole system is no time
# to wait that long, and an order survives its process.
_WORKER_STOP_SECONDS = 15.0
# The pages of the UI's version 2. Addresses without this lead to version 1, in whose forms a mouse
# cannot open a list of choices (Prefect 3.8.8), so nobody could answer a waiting order.
_UI_PAGES = "/v2"
# Each start keeps a core busy for seconds and takes 0.1 GB: hundreds at once would take more memory
# than there is. Runs that are paused do not count.
_ORDERS_AT_ONCE = 8 * (os.cpu_count() or 1)
# PostgreSQL writes its log in files of 16 MB, and ends if there is no room for the next one.
_LEAST_FREE_BYTES = 32_000_000
_EXPECTED = (SetupError, psycopg.Error, DBAPIError, httpx.HTTPError)
# Somebody else may take the port between our choice and the server's bind.
_PORT_TRIES = 3


class LocalSystem:
    """The running system, from `start` (or `with`) to `stop`.

    Args:
        data_dir: databases, logs and Prefect's files; made if missing, kept at the end.
        report: called with a line for each phase of starting and stopping.
        project_dir: the folder with prefect.yaml and the packages.
        durable: False trades safety against a power cut for speed; for throw-away data.
        preferred_port: taken for the server if it is free.
        auth: the `user:password` without which the server answers nobody; None for no such.
        worker: False starts neither deployments nor a worker: nothing runs but what the caller
            runs, as a measurement needs it.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        report: Callable[[str], None] = lambda _line: None,
        project_dir: Path = PROJECT_DIR,
        durable: bool = True,
        preferred_port: int = PREFERRED_PORT,
        auth: str | None = None,
        worker: bool = True,
    ) -> None:
        self.data_dir = data_dir.resolve()
        self.logs_dir = self.data_dir / "logs"
        self.project_dir = project_dir.resolve()
        self._report = report
        self._preferred_port = preferred_port
        self._auth = auth
        self._worker = worker
        self._postgres = EmbeddedPostgres(self.data_dir / "postgres", durable=durable)
        self._port: int | None = None
        self._server: Leashed | None = None
        self._children = ExitStack()
        self.workers: list[Leashed] = []
        # A test of the move to another Prefect names the interpreter of another environment.
        self.python = sys.executable

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def ui_url(self) -> str:
        """Where the browser finds the Prefect UI.

        Raises:
            SetupError: the system is not running.
        """
        if self._port is None:
            raise SetupError("The local system is not running.")
        return f"http://{HOST}:{self._port}"

    @property
    def api_url(self) -> str:
        """The value of PREFECT_API_URL."""
        return f"{self.ui_url}/api"

    def api(self) -> PrefectServer:
        """Return a client of the running system's server."""
        return PrefectServer(self.api_url, self._auth)

    @property
    def store_url(self) -> str:
        """The SQLAlchemy address of the store's database."""
        return self._postgres.sqlalchemy_url("store")

    def settings(self) -> dict[str, str]:
        """Return the environment variables of each of the store's processes."""
        return run_settings(
            data_dir=self.data_dir,
            project_dir=self.project_dir,
            api_url=self.api_url,
            ui_url=f"{self.ui_url}{_UI_PAGES}",
            store_url=self.store_url,
            work_pool=WORK_POOL,
            auth=self._auth,
        )

    def start(self) -> None:
        """Start all parts and return when the worker, if any, is online.

        Raises:
            SetupError: a part did not start, or the folder is in use by another system.
        """
        try:
            self._children.enter_context(lock(self.data_dir))
            self.logs_dir.mkdir(parents=True, exist_ok=True)
            self._start_postgres()
            self._port = free_port(self._preferred_port)
            server = self._start_server()
            self._prepare_store()
            self._wait_for_server(server)
            self._report_dead_runs()
            if self._worker:
                self.deploy()
                self.start_worker()
        except BaseException as error:
            try:
                if isinstance(error, _EXPECTED):
                    raise SetupError(self._why_it_failed(error)) from error
                raise
            finally:
                self.stop()

    def stop(self) -> None:
        """Stop worker, flow runs, server and database, once or again."""
        self._children.close()
        self.workers.clear()
        self._server = None
        self._port = None

    def require_running(self) -> None:
        """Check that every started part still runs.

        Raises:
            SetupError: one has ended by itself; the message has the last of its log. Or the
                folder with the data is gone.
        """
        cluster = self._postgres.data_dir
        if self._postgres.process is not None and not cluster.is_dir():
            raise SetupError(
                f"{cluster} was moved away or deleted while it was in use. Put it back before you "
                "start again; without it, the next start begins anew, without its orders."
            )
        parts = [("PostgreSQL", self._postgres.process), ("Prefect server", self._server)]
        for name, process in (*parts, *(("worker", worker) for worker in self.workers)):
            status = None if process is None else process.exit_status()
            if process is not None and status is not None:
                raise SetupError(
                    f"The {name} has ended by itself, with status {status} ({process.log}):\n"
                    f"{process.log_tail()}\n"
                    "Nothing is lost: orders and runs go on with the next start."
                )

    def _why_it_failed(self, error: Exception) -> str:
        """Return what failed, and the full disk or ended database behind it."""
        why = str(error.orig if isinstance(error, DBAPIError) else error)
        postgres = self._postgres.process
        if postgres is not None and postgres.exit_status() is not None:
            why = f"PostgreSQL has ended by itself ({postgres.log}):\n{postgres.log_tail()}"
        free_bytes = shutil.disk_usage(self.data_dir).free
        if free_bytes < _LEAST_FREE_BYTES:
            why += (
                f"\nThe disk of {self.data_dir} is full ({free_bytes // 1_000_000} MB are free). "
                "Make room, or name another folder with --data, and start again."
            )
        return why

    def run_module(self, module: str, *arguments: str) -> None:
        """Run a module of the project in the system's environment.

        Raises:
            SetupError: it ended with another status than 0.
        """
        self._run([self.python, "-m", module, *arguments], f"{module}.log")

    def _start_postgres(self) -> None:
        self._report("Starting PostgreSQL (a second; the first time ten) …")
        self._children.enter_context(self._stopping("PostgreSQL", self._postgres.stop))
        self._postgres.start()
        for name in ("store", "prefect"):
            self._postgres.create_database(name)

    def restart_server(self, while_down: Callable[[], None]) -> None:
        """Kill the Prefect server and start it again on its port.

        `while_down` is called in between.

        Raises:
            SetupError: the system is not running, or the server does not start again.
        """
        if self._server is None:
            raise SetupError("The local system is not running.")
        self._server.stop()
        while_down()
        self._wait_for_server(self._start_server())

    def _start_server(self) -> Leashed:
        self._report(f"Starting the Prefect server on port {self._port} …")
        server = Leashed(
            self._prefect("server", "start", "--host", HOST, "--port", str(self._port)),
            log=self.logs_dir / "server.log",
            env=inherited_environment()
            | server_settings(
                data_dir=self.data_dir,
                api_url=self.api_url,
                database_url=self._postgres.prefect_url("prefect"),
                auth=self._auth,
            ),
            cwd=self.data_dir,
        )
        self._children.enter_context(self._stopping("Prefect server", server.stop))
        self._server = server
        return server

    def _prepare_store(self) -> None:
        self._report("Migrating and seeding the store's database (3 to 10 s) …")
        from deployments.migrate import bring_up_to_date
        from store.errors import DatabaseVersionUnknown

        try:
            bring_up_to_date(self.store_url)
        except DatabaseVersionUnknown as error:
            raise SetupError(
                f"{self.data_dir}: {error}. Or name another folder with --data"
            ) from error
        self.run_module("seed")

    def _wait_for_server(self, server: Leashed) -> None:
        self._report("Waiting for the Prefect server (10 to 25 s: it migrates its own database) …")
        tries = 1
        while not self._server_answers(server):
            if tries == _PORT_TRIES:
                raise SetupError(f"The Prefect server got no port:\n{server.log_tail()}")
            tries += 1
            self._report(f"Port {self._port} was taken meanwhile; trying another one.")
            self._port = free_port(0)
            server = self._start_server()
        self._report(f"The Prefect server answers at {self.ui_url}")

    def _server_answers(self, server: Leashed) -> bool:
        """Return whether it answers, False if its port was taken."""
        port = self._port
        if port is None:
            raise SetupError("The local system is not running.")
        with self.api() as api:
            # A server of somebody else on our port would answer as well.
            why = server.why_not_ready(
                lambda: api.is_healthy() and server.listens_on(port), _SERVER_SECONDS
            )
        if why and "already in use" not in server.printed():
            raise SetupError(f"The Prefect server {why}")
        return not why

    def _report_dead_runs(self) -> None:
        """Mark the runs that the last stop interrupted as crashed.

        No process of an earlier start lives, we hold the lock. But Prefect does not know it: those
        runs would stay Paused or Running for ever, and a dispatcher among them would keep the
        only slot of its deployment. `recover_orders` then lets their orders go on.
        """
        with self.api() as api:
            interrupted = api.runs_under_way()
            for run in interrupted:
                api.set_state(run.id, "CRASHED", "Crashed", "The system was stopped.")
        if interrupted:
            self._report(f"{len(interrupted)} runs that the last stop interrupted will go on")

    def deploy(self) -> None:
        """Create the work pool and apply prefect.yaml and the automations.

        Raises:
            SetupError: the system is not running, or a command failed.
        """
        # Imported here, so that the first line is printed sooner.
        from deployments import automations
        from deployments.apply import DEPLOY, what_to_apply

        with self.api() as api:
            # First of all: a deployment to a missing pool is accepted, and its runs never start.
            api.ensure_work_pool(WORK_POOL, "process")
            wanted = warm_start.is_wanted()
            command = warm_start.run_command(self.python, self.project_dir) if wanted else None
            self._report(warm_start.set_run_command(api, WORK_POOL, command))
            self._report("Applying prefect.yaml (5 to 20 s) …")
            api.limit_queue(WORK_POOL, ORDERS_QUEUE, _ORDERS_AT_ONCE)
            with what_to_apply(api) as file:
                self._run([self.python, *DEPLOY, str(file)], "deploy.log")
            automations.apply(api, automations.SILENCE_SECONDS)
            automations.start_recovery(api)

    def start_worker(self) -> Leashed:
        """Start one more process worker and return when it is online.

        Raises:
            SetupError: it has ended, or is not online in time.
        """
        name = f"local-{uuid4().hex[:8]}"
        self._report("Starting a worker (5 to 15 s) …")
        worker = Leashed(
            self._prefect(
                "worker", "start", "--pool", WORK_POOL, "--type", "process", "--name", name
            ),
            log=self.logs_dir / f"worker-{name}.log",
            env={**inherited_environment(), **self.settings()},
            cwd=self.data_dir,
            grace_seconds=_WORKER_STOP_SECONDS,
        )
        self._children.enter_context(self._stopping("worker and its flow runs", worker.stop))
        with self.api() as api:
            why = worker.why_not_ready(
                lambda: api.worker_is_online(WORK_POOL, name), _WORKER_SECONDS
            )
        if why:
            raise SetupError(f"The worker {why}")
        self.workers.append(worker)
        self._report("The worker is online")
        return worker

    def _prefect(self, *arguments: str) -> list[str]:
        return [self.python, "-m", "prefect", *arguments]

    def _run(self, command: Sequence[str], log_name: str) -> None:
        """Run a command to its end, on a leash like the others."""
        process = Leashed(
            command,
            log=self.logs_dir / log_name,
            env={**inherited_environment(), **self.settings()},
            cwd=self.project_dir,
        )
        try:
            status = process.wait(_COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            raise SetupError(
                f"{shlex.join(command)} did not end in {_COMMAND_SECONDS:.0f} s:\n"
                f"{process.log_tail()}"
            ) from None
        finally:
            process.stop()
        if status != 0:
            raise SetupError(
                f"{shlex.join(command)} ended with status {status}:\n{process.log_tail()}"
            )

    @contextmanager
    def _stopping(self, what: str, stop: Callable[[], None]) -> Iterator[None]:
        try:
            yield
        finally:
            self._report(f"Stopping: {what} …")
            stop()
