"""The doctor's checks of Prefect's settings, server and database."""

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import requires
from importlib.metadata import version as installed
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import prefect
import psutil
from packaging.requirements import Requirement
from packaging.version import Version
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED,
    get_current_settings,
    temporary_settings,
)

from console.diagnosis import Check, Diagnosis, mend, not_checked, ok, warning
from flows.runs.work_pool import INTERNAL_ERROR, UNTRUSTED

LEAST_RETRIES = 10
"""With Prefect's own 5, an outage of the server over about 68 s reaches the waiting runs."""
LEAST_PAUSES_INTERVAL_SECONDS = 30.0
"""With Prefect's own 5, its server is busy with reading paused runs while thousands wait."""
PATIENCE_SECONDS = 10.0
THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


@contextmanager
def open_server() -> Iterator[SyncPrefectClient]:
    """Open a client that reports a missing server at once.

    A worker's would try for minutes.
    """
    quick = {
        PREFECT_CLIENT_MAX_RETRIES: 0,
        PREFECT_API_REQUEST_TIMEOUT: PATIENCE_SECONDS,
        # Which versions go together is the doctor's own question.
        PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: False,
    }
    with temporary_settings(quick), get_client(sync_client=True) as client:
        yield client


def _prefect_settings() -> Iterator[Diagnosis]:
    chosen = get_current_settings()
    if chosen.client.max_retries < LEAST_RETRIES:
        yield mend(
            f"PREFECT_CLIENT_MAX_RETRIES is {chosen.client.max_retries}: an outage of the server "
            "over a minute reaches the waiting runs",
            f"set it to {LEAST_RETRIES} for every worker",
        )
    if chosen.runner.crash_on_cancellation_failure:
        yield mend(
            "PREFECT_RUNNER_CRASH_ON_CANCELLATION_FAILURE is true: an outage of the server over "
            "30 s crashes every waiting run",
            "unset it",
        )
    if behaviour := os.environ.get("PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"):
        yield warning(
            f"PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR is {behaviour}: a run that is told to stop "
            "does not tell its hook",
            "unset it; the hook starts the run again at once",
        )
    try:
        ssl.create_default_context(cafile=chosen.api.ssl_cert_file)
    except OSError as error:
        yield mend(
            f"PREFECT_API_SSL_CERT_FILE is {chosen.api.ssl_cert_file}, which cannot be read as "
            f"certificates: {error.strerror}. Every run ends at its start",
            "name a file of certificates that is there, or unset it",
        )
    if chosen.api.auth_string and chosen.api.key:
        yield warning(
            "PREFECT_API_AUTH_STRING and PREFECT_API_KEY are both set; only one can be meant",
            "unset PREFECT_API_KEY, unless Prefect Cloud is used",
        )
    if not (chosen.ui_url or "").rstrip("/").endswith("/v2"):
        yield warning(
            "PREFECT_UI_URL does not end in /v2: links in notices lead to the old UI, in whose "
            "forms a mouse cannot choose an answer",
            "set it to the UI's address with /v2 at its end",
        )
    if "store" not in (chosen.logging.extra_loggers or []):
        yield warning(
            "PREFECT_LOGGING_EXTRA_LOGGERS lacks `store`: what the store logs is not shown with "
            "its run",
            "set it to store",
        )


def _prefect_server() -> Iterator[Diagnosis]:
    chosen = get_current_settings()
    if not chosen.api.url:
        yield mend(
            "PREFECT_API_URL is not set: each command and worker would start a server of its own",
            "set it to the address of your server, with /api at its end; for the system of "
            "`make up`: . .local/env",
        )
        return
    with open_server() as client:
        try:
            version = client.api_version()
            # Which, unlike its version, it reads from its database.
            client.read_flows(limit=1)
        except httpx.HTTPStatusError as error:
            code = error.response.status_code
            if code >= INTERNAL_ERROR:
                yield mend(
                    f"{chosen.api.url} runs and fails (HTTP {code}), as without its own database",
                    "start the PostgreSQL of its PREFECT_API_DATABASE_CONNECTION_URL, or see the "
                    "server's log; orders wait on, and a worker that has ended needs a new start",
                )
                return
            if code not in (401, 403):
                raise
            yield mend(
                f"{chosen.api.url} does not let us in ({code})",
                "set PREFECT_API_AUTH_STRING to what the server has in "
                "PREFECT_SERVER_API_AUTH_STRING",
            )
            return
        except httpx.TransportError as error:
            yield mend(
                f"{chosen.api.url} does not answer: {error}",
                "name a file with the server's authority in PREFECT_API_SSL_CERT_FILE"
                if UNTRUSTED in str(error)
                else "start the server; waiting orders wait on meanwhile",
            )
            return
    yield ok(f"{chosen.api.url} answers, with Prefect {version}")


def _prefect_version() -> Iterator[Diagnosis]:
    with open_server() as client:
        server = client.api_version()
    here = prefect.__version__
    tested = next(
        requirement.specifier
        for requirement in map(Requirement, requires("store-checkout") or [])
        if requirement.name == "prefect"
    )
    wrong = [version for version in {server, here} if version not in tested]
    if server != here:
        yield mend(
            f"the server has Prefect {server}, this installation {here}",
            "install the same version on both",
        )
    if wrong:
        yield mend(
            f"Prefect {', '.join(sorted(wrong))} is not tested with the store ({tested})",
            "install the version of constraints.txt",
        )
    sqlalchemy = installed("sqlalchemy")
    if schedules_nothing(here, sqlalchemy):
        wrong.append(here)
        yield mend(
            f"Prefect {here} with SQLAlchemy {sqlalchemy}: a server of this installation starts no "
            "scheduled run",
            "install what constraints.txt has, or constraints-oldest.txt",
        )
    if server == here and not wrong:
        yield ok(f"server and client have Prefect {here}, which is tested")


def schedules_nothing(prefect_version: str, sqlalchemy_version: str) -> bool:
    """Return whether these two versions insert no scheduled runs, without an error.

    Seen with Prefect 3.8.8 and SQLAlchemy 2.1.9, not with Prefect 3.9.1. No bound in pyproject.toml
    excludes the pair and allows each.
    """
    old, new = Version(prefect_version), Version(sqlalchemy_version)
    return old < Version("3.9") and new >= Version("2.1")


def _prefect_database() -> Iterator[Diagnosis]:
    url = urlsplit(get_current_settings().api.url or "")
    opened = _opened_by_server(url.port) if url.hostname in THIS_MACHINE and url.port else None
    if opened is None:
        yield not_checked(
            "a server does not tell its database, and its process cannot be looked into from here; "
            "make sure that it is PostgreSQL"
        )
    elif database := next((path for path in opened if path.suffix == ".db"), None):
        yield mend(
            f"Prefect's server keeps its data in SQLite ({database}): it answers 503 at a handful "
            "of concurrent runs",
            "give it PostgreSQL: PREFECT_API_DATABASE_CONNECTION_URL",
        )
    else:
        yield ok("Prefect's server has no SQLite file open")
    with open_server() as client:
        of_server = client.request("GET", "/admin/settings").json()
    storage = of_server["server"]["concurrency"]["lease_storage"]
    if storage.endswith(".memory"):
        yield warning(
            "Prefect's server keeps concurrency leases in memory: a slot that is taken when it "
            "stops stays taken, and dispatch-orders or recover-orders wait for it",
            "set PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE as docs/settings.md says",
        )
    seconds = of_server["server"]["services"]["pause_expirations"]["loop_seconds"]
    if seconds < LEAST_PAUSES_INTERVAL_SECONDS:
        yield warning(
            f"Prefect's server reads every paused run each {seconds:g} s: ten thousand waiting "
            "orders keep a good part of a core busy with it",
            "set PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_LOOP_SECONDS as docs/settings.md says",
        )


def _opened_by_server(port: int) -> list[Path] | None:
    """Return the open files of the Prefect server on a local port.

    None if that cannot be seen: the process is another user's, or in a container, so that what
    listens here is something in front of it.
    """
    try:
        for connection in psutil.net_connections("tcp"):
            here = connection.laddr and connection.laddr.port == port
            if here and connection.status == psutil.CONN_LISTEN and connection.pid:
                process = psutil.Process(connection.pid)
                if any("prefect" in word for word in process.cmdline()):
                    return [Path(file.path) for file in process.open_files()]
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        return None
    return None


PREFECT_CHECKS = (
    Check(
        "prefect settings", _prefect_settings, "Prefect's settings are safe for orders that wait"
    ),
    Check("prefect server", _prefect_server),
    Check("prefect version", _prefect_version, needs=("prefect server",)),
    Check("prefect database", _prefect_database, needs=("prefect server",)),
)
