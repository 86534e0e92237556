"""The environments of a local system's processes."""

import os
from pathlib import Path

_OF_PREFECT = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
OF_RUNS = {
    "PREFECT_LOGGING_EXTRA_LOGGERS": "store",
    # What hooks log outside of a run goes to the worker's log alone.
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    # With the default of 5 an outage of the server over 68 s fails every waiting order.
    "PREFECT_CLIENT_MAX_RETRIES": "10",
    # Each run would ask for both: our server has no such protection, and which versions go
    # together is a question of `checkout doctor`.
    "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false",
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
    # By default each of a run's six clients reads a hundred certificates, for https alone.
    "PREFECT_API_SSL_CERT_FILE": str(Path(__file__).with_name("no_authority.pem")),
    # Of each process, with every call of it; the default is 2 s.
    "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "5",
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    # Of a failed run Prefect keeps the error in a file: by default a pickle, which runs code where
    # it is read.
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    # deployments/automations.py takes a run for dead after four of these are missing.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # The default of 10 s would be most of an order's time here.
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "STORE_PAUSE_POLL_SECONDS": "1",
}
_OF_SERVER = {
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    # Leases in memory are lost with the server, and a slot they held for ever taken.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
        "prefect.server.concurrency.lease_storage.filesystem"
    ),
    # The server reads every paused run each time: ten thousand of them, each five seconds, keep two
    # fifths of a core busy.
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_LOOP_SECONDS": "60",
    # By default each of an order's eighteen task events is a transaction of its own.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}


def run_settings(
    *,
    data_dir: Path,
    project_dir: Path,
    api_url: str,
    ui_url: str,
    store_url: str,
    work_pool: str,
    auth: str | None,
) -> dict[str, str]:
    """Return the environment variables of the store's processes.

    Settings of the store that this process has are kept.
    """
    chosen = {name: value for name, value in os.environ.items() if name.startswith("STORE_")}
    return {
        **chosen,
        **_OF_PREFECT,
        **OF_RUNS,
        "PREFECT_HOME": _home(data_dir),
        "PREFECT_API_URL": api_url,
        "PREFECT_UI_URL": ui_url,
        **({"PREFECT_API_AUTH_STRING": auth} if auth else {}),
        "STORE_HOME": str(project_dir),
        "STORE_DATABASE_URL": store_url,
        "STORE_WORK_POOL": work_pool,
    }


def server_settings(
    *, data_dir: Path, api_url: str, database_url: str, auth: str | None
) -> dict[str, str]:
    """Return the environment variables of the Prefect server."""
    return {
        **_OF_PREFECT,
        **_OF_SERVER,
        "PREFECT_HOME": _home(data_dir),
        **({"PREFECT_SERVER_API_AUTH_STRING": auth} if auth else {}),
        "PREFECT_API_DATABASE_CONNECTION_URL": database_url,
        # The browser calls this address; without it the UI is empty on other ports.
        "PREFECT_UI_API_URL": api_url,
    }


def _home(data_dir: Path) -> str:
    return str(data_dir / "prefect")
