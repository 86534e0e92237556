"""Wake-ups by LISTEN and NOTIFY for processes that wait for rows.

A slow poll stands behind them.

A notification is the fast path, never the guarantee. One that is lost, in an outage or behind a
pooler that pools by transaction, costs its listener one slow poll.
"""

import logging
import time
from typing import Any

from sqlalchemy import Connection, func, select, text
from sqlmodel import Session

from store.database import unpooled_engine
from store.outages import is_outage
from store.settings import settings

logger = logging.getLogger("store.wakeups")

ORDERS_TO_CARRY = "store_orders_to_carry"
"""Notified when orders are submitted or decided, for batches that listen."""
ORDERS_CHANGED = "store_orders_changed"
"""Notified when orders change their status, for what tells people so."""
SLOW_POLL_SECONDS = 2.0
"""What a lost notification costs; one cheap query in this time while nothing happens."""


def notify(session: Session, *channels: str) -> None:
    """Wake the listeners of channels once the session's transaction is committed.

    Transactions that notify commit one after the other, so each is to be short.
    """
    session.execute(select(*(func.pg_notify(channel, "") for channel in channels)))


class Listener:
    """A listener to a channel's notifications, on its own database connection.

    Look for rows between two waits, never only after one: a wait that connects returns at once,
    since what was notified before is lost.

    Args:
        channel: The channel's name, one of the code's own.
    """

    def __init__(self, channel: str) -> None:
        self._channel = channel
        self._connection: Connection | None = None

    def wait(self, seconds: float) -> None:
        """Return at a notification, after ``seconds``, or after the slow poll.

        In an outage it drops its connection; the next wait connects again.

        Raises:
            Exception: the database refuses to let this role listen.
        """
        seconds = min(seconds, SLOW_POLL_SECONDS)
        try:
            if self._connection is not None:
                _await(self._connection, seconds)
                return
            self._connection = self._connected()
        except Exception as error:
            if not is_outage(error):
                raise
            logger.warning("no notifications of %s: %s", self._channel, _first_line(error))
            if self._connection is None:
                time.sleep(seconds)
            self.close()

    def close(self) -> None:
        """Close the connection until the next wait."""
        if self._connection is not None:
            # It may be lost, and a close alone would first send a ROLLBACK.
            self._connection.invalidate()
            self._connection.close()
            self._connection = None

    def _connected(self) -> Connection:
        connection = unpooled_engine(settings().database_url).connect()
        try:
            connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.execute(text(f"LISTEN {self._channel}"))
        except BaseException:
            connection.close()
            raise
        return connection


def _await(connection: Connection, seconds: float) -> None:
    driver: Any = connection.connection.driver_connection
    for _ in driver.notifies(timeout=seconds, stop_after=1):
        pass


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
