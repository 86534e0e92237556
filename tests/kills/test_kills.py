"""Real processes are killed at every boundary of every step and undo, and nothing is lost.

One system lives through all of it. The orders' runs die where their ids say (see `killer.py`), the
queue's worker and recovery die at every boundary that they reach, and nobody helps but what
production has: a worker that starts what is scheduled, and the schedules of the dispatcher and of
recovery. The death of a run that waits, of a worker and of the server is in
`tests/e2e/test_crashes.py`.
"""

import ast
import inspect
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prefect import Task
from sqlmodel import select

import flows.checkout
from deployments.holdings import open_store
from deployments.local import (
    CHECKOUT_DEPLOYMENT,
    DISPATCH_DEPLOYMENT,
    LocalSystem,
    inherited_environment,
)
from deployments.prefect_api import FlowRun, PrefectApi
from flows.compensation import UNDO
from seed.catalogue import STRIPED_PAJAMAS
from store.messages import NO_COURIER
from store.models import ENDED, Customer, LedgerEntry, Order, utc_now
from store.saga import SEQUENCE
from store.settings import settings
from tests.books_balance import assert_books_balance
from tests.e2e.conftest import wait_until
from tests.e2e.no_dispatcher import no_dispatcher
from tests.kills.killer import FOLDER, PROJECT, RECOVERY

pytestmark = pytest.mark.timeout(900)

HERE = Path(__file__).parent
RECOVERY_DEPLOYMENT = "recover-orders/local"
PARTNERS = {"payment_gateway", "order_queue", "topic"}
COPIES = 2
POINTS = 30
DUE_CENTS = COPIES * 75_00 - POINTS * 1_00
# As many as there are boundaries after the wait, since each order's run dies at one of them.
UNDONE = [f"undone-{number}" for number in range(1, 7)]
DISPATCHED = [f"dispatched-{number}" for number in range(1, 5)]
ORDERS = [*UNDONE, *DISPATCHED]
LEFT_ALONE = "left-alone"
LOOK_SECONDS = 1.0
"""To look at all processes of the machine is not cheap."""


@dataclass
class Shop:
    """The system, the runs of its orders, and where its processes died."""

    local: LocalSystem
    api: PrefectApi
    marks: Path
    runs: dict[str, FlowRun] = field(default_factory=dict)
    dispatcher: FlowRun | None = None

    def check_out(self, order_id: str) -> None:
        """Start an order of a customer of its own."""
        with open_store(self.local.store_url) as session:
            customer = {"id": order_id, "name": order_id, "payment_method": "pm_card_visa"}
            session.add(Customer(**customer, points=POINTS, initial_points=POINTS))
            session.commit()
        order = {"orderId": order_id, "userId": order_id, "bookId": STRIPED_PAJAMAS}
        self.runs[order_id] = self.api.start_run(
            CHECKOUT_DEPLOYMENT, {"order": {**order, "quantity": COPIES, "redeem": True}}
        )

    def refuse(self, order_id: str) -> None:
        """Answer a waiting order that no courier takes it."""
        answer = {"outcome": NO_COURIER, "reason": "snow", "answered_by": "the test"}
        assert self.api.resume(self.runs[order_id].id, answer) == "ACCEPT"

    def status(self, order_id: str) -> str | None:
        with open_store(self.local.store_url) as session:
            order = session.get(Order, order_id)
            return None if order is None else order.status

    def state(self, order_id: str) -> str:
        return self.api.read_run(self.runs[order_id].id).state_name

    def waits(self, order_id: str) -> bool:
        return self.status(order_id) == "waiting" and self.state(order_id) == "Paused"

    def has_ended(self, order_id: str) -> bool:
        return self.status(order_id) in ENDED

    def deaths(self, victim: str) -> list[str]:
        """The places where processes of this kind died."""
        return [mark.read_text() for mark in (self.marks / victim).glob("*")]

    def are_dead(self, order_ids: Sequence[str]) -> bool:
        """Say whether the runs of these orders have ended, and Prefect has seen to it in full.

        It reports a killed process twice, the second time when its crash hooks have run.
        """
        runs = {self.runs[order_id].id for order_id in order_ids}
        if not all(self.api.read_run(run_id).is_finished for run_id in runs):
            return False
        return not any(
            _environment(process).get("PREFECT__FLOW_RUN_ID") in runs
            for process in psutil.process_iter()
        )

    def carry_out(self, until: Callable[[str], bool], meanwhile: Callable[[], None]) -> None:
        """Wait until it holds for each order; whenever the others are dead, recovery goes on."""

        def nothing_moves() -> bool:
            meanwhile()
            time.sleep(LOOK_SECONDS)
            return self.are_dead([id_ for id_ in ORDERS if not until(id_)])

        while not all(until(order_id) for order_id in ORDERS):
            wait_until(nothing_moves, f"end of {ORDERS}")
            self.recover()

    def recover(self) -> None:
        """Start a round of recovery, as by hand, and again while it is killed."""
        environment = {**inherited_environment(), **self.local.settings(), RECOVERY: "1"}
        killed = True
        while killed:
            ended = subprocess.run(
                [sys.executable, "-m", "flows.recovery"],
                env=environment,
                cwd=PROJECT,
                check=False,
                capture_output=True,
                timeout=120,
            )
            killed = ended.returncode == -signal.SIGKILL
            assert killed or ended.returncode == 0, ended.stderr.decode()

    def keep_dispatching(self) -> None:
        """See to it that there is a dispatcher, as its schedule does."""
        if self.dispatcher is None or self.api.read_run(self.dispatcher.id).is_finished:
            self.dispatcher = self.api.start_run(DISPATCH_DEPLOYMENT, {"listen_seconds": 240})

    def recover_by_the_worker(self) -> str:
        """Have the worker execute a round of recovery; return the state in which it has ended."""
        run = self.api.start_run(RECOVERY_DEPLOYMENT, {})
        wait_until(lambda: self.api.read_run(run.id).is_finished, "end of a round of recovery")
        return self.api.read_run(run.id).state_name


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A shop whose orders have all died where they were to, and have ended."""
    marks = tmp_path_factory.mktemp("marks")
    right = LocalSystem.settings
    with pytest.MonkeyPatch.context() as patch:
        # Messages that a dead dispatcher had in hand come again soon.
        patch.setenv("STORE_VISIBILITY_TIMEOUT_SECONDS", "2")
        killed = {"PYTHONPATH": f"{HERE}:{PROJECT}", FOLDER: str(marks)}
        patch.setattr(LocalSystem, "settings", lambda local: {**right(local), **killed})
        local = LocalSystem(tmp_path_factory.mktemp("kills"), durable=False, preferred_port=0)
        with local, PrefectApi(local.api_url) as api:
            shop = Shop(local, api, marks)
            _hold_what_the_test_starts_itself(shop)
            for order_id in ORDERS:
                shop.check_out(order_id)
            shop.carry_out(until=shop.waits, meanwhile=lambda: None)
            for order_id in UNDONE:
                shop.refuse(order_id)
            wait_until(lambda: not any(map(shop.waits, UNDONE)), "answer of the refused orders")
            shop.carry_out(until=shop.has_ended, meanwhile=shop.keep_dispatching)
            yield shop


def _hold_what_the_test_starts_itself(shop: Shop) -> None:
    for deployment in (DISPATCH_DEPLOYMENT, RECOVERY_DEPLOYMENT):
        shop.api.pause_deployment(deployment)
    with httpx.Client(base_url=shop.local.api_url) as api:
        for automation in api.post("/automations/filter", json={}).json():
            if "recovery starts" in automation["name"]:
                changed = api.patch(f"/automations/{automation['id']}", json={"enabled": False})
                changed.raise_for_status()


@pytest.mark.parametrize("order_id", ORDERS)
def test_each_order_ends_as_it_must_and_is_charged_for_just_that(shop: Shop, order_id: str) -> None:
    assert shop.status(order_id) == ("compensated" if order_id in UNDONE else "dispatched")
    with open_store(shop.local.store_url) as session:
        assert session.get_one(Order, order_id).attempt == 1
        entries = session.exec(select(LedgerEntry).where(LedgerEntry.order_id == order_id)).all()
        moved = sorted((entry.key, entry.status, entry.amount_cents) for entry in entries)
    charge = (f"{order_id}:1", "captured", DUE_CENTS)
    refund = (f"{order_id}:1:refund", "refunded", DUE_CENTS)
    assert moved == ([charge, refund] if order_id in UNDONE else [charge])


def test_the_books_balance(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_DATABASE_URL", shop.local.store_url)
    settings.cache_clear()
    assert_books_balance()


def boundaries(task: Task[..., Any]) -> set[str]:
    """The lines of a step or an undo at which it commits a change, or calls a partner."""
    source = ast.parse(Path(inspect.getsourcefile(task.fn) or "").read_text())
    name = task.fn.__name__
    (function,) = (
        node for node in source.body if isinstance(node, ast.FunctionDef) and node.name == name
    )
    blocks = {node for node in ast.walk(function) if isinstance(node, ast.With)}
    changing = {node.lineno for node in blocks if _calls_what_it_binds(node)}
    calls = {
        node.lineno
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in PARTNERS
    }
    return {f"{name}:{line}" for line in changing | calls}


def _calls_what_it_binds(block: ast.With) -> bool:
    bound = {i.optional_vars.id for i in block.items if isinstance(i.optional_vars, ast.Name)}
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id in bound
        for node in ast.walk(block)
    )


def lines_of_death(shop: Shop, victim: str) -> set[str]:
    return {line for place in shop.deaths(victim) for line in place.split(" > ")}


@pytest.mark.parametrize("step", SEQUENCE)
def test_runs_were_killed_at_every_boundary_of_every_step(shop: Shop, step: str) -> None:
    expected = boundaries(getattr(flows.checkout, step))
    assert expected
    assert expected <= lines_of_death(shop, "checkout")


@pytest.mark.parametrize("victim", ["checkout", "recovery"])
@pytest.mark.parametrize("undo", UNDO.values(), ids=lambda undo: undo.name)
def test_hooks_and_recovery_were_killed_at_every_boundary_of_every_undo(
    shop: Shop, undo: Task[..., Any], victim: str
) -> None:
    expected = boundaries(undo)
    assert expected
    assert expected <= lines_of_death(shop, victim)


@pytest.mark.parametrize(
    ("victim", "function"),
    [
        ("checkout", "accept_order"),
        ("checkout", "conclude_compensation"),
        ("recovery", "count_continuation"),
        ("recovery", "dispatch_order"),
        ("recovery", "conclude_compensation"),
        ("dispatcher", "find_couriers"),
    ],
)
def test_nothing_that_moves_an_order_was_left_out(shop: Shop, victim: str, function: str) -> None:
    assert function in {line.partition(":")[0] for line in lines_of_death(shop, victim)}


def test_recovery_that_dies_with_its_worker_holds_its_slot_until_its_death_is_known(
    shop: Shop,
) -> None:
    with no_dispatcher(shop.local.api_url):
        shop.check_out(LEFT_ALONE)
        wait_until(lambda: shop.waits(LEFT_ALONE), "pause")
        with open_store(shop.local.store_url) as session:
            session.get_one(Order, LEFT_ALONE).wait_until = utc_now() - timedelta(minutes=5)
            session.commit()
        dead = shop.api.start_run(RECOVERY_DEPLOYMENT, {})
        wait_until(lambda: shop.deaths("recovery-and-its-worker"), "death of recovery and worker")
        shop.local.start_worker()
        # No other round does any harm, or any good.
        assert shop.recover_by_the_worker() == "Cancelled"
        assert shop.status(LEFT_ALONE) == "compensating"
        # What the automation does after two minutes without a sign of life.
        shop.api.set_state(dead.id, "CRASHED", "Crashed", "no sign of life")
        wait_until(partial(_is_recovered, shop), "recovery of the order")


def _is_recovered(shop: Shop) -> bool:
    shop.recover_by_the_worker()
    return shop.status(LEFT_ALONE) == "compensated"
