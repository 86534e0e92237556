"""Limit PostgreSQL sessions by what they are for.

A process that freezes or loses its machine inside a transaction keeps its locks, and all who need
them wait. So the server ends what stands still: idle comes before lock, so that the others get
the lock while they still wait for it. An ended call is an outage (:mod:`store.outages`).
"""

import os
import socket
from typing import Any, NamedTuple

from sqlalchemy import URL, Connection, text

FIRST_WITH_TRANSACTION_TIMEOUT = 170_000
"""PostgreSQL 17, as the server gives its version."""
NAME_AT_MOST = 63
"""Bytes of an application's name that PostgreSQL keeps."""
TO_THE_SERVER = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""How a client finds out that its server is gone: libpq's parameters; the last in milliseconds."""
TO_THE_CLIENT = {
    "tcp_keepalives_idle": "30s",
    "tcp_keepalives_interval": "10s",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "30s",
}
"""How the server finds out that its client is gone; a connection by socket file has none of it."""


class Limits(NamedTuple):
    """PostgreSQL time-outs of a session, in seconds.

    They end a lock wait, a statement, an idle transaction and a whole one.
    """

    lock_seconds: int
    statement_seconds: int
    idle_seconds: int
    transaction_seconds: int


STEP = Limits(lock_seconds=30, statement_seconds=45, idle_seconds=20, transaction_seconds=60)
"""A step or a chunk: seconds at most. Thirty chunks may wait for one title's row."""
WHOLE_RUN = STEP._replace(statement_seconds=600, transaction_seconds=900)
"""What writes all orders of a run or a shop at once."""
READING = STEP._replace(statement_seconds=600, idle_seconds=60, transaction_seconds=900)
"""Queries that lock no row; a batch's report counts millions."""
SNAPSHOT = Limits(
    lock_seconds=30, statement_seconds=6 * 3600, idle_seconds=600, transaction_seconds=12 * 3600
)
"""The audit: hours in a shop with years of orders. Somebody may read its output a page at a time,
and the payment gateway is asked in between."""
ARCHIVING = SNAPSHOT._replace(idle_seconds=12 * 3600)
"""It keeps an archive's row, which nobody waits for, while its file is written."""
MIGRATION = Limits(
    lock_seconds=3, statement_seconds=1800, idle_seconds=20, transaction_seconds=3600
)
"""While a change of a table waits for a reader of it, every checkout waits behind it."""


def connect_arguments(url: URL) -> dict[str, Any]:
    """Return the connection arguments that the URL does not set."""
    return {name: value for name, value in TO_THE_SERVER.items() if name not in url.query}


def prepare(connection: Any, is_named: bool) -> None:
    """Set UTC, a step's limits and a name on a new connection.

    Args:
        connection: The driver's connection.
        is_named: Whether the URL gives an application_name, which is kept.
    """
    given = {"TimeZone": "UTC", **TO_THE_CLIENT, **_settings(STEP, connection.info.server_version)}
    if not is_named:
        given["application_name"] = _name()
    each = ", ".join(["set_config(%s, %s, false)"] * len(given))
    connection.execute(f"SELECT {each}", [part for pair in given.items() for part in pair])
    connection.commit()


def limit(connection: Connection, limits: Limits, **others: str) -> None:
    """Set limits, and other settings, for the rest of the present transaction."""
    version = connection.connection.dbapi_connection.info.server_version  # type: ignore[union-attr]
    given = _settings(limits, version) | others
    pairs = list(given.items())
    if "transaction_timeout" in given:
        # PostgreSQL keeps the time of a transaction that has one, unless it is switched off first.
        pairs.insert(0, ("transaction_timeout", "0"))
    each = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in pairs)
    connection.execute(text(f"SELECT {each}"))


def _settings(limits: Limits, server_version: int) -> dict[str, str]:
    settings = {
        "lock_timeout": f"{limits.lock_seconds}s",
        "statement_timeout": f"{limits.statement_seconds}s",
        "idle_in_transaction_session_timeout": f"{limits.idle_seconds}s",
    }
    if server_version >= FIRST_WITH_TRANSACTION_TIMEOUT:
        settings["transaction_timeout"] = f"{limits.transaction_seconds}s"
    return settings


def _name() -> str:
    of_process = f":{os.getpid()}"
    host = f"store {socket.gethostname()}".encode("ascii", "replace").decode()
    return host[: NAME_AT_MOST - len(of_process)] + of_process
