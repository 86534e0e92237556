"""Fifty checkouts at once on the system of `make up`, and its workers replaced in the midst of it.

When `checkout drain` is called some orders wait, some are on their way to it, most have not begun,
and new ones come. Two are answered by a person: one before, one while no worker runs.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from sqlmodel import col, func, select

from deployments.local import DISPATCH_DEPLOYMENT, LocalSystem
from deployments.orders import open_store
from deployments.prefect_api import PrefectApi
from store.models import Decision, Order, OrderStatus
from tests.load.at_once import AtOnce, at_once, dispatch

from .conftest import wait_until

pytestmark = pytest.mark.timeout(900)

ORDERS = 50
AT_ONCE = 40
"""So many are started at once, the others during the drain and after it."""
WAITING = 4
"""So many orders wait at least when the workers are to be replaced."""
BY_A_PERSON = "a person"


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AtOnce]:
    """Fifty orders that have all ended, on workers that were replaced meanwhile."""
    local = LocalSystem(tmp_path_factory.mktemp("at-once"), durable=False, preferred_port=0)
    with local, PrefectApi(local.api_url) as api:
        api.pause_deployment(DISPATCH_DEPLOYMENT)
        local.start_worker()
        orders = at_once(local, api, ORDERS, "pause")
        ids = list(orders.expected)
        orders.start(ids[:AT_ONCE])
        wait_until(lambda: len(waiting(orders, "Paused")) >= WAITING, "orders that wait")
        answer(orders, waiting(orders, "Paused")[0])

        with ThreadPoolExecutor(1) as meanwhile:
            drained = meanwhile.submit(checkout_command, local, "drain", "--timeout", "400")
            for order_id in ids[AT_ONCE:-1]:
                orders.start([order_id])
            done = drained.result()
        assert done.returncode == 0, done.stdout + done.stderr
        assert processes_of_runs(local) == []
        answer(orders, waiting(orders, "Suspended")[0])
        orders.start(ids[-1:])

        for worker in list(local.workers):
            worker.stop()
        for _ in range(2):
            local.start_worker()
        opened = checkout_command(local, "reopen")
        assert opened.returncode == 0, opened.stderr
        dispatch(api)
        orders.until(orders.all_ended, deadline_seconds=600)
        yield orders


def waiting(orders: AtOnce, state: str) -> list[str]:
    """The orders that wait for an answer, whose runs are in this state."""
    with open_store(orders.local.store_url) as session:
        found = session.exec(
            select(Order.id).where(col(Order.status) == OrderStatus.WAITING).order_by(Order.id)
        ).all()
    return [id_ for id_ in found if orders.api.read_run(orders.runs[id_]).state_name == state]


def answer(orders: AtOnce, order_id: str) -> None:
    said = orders.api.resume(
        orders.runs[order_id],
        {"outcome": "courier assigned", "courier": "night-rail", "answered_by": BY_A_PERSON},
    )
    assert said == "ACCEPT"


def checkout_command(local: LocalSystem, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "console.main", *arguments],
        env={**os.environ, **local.settings()},
        capture_output=True,
        text=True,
        check=False,
    )


def processes_of_runs(local: LocalSystem) -> list[str]:
    """The processes that execute a flow run of the system."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        if environment.get("STORE_DATABASE_URL") == local.store_url:
            found.append(environment.get("PREFECT__FLOW_RUN_ID"))
    return [run_id for run_id in found if run_id is not None]


def test_each_of_fifty_ends_right_once_and_none_is_refunded_for_the_restart(
    orders: AtOnce,
) -> None:
    assert orders.wrong() == []


def test_what_a_person_answered_before_and_during_the_restart_counts(orders: AtOnce) -> None:
    with open_store(orders.local.store_url) as session:
        counted = session.scalar(
            select(func.count())
            .select_from(Decision)
            .where(col(Decision.decided_by) == BY_A_PERSON, col(Decision.accepted))
        )
    assert counted == 2
