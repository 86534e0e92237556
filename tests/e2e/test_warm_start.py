"""Runs that are forks: what one asks of Prefect's server, and what is killed under them.

One system lives through all of it. tests/e2e/test_crashes.py, whose runs are forks as well, has the
client killed and terminated while it waits, the cancellation, and the end of a whole worker.
"""

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest
from prefect.client.schemas.objects import FlowRun

from deployments.holdings import open_store
from deployments.leash import Leashed
from deployments.local import CHECKOUT_DEPLOYMENT, DISPATCH_DEPLOYMENT, LocalSystem
from deployments.prefect_server import PrefectServer
from seed.catalogue import JOHN_DOE, STRIPED_PAJAMAS, TEN_X_RULE
from store.models import Order
from store.settings import Settings
from tests.books_balance import assert_books_balance
from tests.counting_proxy import CountingProxy
from tests.prepared_cluster import prepare

from .conftest import wait_until
from .processes import environment, processes_of

pytestmark = pytest.mark.timeout(600)

RECOVERY_DEPLOYMENT = "recover-orders/local"
PAUSED = {"its-run-is-killed": signal.SIGKILL, "its-run-is-terminated": signal.SIGTERM}
IN_A_STEP = {
    "its-run-is-killed-in-a-step": signal.SIGKILL,
    "its-run-is-terminated-in-a-step": signal.SIGTERM,
}
CLIENTS_IN_A_STEP = {
    "its-client-is-killed-in-a-step": signal.SIGKILL,
    "its-client-is-terminated-in-a-step": signal.SIGTERM,
}
OUTLIVES = "it-outlives-the-end-of-its-server"
AFTER_IT = "it-starts-after-the-end-of-a-server"
DEBUGGED = "it-is-logged-in-detail"
DIFFERS = "it-has-an-environment-of-its-own"
COUNTED = "what-it-asks-is-counted"
AT_MOST = {"calls": 34, "log lines": 13, "events": 29}
"""Of a run, from its start to its end, polls left out. With a pull step, and with what Prefect's
client asks by default, it was 44, 17 and 30 (Prefect 3.9.1)."""
POLLS = ("/get_scheduled_flow_runs", "/heartbeat")
ORDERS = [COUNTED, *PAUSED, *IN_A_STEP, *CLIENTS_IN_A_STEP, OUTLIVES, AFTER_IT, DEBUGGED, DIFFERS]


class SystemWithProxy(LocalSystem):
    """A local system whose worker and runs reach the server through a proxy that counts."""

    proxy: CountingProxy | None = None

    def settings(self) -> dict[str, str]:
        address = {} if self.proxy is None else {"PREFECT_API_URL": self.proxy.url}
        return {**super().settings(), **address}

    def start_worker(self) -> Leashed:
        if self.proxy is None:
            self.proxy = CountingProxy(self.api_url)
        return super().start_worker()


@dataclass
class Shop:
    """The system, with its orders' runs by order id, and what was seen on the way."""

    local: SystemWithProxy
    api: PrefectServer
    began: int = 0
    counted: dict[str, list[str]] = field(default_factory=dict)
    runs: dict[str, FlowRun] = field(default_factory=dict)
    parents: dict[str, int] = field(default_factory=dict)
    left: list[psutil.Process] = field(default_factory=list)

    def start(self, order_id: str, book_id: str = STRIPED_PAJAMAS, **variables: object) -> None:
        order = {"orderId": order_id, "userId": JOHN_DOE, "bookId": book_id, "quantity": 1}
        name = httpx.get(f"{self.local.api_url}/deployments/name/{CHECKOUT_DEPLOYMENT}").json()
        answer = httpx.post(
            f"{self.local.api_url}/deployments/{name['id']}/create_flow_run",
            json={"parameters": {"order": order}, "job_variables": variables},
        )
        self.runs[order_id] = self.api.read_run(answer.raise_for_status().json()["id"])

    def order(self, order_id: str) -> Order | None:
        with open_store(self.local.store_url) as session:
            order = session.get(Order, order_id)
            if order is not None:
                session.expunge(order)
            return order

    def waits(self, order_id: str) -> bool:
        order = self.order(order_id)
        state = self.api.read_run(self.runs[order_id].id).state_name
        return order is not None and order.status == "waiting" and state == "Paused"

    def is_dispatched(self, order_id: str) -> bool:
        order = self.order(order_id)
        return order is not None and order.status == "dispatched"

    def client(self, order_id: str) -> psutil.Process:
        """Return the process that stands for the order's run to the worker."""
        mark = str(self.runs[order_id].id)
        (found,) = [
            process
            for process in psutil.process_iter()
            if environment(process).get("PREFECT__FLOW_RUN_ID") == mark
        ]
        return found

    def child(self, order_id: str) -> psutil.Process:
        """Return the process that executes the order's run: the fork with its client's output."""
        of_client = output(self.client(order_id))
        (found,) = [
            child
            for server in self.servers()
            for child in server.children()
            if output(child) == of_client
        ]
        return found

    def servers(self) -> list[psutil.Process]:
        """Return the fork servers, without their children."""
        found = [p for p in processes_of(self.local) if "server.py" in " ".join(command(p))]
        return [p for p in found if p.ppid() not in {other.pid for other in found}]

    def blocked(self) -> set[int]:
        """Return the processes that wait for a row which somebody else has locked."""
        with psycopg.connect(address(self.local)) as connection:
            rows = connection.execute(
                "SELECT application_name FROM pg_stat_activity "
                "WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ).fetchall()
        return {int(name.rpartition(":")[2]) for (name,) in rows}

    def logs(self, order_id: str) -> list[dict[str, Any]]:
        of_run = {
            "logs": {"flow_run_id": {"any_": [str(self.runs[order_id].id)]}},
            "sort": "TIMESTAMP_ASC",
        }
        answer = httpx.post(f"{self.local.api_url}/logs/filter", json=of_run)
        found: list[dict[str, Any]] = answer.raise_for_status().json()
        return found

    def events(self, order_id: str) -> list[str]:
        """Return the events of the order's run, or about it, in order."""
        of_run = [f"prefect.flow-run.{self.runs[order_id].id}"]
        found = {}
        for part in ("resource", "related"):
            asked = {"limit": 50, "filter": {part: {"id": of_run}}}
            answer = httpx.post(f"{self.local.api_url}/events/filter", json=asked)
            for event in answer.raise_for_status().json()["events"]:
                found[event["id"]] = event
        return [e["event"] for e in sorted(found.values(), key=lambda e: str(e["occurred"]))]

    def calls(self, order_id: str) -> list[str]:
        """Return what the order's run has asked of the server, or its worker for it.

        Left out are the worker's look for runs, the run's look at its own state while it is paused,
        and what other runs ask.
        """
        proxy = self.local.proxy
        assert proxy is not None
        own = f"/api/flow_runs/{self.runs[order_id].id}"
        calls: list[str] = []
        is_paused = False
        for call in proxy.requests[self.began :]:
            is_paused |= call.endswith(f"{own}/input")
            is_anothers = "/api/flow_runs/" in call and own not in call
            is_poll = call.endswith(POLLS) or (is_paused and call == f"GET {own}")
            if not (is_anothers or is_poll):
                calls.append(call.replace(own, "RUN"))
        return calls


def command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def output(process: psutil.Process) -> Path | None:
    """Return the pipe to which a process prints; none of one that has ended."""
    try:
        return Path(f"/proc/{process.pid}/fd/1").readlink()
    except FileNotFoundError:
        return None


def address(local: LocalSystem) -> str:
    return local.store_url.replace("+psycopg", "", 1)


@contextlib.contextmanager
def locked(local: LocalSystem, book_id: str) -> Iterator[None]:
    """Have each order of the book stand still in its first step."""
    with psycopg.connect(address(local)) as connection:
        connection.execute("SELECT 1 FROM books WHERE id = %s FOR UPDATE", [book_id])
        yield


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A shop whose orders have all met their faults and have ended."""
    folder = tmp_path_factory.mktemp("warm")
    prepare(folder, tmp_path_factory)
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("STORE_STALLED_SECONDS", "20")
        changed.setenv("STORE_WARM_START", "true")
        local = SystemWithProxy(folder, durable=False, preferred_port=0)
        with local, local.api() as api:
            shop = Shop(local, api)
            for deployment in (DISPATCH_DEPLOYMENT, RECOVERY_DEPLOYMENT):
                api.pause(deployment)
            shop.start(OUTLIVES)
            wait_until(partial(shop.waits, OUTLIVES), f"pause of {OUTLIVES}")
            recovery = api.read_deployment_by_name(RECOVERY_DEPLOYMENT).id
            wait_until(
                lambda: all(run.deployment_id != recovery for run in api.runs_under_way()),
                "end of recovery, whose calls are not the order's",
            )
            _count(shop)
            api.unpause(RECOVERY_DEPLOYMENT)
            local.run_module("deployments.automations")
            _start_all(shop)
            _end_a_server(shop)
            _stop_runs(shop)
            _kill_the_servers(shop)
            _dispatch(shop)
            changed.setenv("STORE_DATABASE_URL", local.store_url)
            assert_books_balance()
            shop.left = processes_of(shop.local)
            yield shop


def _count(shop: Shop) -> None:
    """Note what an order asks of the server, from its start until all has come in there."""
    wait_until(lambda: len(shop.logs(OUTLIVES)) >= 7, "log of the order before")
    assert shop.local.proxy is not None
    shop.began = len(shop.local.proxy.requests)
    shop.start(COUNTED)
    wait_until(partial(shop.waits, COUNTED), f"pause of {COUNTED}")
    answer = {"answered_by": "the test", "outcome": "courier assigned", "courier": "night-rail"}
    run_id = str(shop.runs[COUNTED].id)
    # A run that has just paused may not take its answer yet.
    wait_until(lambda: shop.api.resume(run_id, answer) == "ACCEPT", "resume of the counted run")
    wait_until(lambda: "prefect.worker.executed-flow-run" in shop.events(COUNTED), "end of the run")
    wait_until(
        lambda: "Finished in state Completed()" in shop.logs(COUNTED)[-1]["message"], "its log"
    )
    shop.counted = {
        "calls": shop.calls(COUNTED),
        "log lines": [line["message"] for line in shop.logs(COUNTED)],
        "events": shop.events(COUNTED),
    }


def _start_all(shop: Shop) -> None:
    shop.start(DEBUGGED, env={"PREFECT_LOGGING_LEVEL": "DEBUG"})
    shop.start(DIFFERS, env={"STORE_COURIER_TIMEOUT_SECONDS": "77777"})
    for order_id in PAUSED:
        shop.start(order_id)
    for order_id in (OUTLIVES, DEBUGGED, DIFFERS, *PAUSED):
        wait_until(partial(shop.waits, order_id), f"pause of {order_id}")
    shop.parents = {id_: shop.child(id_).ppid() for id_ in (OUTLIVES, DEBUGGED, DIFFERS)}


def _end_a_server(shop: Shop) -> None:
    """Have the first server told to end; it keeps its children, and the next run has another."""
    first = psutil.Process(shop.parents[OUTLIVES])
    first.terminate()
    shop.start(AFTER_IT)
    wait_until(partial(shop.waits, AFTER_IT), f"pause of {AFTER_IT}")
    assert shop.child(OUTLIVES).ppid() == first.pid
    shop.parents[AFTER_IT] = shop.child(AFTER_IT).ppid()


def _stop_runs(shop: Shop) -> None:
    for order_id, number in PAUSED.items():
        shop.child(order_id).send_signal(number)
    with locked(shop.local, TEN_X_RULE):
        stopped = IN_A_STEP | CLIENTS_IN_A_STEP
        for order_id in stopped:
            shop.start(order_id, TEN_X_RULE)
        wait_until(lambda: len(shop.blocked()) == len(stopped), "orders in their first step")
        children = {order_id: shop.child(order_id) for order_id in stopped}
        assert {child.pid for child in children.values()} == shop.blocked()
        for order_id, number in IN_A_STEP.items():
            children[order_id].send_signal(number)
        for order_id, number in CLIENTS_IN_A_STEP.items():
            shop.client(order_id).send_signal(number)
    for order_id in (*PAUSED, *stopped):
        wait_until(partial(shop.waits, order_id), f"another pause of {order_id}")


def _kill_the_servers(shop: Shop) -> None:
    waiting = [order_id for order_id in ORDERS if order_id != COUNTED]
    before = {id_: shop.api.read_run(shop.runs[id_].id).state_id for id_ in waiting}
    children = [shop.child(order_id) for order_id in waiting]
    for server in shop.servers():
        server.kill()
    wait_until(lambda: not any(child.is_running() for child in children), "end of the children")
    for order_id in waiting:
        wait_until(
            lambda id_=order_id: (
                shop.waits(id_)  # type: ignore[misc]
                and shop.api.read_run(shop.runs[id_].id).state_id != before[id_]
            ),
            f"pause of {order_id} in another process",
        )


def _dispatch(shop: Shop) -> None:
    shop.api.start_run(DISPATCH_DEPLOYMENT, {"listen_seconds": 120})
    for order_id in ORDERS:
        wait_until(partial(shop.is_dispatched, order_id), f"dispatch of {order_id}")


@pytest.mark.parametrize("what", AT_MOST)
def test_a_run_asks_and_tells_prefects_server_no_more_than_it_did(shop: Shop, what: str) -> None:
    found = shop.counted[what]
    assert 5 < len(found) <= AT_MOST[what], "\n".join(found)


@pytest.mark.parametrize("order_id", ORDERS)
def test_an_order_goes_on_whatever_is_killed_and_nothing_of_it_is_undone(
    shop: Shop, order_id: str
) -> None:
    order = shop.order(order_id)
    assert order is not None
    assert (order.status, order.attempt) == ("dispatched", 1)


def test_nothing_is_refunded_for_a_kill(shop: Shop) -> None:
    with psycopg.connect(address(shop.local)) as connection:
        found = connection.execute(
            "SELECT status, kind, count(*) FROM ledger GROUP BY 1, 2"
        ).fetchall()
    assert found == [("captured", "capture", len(ORDERS))]


def test_a_run_with_other_settings_of_prefect_has_another_server_and_its_own_log(
    shop: Shop,
) -> None:
    assert shop.parents[DEBUGGED] != shop.parents[OUTLIVES]
    assert 10 in {line["level"] for line in shop.logs(DEBUGGED)}
    assert 10 not in {line["level"] for line in shop.logs(OUTLIVES)}


def test_a_run_with_another_environment_has_its_own_settings_from_the_same_server(
    shop: Shop,
) -> None:
    assert shop.parents[DIFFERS] == shop.parents[OUTLIVES]
    default = Settings.model_fields["courier_timeout_seconds"].default
    waited = {}
    for order_id in (DIFFERS, OUTLIVES):
        order = shop.order(order_id)
        assert order is not None
        assert order.wait_until is not None
        waited[order_id] = (order.wait_until - order.created_at).total_seconds()
    assert waited[DIFFERS] == pytest.approx(77_777, abs=600)
    assert waited[OUTLIVES] == pytest.approx(default, abs=600)


def test_a_server_that_is_told_to_end_keeps_its_runs_and_takes_no_other(shop: Shop) -> None:
    assert shop.parents[AFTER_IT] not in (shop.parents[OUTLIVES], shop.parents[DEBUGGED])


def test_no_process_is_left_when_the_system_has_been_stopped(shop: Shop) -> None:
    assert shop.left
    shop.local.stop()
    # One that has just been killed is a zombie until its new parent has waited for it.
    _, left = psutil.wait_procs(shop.left, timeout=10)
    assert [command(process) for process in left] == []


def test_the_sockets_are_in_prefects_home(shop: Shop) -> None:
    folder: Path = shop.local.data_dir / "prefect" / "fork-server"
    assert folder.stat().st_mode & 0o777 == 0o700
