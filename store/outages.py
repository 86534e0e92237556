"""Classification of database errors as outages or defects.

After an outage the same call may succeed. An error is classified by its SQLSTATE, never by the
class that the driver gives it: a read-only server is an `InternalError`, a statement that is too
complex an `OperationalError`.
"""

from typing import NamedTuple

import psycopg
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

READ_ONLY = "25006"
LOCK_NOT_AVAILABLE = "55P03"


class Outage(NamedTuple):
    """Why an error passes, and the page of PostgreSQL's manual on it."""

    why: str
    source: str


OUTAGES = {
    "08": Outage("the connection failed", "errcodes-appendix.html"),
    READ_ONLY: Outage(
        "the server takes no writes, as in a failover", "hot-standby.html#HOT-STANDBY-USERS"
    ),
    "25P03": Outage(
        "the transaction was idle for too long",
        "runtime-config-client.html#GUC-IDLE-IN-TRANSACTION-SESSION-TIMEOUT",
    ),
    "25P04": Outage(
        "the transaction took too long", "runtime-config-client.html#GUC-TRANSACTION-TIMEOUT"
    ),
    "40001": Outage("another transaction came first", "mvcc-serialization-failure-handling.html"),
    "40P01": Outage(
        "two transactions waited for each other", "mvcc-serialization-failure-handling.html"
    ),
    "53": Outage(
        "disk, memory, connections or a configured limit are used up", "errcodes-appendix.html"
    ),
    LOCK_NOT_AVAILABLE: Outage(
        "another session kept its lock for too long", "runtime-config-client.html#GUC-LOCK-TIMEOUT"
    ),
    "57": Outage(
        "a time-out, an operator, a start, a stop or a crash of the server ended the call",
        "errcodes-appendix.html",
    ),
    "58000": Outage("the server's operating system failed", "errcodes-appendix.html"),
    "58030": Outage("the server's disk failed", "errcodes-appendix.html"),
}
"""Codes and whole classes, which are the first two characters of a code."""


def is_outage(error: BaseException) -> bool:
    """Return whether ``error`` means the database was unavailable, busy or failing over.

    Args:
        error: SQLAlchemy's error, or the driver's own.
    """
    if isinstance(error, PoolTimeoutError):
        # All of this process's connections were in use for as long as one was waited for.
        return True
    if not isinstance(error, DBAPIError | psycopg.Error):
        return False
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    code = sqlstate_of(error)
    if code is not None:
        return why_it_passes(code) is not None
    # A connection that is refused or lost has no code: libpq gives its reason as text alone, a
    # wrong password or database as well. Nothing was sent, and settings of a server change.
    return isinstance(error, OperationalError | psycopg.OperationalError)


def why_it_passes(code: str) -> str | None:
    """Return why an error of this SQLSTATE is transient, else None."""
    outage = OUTAGES.get(code) or OUTAGES.get(code[:2])
    return outage.why if outage else None


def sqlstate_of(error: BaseException | None) -> str | None:
    """Return the SQLSTATE of an error, None without an answer."""
    if isinstance(error, DBAPIError):
        error = error.orig
    code: str | None = getattr(error, "sqlstate", None)
    return code
