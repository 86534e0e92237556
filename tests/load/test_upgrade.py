"""Waiting orders are moved from the oldest Prefect that is supported to the newest.

Paused and suspended orders begin on a server and a worker of the oldest; the pool is drained, the
server is exchanged on the same database, then the worker. Both ways of docs/deploying.md are gone:
the drain before the server, and the server before the drain. Not a part of `make test`, which it
would make some minutes longer: `make upgrade-test`, which makes the environment of the oldest too.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import httpx
import prefect
import pytest
from sqlalchemy import NullPool, create_engine, make_url, text
from sqlmodel import col, func, select

from deployments.holdings import open_store
from deployments.local import DISPATCH_DEPLOYMENT, PROJECT_DIR, LocalSystem
from deployments.prefect_server import PrefectServer
from store.models import Decision
from tests.e2e.conftest import wait_until
from tests.load.at_once import AtOnce, at_once, dispatch
from tests.load.test_rolling_restart import BY_A_PERSON, answer, processes_of_runs, state_of

pytestmark = pytest.mark.timeout(1800)

OLDEST = PROJECT_DIR / ".venv-oldest" / "bin" / "python"
NEWEST = PROJECT_DIR / ".venv" / "bin" / "python"
ORDERS_OF_A_KIND = 10
"""One in ten is declined, one is out of stock, one is too large for every courier."""
ANSWERED = 4
MARKED_AS_DEAD = re.compile(r"was continued 1 times$|is Crashed: no heartbeat")
"""Some suspended runs on 3.8.8 (`findings/prefect_late_heartbeat.sh`): a heartbeat that reaches the
server after the `Suspended` has them marked as crashed. Their orders go on, nothing is refunded."""
FIRST = Literal["drain", "server"]


@dataclass
class Moved:
    """Orders that have all ended, and what was seen on the way."""

    local: LocalSystem
    orders: list[AtOnce]
    versions: list[str]
    schemas: list[str]
    moved_at: datetime
    left_processes: list[str]


@pytest.fixture(scope="module", params=["drain", "server"], ids="{}-first".format)
def moved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Moved]:
    first: FIRST = request.param
    if not OLDEST.exists():
        pytest.fail(f"{OLDEST} is missing; run `make upgrade-test`, which makes it")
    local = LocalSystem(tmp_path_factory.mktemp("upgrade"), durable=False, preferred_port=0)
    local.python = str(OLDEST)
    with local, PrefectServer(local.api_url) as api:
        versions, schemas = [version_of(api)], [schema_of(local)]
        api.pause(DISPATCH_DEPLOYMENT)
        paused = at_once(local, api, ORDERS_OF_A_KIND, "pause", "paused")
        suspended = at_once(local, api, ORDERS_OF_A_KIND, "suspend", "suspended")
        for orders in (paused, suspended):
            orders.start(orders.expected)
        for orders in (paused, suspended):
            orders.until(orders.all_wait, deadline_seconds=600)
        # Two of each are answered while no worker is there, before and after the server is new.
        answered = [(paused, "paused-000"), (suspended, "suspended-000")]
        later = [(paused, "paused-001"), (suspended, "suspended-001")]

        if first == "server":
            exchange_server(local)
        drain(local)
        left = processes_of_runs(local)
        assert state_of(paused, ["paused-000", "paused-006"]) == {"Suspended"}
        for orders, order_id in answered:
            answer(orders, order_id)
        for worker in list(local.workers):
            worker.stop()
        local.workers.clear()
        if first == "drain":
            exchange_server(local)
        local.python = str(NEWEST)
        for orders, order_id in later:
            answer(orders, order_id)

        moved_at = datetime.now(UTC)
        versions.append(version_of(api))
        schemas.append(schema_of(local))
        local.deploy()
        local.start_worker()
        assert command(local, "reopen").returncode == 0
        dispatch(api)
        for orders in (paused, suspended):
            orders.until(orders.all_ended, deadline_seconds=900)
        yield Moved(local, [paused, suspended], versions, schemas, moved_at, left)


def exchange_server(local: LocalSystem) -> None:
    """Stop the server and start the newest on the same port and database."""
    old = local.python

    def install() -> None:
        local.python = str(NEWEST)

    local.restart_server(install)
    # What follows is still done by the old environment, until its worker is exchanged too.
    local.python = old


def drain(local: LocalSystem) -> None:
    done = command(local, "drain", "--timeout", "400")
    assert done.returncode == 0, done.stdout + done.stderr


def command(local: LocalSystem, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Call `checkout` in the environment of the time."""
    return subprocess.run(
        [str(Path(local.python)), "-m", "console.main", *arguments],
        env={**os.environ, **local.settings()},
        capture_output=True,
        text=True,
        check=False,
    )


def version_of(api: PrefectServer) -> str:
    return str(httpx.get(f"{api.url}/admin/version").raise_for_status().json())


def schema_of(local: LocalSystem) -> str:
    """The version of the tables of Prefect's own database."""
    url = make_url(local.store_url).set(database="prefect")
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        return str(connection.scalar(text("SELECT version_num FROM alembic_version")))


def test_the_server_is_the_newest_on_the_database_of_the_oldest(moved: Moved) -> None:
    oldest, newest = moved.versions
    assert (oldest, newest) == ("3.8.8", prefect.__version__)
    assert moved.schemas[0] != moved.schemas[1]


def test_no_process_is_left_when_the_pool_is_drained(moved: Moved) -> None:
    assert moved.left_processes == []


def test_each_order_ends_right_once_in_its_first_attempt(moved: Moved) -> None:
    found = [line for orders in moved.orders for line in orders.wrong()]
    assert [line for line in found if not MARKED_AS_DEAD.search(line)] == []


def test_what_a_person_answered_on_either_server_counts(moved: Moved) -> None:
    with open_store(moved.local.store_url) as session:
        counted = session.scalar(
            select(func.count())
            .select_from(Decision)
            .where(col(Decision.decided_by) == BY_A_PERSON, col(Decision.accepted))
        )
    assert counted == ANSWERED


def test_the_new_server_schedules_runs(moved: Moved) -> None:
    # The schedule itself is due in hours.
    wanted = {
        "flows": {"name": {"any_": ["recover-orders"]}},
        "flow_runs": {"expected_start_time": {"after_": moved.moved_at.isoformat()}},
    }

    def has_run() -> bool:
        found = httpx.post(f"{moved.local.api_url}/flow_runs/filter", json=wanted, timeout=60)
        return any(run["auto_scheduled"] for run in found.raise_for_status().json())

    wait_until(has_run, "run of a schedule")
