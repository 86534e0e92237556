"""A dispatcher's process that stops itself inside its transaction, as a frozen machine does.

Started by ``test_frozen_dispatcher.py`` with the point at which it stops and the orders' ids.
"""

import os
import signal
import sys
from typing import Any
from unittest.mock import patch

import store.sessions
import tasks.couriers
from store.models import Courier
from store.sessions import STEP
from tasks.couriers import find_couriers
from tasks.retries import is_transient
from tests.shop import messages_about

IDLE_SECONDS = 5
"""In place of the real 20 s."""
lock_couriers = tasks.couriers.lock_couriers


def with_its_locks(session: Any) -> dict[str, Courier]:
    couriers = lock_couriers(session)
    stop_once()
    return couriers


def in_its_result(session: Any) -> dict[str, Courier]:
    couriers = lock_couriers(session)
    if not stopped:
        driver = session.connection().connection.dbapi_connection.pgconn
        driver.send_query(b"SELECT repeat('x', 1000) FROM generate_series(1, 100000)")
        stop_once()
        driver.get_result()
        driver.get_result()
    return couriers


stopped: list[bool] = []


def stop_once() -> None:
    if not stopped:
        stopped.append(True)
        os.kill(os.getpid(), signal.SIGSTOP)


def main(point: str, order_ids: list[str]) -> None:
    store.sessions.STEP = STEP._replace(idle_seconds=IDLE_SECONDS)
    stop = {"locks": with_its_locks, "result": in_its_result}[point]
    messages = messages_about(order_ids)
    with patch.object(tasks.couriers, "lock_couriers", stop):
        tries = 1
        while True:
            try:
                decided = find_couriers.fn(messages)
            except Exception as error:
                if not is_transient(error):
                    raise
                tries += 1
            else:
                break
    sys.stdout.write(f"{len(decided)} decided at try {tries}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
