"""Checkouts at once on the system of `make up`, and its workers replaced in the midst of it.

Two orders wait before the rush, since their messages to the couriers were lost. When some of the
others are dispatched, `checkout drain` is called, and new orders come meanwhile. Not a part of
`make test`, which it would make some minutes longer: `make restart`.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from sqlalchemy import delete
from sqlmodel import col, func, select

from deployments.holdings import open_store
from deployments.local import DISPATCH_DEPLOYMENT, LocalSystem
from deployments.prefect_server import PrefectServer
from store.models import Decision, OrderStatus, QueuedMessage
from tests.e2e.conftest import wait_until
from tests.load.at_once import AtOnce, at_once, dispatch

pytestmark = pytest.mark.timeout(900)

WAITING, AT_ONCE, MEANWHILE = 2, 50, 4
DISPATCHED = 5
"""So many orders are dispatched when the workers are to be replaced."""
BY_A_PERSON = "a person"


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AtOnce]:
    """Orders that have all ended, on workers that were replaced meanwhile."""
    local = LocalSystem(tmp_path_factory.mktemp("at-once"), durable=False, preferred_port=0)
    with local, PrefectServer(local.api_url) as api:
        orders = at_once(local, api, WAITING + AT_ONCE + MEANWHILE, "pause")
        ids = list(orders.expected)
        waiting, meanwhile = ids[:WAITING], ids[WAITING + AT_ONCE :]
        local.start_worker()
        api.pause(DISPATCH_DEPLOYMENT)
        orders.start(waiting)
        wait_until(lambda: state_of(orders, waiting) == {"Paused"}, "orders that wait")
        lose_messages(local)
        dispatch(api)
        orders.start(ids[WAITING : WAITING + AT_ONCE])
        wait_until(
            lambda: orders.statuses()[OrderStatus.DISPATCHED] >= DISPATCHED, "dispatched orders"
        )

        with ThreadPoolExecutor(1) as beside:
            drained = beside.submit(checkout_command, local, "drain", "--timeout", "400")
            for order_id in meanwhile:
                orders.start([order_id])
            done = drained.result()
        assert done.returncode == 0, done.stdout + done.stderr
        assert processes_of_runs(local) == []
        assert state_of(orders, waiting) == {"Suspended"}
        answer(orders, waiting[0])

        for worker in list(local.workers):
            worker.stop()
        for _ in range(2):
            local.start_worker()
        opened = checkout_command(local, "reopen")
        assert opened.returncode == 0, opened.stderr
        answer(orders, waiting[1])
        dispatch(api)
        orders.until(orders.all_ended, deadline_seconds=600)
        yield orders


def state_of(orders: AtOnce, order_ids: list[str]) -> set[str]:
    """The states of the orders' runs."""
    return {str(orders.api.read_run(orders.runs[id_]).state_name) for id_ in order_ids}


def lose_messages(local: LocalSystem) -> None:
    """Empty the order queue; what waits is asked for again only after ten minutes."""
    with open_store(local.store_url) as session:
        session.execute(delete(QueuedMessage))
        session.commit()


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


def test_each_order_ends_right_once_and_none_is_refunded_for_the_restart(
    orders: AtOnce,
) -> None:
    assert orders.wrong() == []


def test_what_a_person_answered_during_the_restart_and_after_it_counts(orders: AtOnce) -> None:
    with open_store(orders.local.store_url) as session:
        counted = session.scalar(
            select(func.count())
            .select_from(Decision)
            .where(col(Decision.decided_by) == BY_A_PERSON, col(Decision.accepted))
        )
    assert counted == WAITING
