"""Blocking database sessions, and the end of frozen ones.

Needs no superuser: a role sees what its own sessions do. Of another role's session it sees name and
process id, no age and no state; ``GRANT pg_read_all_stats`` shows it the rest.
"""

import logging
from dataclasses import dataclass

from sqlalchemy import Connection, text
from sqlmodel import Session

from store.sessions import STEP

logger = logging.getLogger("store.blockers")

BLOCKERS = """
WITH RECURSIVE waits AS MATERIALIZED (
  SELECT pid, unnest(pg_blocking_pids(pid)) AS blocker FROM pg_stat_activity
  WHERE datname = current_database() AND (wait_event_type = 'Lock' OR state IS NULL)
), waiting (blocker, pid) AS (
  SELECT blocker, pid FROM waits WHERE blocker NOT IN (SELECT pid FROM waits)
  UNION
  SELECT waiting.blocker, waits.pid FROM waiting JOIN waits ON waits.blocker = waiting.pid
)
SELECT waiting.blocker AS pid, COUNT(*) AS waiting, COALESCE(application_name, '') AS name,
  COALESCE(state, 'hidden') AS state,
  COALESCE(EXTRACT(EPOCH FROM clock_timestamp() - xact_start), 0) AS seconds
FROM waiting LEFT JOIN pg_stat_activity session ON session.pid = waiting.blocker
GROUP BY waiting.blocker, application_name, state, xact_start
ORDER BY seconds DESC
"""
"""Sessions that wait for no other one, each with the number of those behind it."""
FROZEN = """
SELECT pid, application_name AS name, pg_terminate_backend(pid),
  EXTRACT(EPOCH FROM clock_timestamp() - query_start) AS seconds
FROM pg_stat_activity
WHERE datname = current_database() AND usename = current_user
  AND application_name LIKE :application
  AND backend_xid IS NOT NULL AND wait_event = 'ClientWrite'
  AND query_start < clock_timestamp() - make_interval(secs => :seconds)
"""
"""A session that only reads has no ``backend_xid``: the audit's reader may take its time."""


@dataclass(frozen=True, slots=True)
class Blocker:
    """A session whose locks others wait for.

    ``name`` is its application's, ``store <host>:<pid>`` of a process of ours. ``seconds`` is its
    transaction's age; zero of a session whose state is hidden from this role.
    """

    pid: int
    name: str
    state: str
    seconds: float
    waiting: int

    @property
    def is_hidden(self) -> bool:
        """Whether this role may not see what the session does."""
        return self.state == "hidden"


def blockers(session: Session) -> list[Blocker]:
    """Return the sessions that others wait for, the oldest transaction first."""
    return [
        Blocker(row.pid, row.name, row.state, float(row.seconds), row.waiting)
        for row in session.connection().execute(text(BLOCKERS))
    ]


def end_frozen_sessions(connection: Connection) -> None:
    """Terminate this role's frozen sessions that hold row locks.

    PostgreSQL's own time-outs do not reach a session that is sending: where its process is frozen
    in the middle of a large result, its locks stay until somebody ends it. By TCP the connection's
    time-out does; a connection by socket file has none.
    """
    ended = connection.execute(
        text(FROZEN), {"application": "store %", "seconds": STEP.idle_seconds}
    )
    for row in ended:
        logger.warning(
            "ended database session %d (%s), which took no answer for %.0f s",
            *(row.pid, row.name, row.seconds),
        )
