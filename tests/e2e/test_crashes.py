"""Crashes, restarts and cancellations of real processes: the orders go on or are undone.

One system lives through all of it, each order through its own fault; nobody helps them but
`recover_orders`. Which order meets which fault is said by its id.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest
from prefect.client.schemas.objects import FlowRun
from sqlmodel import select, text

from deployments.holdings import open_store
from deployments.local import CHECKOUT_DEPLOYMENT, DISPATCH_DEPLOYMENT, LocalSystem
from deployments.prefect_server import PrefectServer
from seed.catalogue import JOHN_DOE, STRIPED_PAJAMAS
from store.models import LedgerEntry, Order, SagaRecord, utc_now
from tests.prepared_cluster import prepare

from .conftest import wait_until
from .processes import environment, processes_of

pytestmark = pytest.mark.timeout(900)

RECOVERY_DEPLOYMENT = "recover-orders/local"
COPIES = 2
PAUSED = [
    "its-process-is-killed",
    "its-process-is-terminated",
    "it-is-cancelled",
    "it-is-retried-after-its-compensation",
    "the-server-is-away",
    "its-worker-dies-and-it-is-answered",
    "its-worker-dies-and-it-is-forgotten",
    "its-worker-dies-and-its-time-is-over",
    "its-worker-dies-and-it-is-cancelled",
]
UNBEGUN = "its-worker-dies-before-it-begins"
SUSPENDED = ["it-is-suspended", "it-is-suspended-and-cancelled", "it-is-suspended-and-misanswered"]
COMPENSATED = {
    "it-is-cancelled",
    "its-worker-dies-and-its-time-is-over",
    "its-worker-dies-and-it-is-cancelled",
    "it-is-suspended-and-cancelled",
}
ORDERS = [*PAUSED, *SUSPENDED, UNBEGUN]


@dataclass
class Shop:
    """The system, with its orders' runs by order id."""

    local: LocalSystem
    api: PrefectServer
    runs: dict[str, FlowRun]

    def order(self, order_id: str) -> Order:
        with open_store(self.local.store_url) as session:
            order = session.get_one(Order, order_id)
            session.expunge(order)
            return order

    def has_status(self, order_id: str, status: str) -> bool:
        with open_store(self.local.store_url) as session:
            order = session.get(Order, order_id)
            return order is not None and order.status == status

    def state(self, order_id: str) -> str:
        return self.api.read_run(self.runs[order_id].id).state_name or ""

    def waits(self, order_id: str, state: str = "Paused") -> bool:
        with open_store(self.local.store_url) as session:
            order = session.get(Order, order_id)
            return order is not None and order.status == "waiting" and self.state(order_id) == state

    def answer(self, order_id: str, **answer: str) -> str:
        return self.api.resume(self.runs[order_id].id, {"answered_by": "the test", **answer})

    def process(self, order_id: str) -> psutil.Process:
        """Return the process that executes the order's run."""
        mark = str(self.runs[order_id].id)
        found = [
            process
            for process in psutil.process_iter()
            if environment(process).get("PREFECT__FLOW_RUN_ID") == mark
        ]
        assert found, f"no process executes {order_id}"
        return found[-1]

    def connections(self) -> int:
        """Count the connections of others to the store's database."""
        with open_store(self.local.store_url) as session:
            found = session.exec(
                select(text("pid"))
                .select_from(text("pg_stat_activity"))
                .where(text("datname = current_database() AND pid <> pg_backend_pid()"))
            )
            return len(found.all())


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A shop whose orders have all met their faults and have ended."""
    folder = tmp_path_factory.mktemp("crashes")
    prepare(folder, tmp_path_factory)
    settings = LocalSystem.settings
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("STORE_STALLED_SECONDS", "45")
        changed.setenv("STORE_UNBEGUN_SECONDS", "30")
        # So that the server is away for longer than Prefect's client tries by itself.
        changed.setattr(
            LocalSystem,
            "settings",
            lambda system: {**settings(system), "PREFECT_CLIENT_MAX_RETRIES": "1"},
        )
        local = LocalSystem(folder, durable=False, preferred_port=0)
        with local, local.api() as api:
            shop = Shop(local, api, {})
            api.pause(DISPATCH_DEPLOYMENT)
            _start_all(shop)
            _stop_single_runs(shop)
            _hold_recovery(shop)
            _take_the_server_away(shop)
            _let_a_run_fall_silent(shop)
            _kill_the_workers(shop)
            _find_couriers_for_the_rest(shop)
            yield shop


def _start_all(shop: Shop) -> None:
    for order_id in [*PAUSED, *SUSPENDED]:
        _start(shop, order_id)
    for order_id in PAUSED:
        wait_until(partial(shop.waits, order_id), f"pause of {order_id}")
    for order_id in SUSPENDED:
        wait_until(partial(shop.waits, order_id, "Suspended"), f"suspension of {order_id}")
    # Those that are paused keep their process, but no connection that the database must count.
    wait_until(lambda: shop.connections() == 0, "end of the waiting orders' connections")


def _start(shop: Shop, order_id: str) -> None:
    order = {
        "orderId": order_id,
        "userId": JOHN_DOE,
        "bookId": STRIPED_PAJAMAS,
        "quantity": COPIES,
    }
    wait = "suspend" if order_id in SUSPENDED else "pause"
    shop.runs[order_id] = shop.api.start_run(CHECKOUT_DEPLOYMENT, {"order": order, "wait": wait})


def _stop_single_runs(shop: Shop) -> None:
    shop.process("its-process-is-killed").kill()
    shop.process("its-process-is-terminated").terminate()
    for order_id in ("it-is-cancelled", "it-is-suspended-and-cancelled"):
        shop.api.set_state(shop.runs[order_id].id, "CANCELLING", "Cancelling", "")
    refused = "it-is-retried-after-its-compensation"
    shop.answer(refused, outcome="no courier available", reason="snow")
    shop.answer("it-is-suspended", outcome="courier assigned", courier="night-rail")
    shop.answer("it-is-suspended-and-misanswered", outcome="courier assigned")

    wait_until(lambda: shop.order(refused).status == "compensated", "compensation")
    wait_until(lambda: shop.state(refused) == "Failed", "end of the refused run")
    shop.api.set_state(shop.runs[refused].id, "SCHEDULED", "AwaitingRetry", "")
    for order_id in (
        refused,
        "its-process-is-killed",
        "its-process-is-terminated",
    ):
        wait_until(partial(shop.waits, order_id), f"second pause of {order_id}")


def _take_the_server_away(shop: Shop) -> None:
    waiting = [id_ for id_ in PAUSED if id_ not in COMPENSATED or "worker" in id_]
    before = {id_: shop.api.read_run(shop.runs[id_].id).state_id for id_ in waiting}

    def all_have_noticed() -> bool:
        (log,) = shop.local.logs_dir.glob("worker-*.log")
        pauses = re.findall(r"the run waits on at (\S+) while", log.read_text())
        return len(set(pauses)) >= len(waiting)

    # A server that starts quickly would be there again at the second try of some clients.
    shop.local.restart_server(
        while_down=lambda: wait_until(all_have_noticed, "orders that notice the outage")
    )

    def all_pause_anew() -> bool:
        runs = {id_: shop.api.read_run(shop.runs[id_].id) for id_ in waiting}
        return all(
            run.state_name == "Paused" and run.state_id != before[id_] for id_, run in runs.items()
        )

    wait_until(all_pause_anew, "orders that paused anew after the server's return")


def _let_a_run_fall_silent(shop: Shop) -> None:
    """Have two runs without an order that send one heartbeat each: one is suspended then."""
    checkout = httpx.get(f"{shop.local.api_url}/deployments/name/{CHECKOUT_DEPLOYMENT}").json()
    for name in ("it-is-silent-and-suspended", "it-falls-silent"):
        started = {
            "flow_id": checkout["flow_id"],
            "deployment_id": checkout["id"],
            "state": {"type": "RUNNING"},
        }
        run = _post(shop, "/flow_runs/", started)
        shop.runs[name] = shop.api.read_run(run["id"])
        _give_a_sign_of_life(shop, run["id"], checkout["flow_id"])
        if name == "it-is-silent-and-suspended":
            suspended = {
                "type": "PAUSED",
                "name": "Suspended",
                "state_details": {"pause_reschedule": True},
            }
            answer = _post(shop, f"/flow_runs/{run['id']}/set_state", {"state": suspended})
            assert answer["status"] == "ACCEPT"


def _give_a_sign_of_life(shop: Shop, run_id: str, flow_id: str) -> None:
    heartbeat = {
        "id": str(uuid4()),
        "occurred": utc_now().isoformat(),
        "event": "prefect.flow-run.heartbeat",
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run_id}"},
        "related": [
            {
                "prefect.resource.id": f"prefect.flow.{flow_id}",
                "prefect.resource.role": "flow",
                "prefect.resource.name": "store-checkout",
            }
        ],
    }
    httpx.post(f"{shop.local.api_url}/events", json=[heartbeat]).raise_for_status()


def _hold_recovery(shop: Shop) -> None:
    """Let no round of recovery be under way when the server or the workers go.

    It would be dead for Prefect, too, only when its lease is over, and hold its deployment's only
    slot until then: safe, but minutes of waiting.
    """
    shop.api.pause(RECOVERY_DEPLOYMENT)
    recovery = shop.api.read_deployment_by_name(RECOVERY_DEPLOYMENT).id
    wait_until(
        lambda: all(run.deployment_id != recovery for run in shop.api.runs_under_way()),
        "end of the round of recovery",
    )


def _kill_the_workers(shop: Shop) -> None:
    for process in processes_of(shop.local):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    answered = "its-worker-dies-and-it-is-answered"
    assert shop.answer(answered, outcome="courier assigned", courier="night-rail") == "ACCEPT"
    cancelled = shop.runs["its-worker-dies-and-it-is-cancelled"]
    shop.api.set_state(cancelled.id, "CANCELLING", "Cancelling", "")
    # A worker takes a run, and dies before it has started its process.
    _start(shop, UNBEGUN)
    shop.api.set_state(shop.runs[UNBEGUN].id, "PENDING", "Pending", "")
    with open_store(shop.local.store_url) as session:
        late = session.get_one(Order, "its-worker-dies-and-its-time-is-over")
        late.wait_until = utc_now() - timedelta(minutes=5)
        session.commit()
    shop.api.unpause(RECOVERY_DEPLOYMENT)
    # As after a deployment: it starts recovery.
    shop.local.run_module("deployments.automations")
    shop.local.start_worker()


def _find_couriers_for_the_rest(shop: Shop) -> None:
    late = "its-worker-dies-and-its-time-is-over"
    wait_until(partial(shop.has_status, late, "compensated"), "end of the wait that is over")
    shop.api.start_run(DISPATCH_DEPLOYMENT, {"listen_seconds": 240})
    for order_id in ORDERS:
        expected = "compensated" if order_id in COMPENSATED else "dispatched"
        wait_until(
            partial(shop.has_status, order_id, expected),
            f"order “{order_id}” {expected}",
        )


@pytest.mark.parametrize("order_id", ORDERS)
def test_each_order_ends_as_it_must_and_is_charged_for_just_that(shop: Shop, order_id: str) -> None:
    order = shop.order(order_id)
    assert order.status == ("compensated" if order_id in COMPENSATED else "dispatched")
    assert order.attempt == (2 if order_id == "it-is-retried-after-its-compensation" else 1)
    with open_store(shop.local.store_url) as session:
        entries = session.exec(select(LedgerEntry).where(LedgerEntry.order_id == order_id)).all()
        captured = sum(e.amount_cents for e in entries if e.status == "captured")
        refunded = sum(e.amount_cents for e in entries if e.status == "refunded")
    assert captured == order.attempt * COPIES * 75_00
    assert captured - refunded == (0 if order_id in COMPENSATED else COPIES * 75_00)


def test_each_step_of_an_attempt_was_recorded_once(shop: Shop) -> None:
    with open_store(shop.local.store_url) as session:
        records = session.exec(select(SagaRecord)).all()
    for order_id in ORDERS:
        attempt = shop.order(order_id).attempt
        steps = {r.step: r.state for r in records if (r.order_id, r.attempt) == (order_id, attempt)}
        taken = "undone" if order_id in COMPENSATED else "done"
        assert steps["check_inventory"] == steps["bill_customer"] == taken
        assert ("dispatch_order" in steps) == (order_id not in COMPENSATED)


def test_a_crash_is_counted_as_a_continuation_and_a_restart_of_the_server_is_none(
    shop: Shop,
) -> None:
    assert shop.order("its-process-is-killed").continuations >= 1
    assert shop.order("its-process-is-terminated").continuations >= 1
    assert shop.order("it-is-suspended").continuations == 0


def test_a_cancellation_with_every_process_dead_is_the_runs_end(shop: Shop) -> None:
    cancelled = "its-worker-dies-and-it-is-cancelled"
    assert shop.order(cancelled).error == "OrderCancelled"
    wait_until(lambda: shop.state(cancelled) == "Cancelled", "end of the cancelled run")


def test_recovery_listens_in_runs_of_which_none_was_started_in_vain(shop: Shop) -> None:
    recovery = shop.api.read_deployment_by_name(RECOVERY_DEPLOYMENT).id
    runs = _post(shop, "/flow_runs/filter", {"deployments": {"id": {"any_": [str(recovery)]}}})
    begun = [run for run in runs if run["state_type"] != "SCHEDULED"]
    assert [run["name"] for run in begun if not run["name"].startswith("recovery ")] == []
    assert "CANCELLED" not in {run["state_type"] for run in begun}
    # One before the faults and one after them, and one for each fault that a run met itself.
    assert 2 <= len(begun) <= 5


def test_the_automation_applied_again_is_the_same_and_forgets_no_run(shop: Shop) -> None:
    before = _post(shop, "/automations/filter", {})
    shop.local.run_module("deployments.automations")
    assert _post(shop, "/automations/filter", {}) == before
    assert len(before) == 1


def test_a_run_without_a_sign_of_life_is_marked_as_crashed_by_the_automation(shop: Shop) -> None:
    wait_until(lambda: shop.state("it-falls-silent") == "Crashed", "end of the silent run")
    state = shop.api.read_run(shop.runs["it-falls-silent"].id).state
    assert state is not None
    assert state.message == "no heartbeat for 120 s"
    # Its heartbeat is older, but a suspended run has no process that could send another one.
    assert shop.state("it-is-silent-and-suspended") == "Suspended"


@pytest.mark.parametrize(
    ("event", "order_id"),
    [
        ("store.order.waiting", "its-process-is-killed"),
        ("store.order.dispatched", "it-is-suspended"),
        ("store.order.dispatched", "its-process-is-terminated"),
        ("store.order.compensated", "it-is-cancelled"),
    ],
)
def test_prefect_is_told_of_an_order_by_an_event(shop: Shop, event: str, order_id: str) -> None:
    found = {
        "filter": {
            "event": {"name": [event]},
            "resource": {"id": [f"store.order.{order_id}"]},
        }
    }
    wait_until(lambda: _post(shop, "/events/filter", found)["events"], f"{event} of {order_id}")


def test_an_order_carries_its_timeline_which_names_nobody(shop: Shop) -> None:
    wanted = {"artifacts": {"key": {"any_": ["order-it-is-cancelled"]}}, "sort": "CREATED_DESC"}
    timeline, *_ = _post(shop, "/artifacts/filter", wanted)
    assert timeline["flow_run_id"] == str(shop.runs["it-is-cancelled"].id)
    assert "OrderCancelled" in timeline["data"]
    assert "John" not in timeline["data"]
    assert JOHN_DOE not in timeline["data"]


def _post(shop: Shop, path: str, body: dict[str, Any]) -> Any:
    answer = httpx.post(f"{shop.local.api_url}{path}", json=body, timeout=60)
    answer.raise_for_status()
    return answer.json()
