"""Real processes are killed at every boundary of every step and undo, and nothing is lost.

One system lives through all of it. The runs of orders, the dispatcher and recovery die at the first
boundary at which none has died yet (see `killer.py`), and nobody helps but what production has: who
starts what is scheduled and reports who died, the dispatcher's schedule, and recovery's. The death
of a run that waits, of a worker and of the server is in `tests/e2e/test_crashes.py`.
"""

import ast
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prefect import Task
from prefect.client.schemas.objects import FlowRun
from sqlmodel import select

import flows.checkout
from deployments.holdings import open_store
from deployments.local import CHECKOUT_DEPLOYMENT, DISPATCH_DEPLOYMENT, LocalSystem
from deployments.prefect_server import PrefectServer
from flows.compensation import UNDO
from seed.catalogue import STRIPED_PAJAMAS
from store.messages import NO_COURIER
from store.models import ENDED, Customer, LedgerEntry, Order
from store.settings import settings
from tasks.steps import SEQUENCE
from tests.books_balance import assert_books_balance
from tests.e2e.conftest import wait_until
from tests.kills.killer import FOLDER
from tests.kills.processes import Processes
from tests.prepared_cluster import prepare

pytestmark = pytest.mark.timeout(900)

RECOVERY_DEPLOYMENT = "recover-orders/local"
PARTNERS = {"payment_gateway", "order_queue", "topic"}
COPIES = 2
POINTS = 30
DUE_CENTS = COPIES * 75_00 - POINTS * 1_00
# As many as there are boundaries after the wait, since each order's run dies at one of them.
UNDONE = [f"undone-{number}" for number in range(1, 7)]
DISPATCHED = [f"dispatched-{number}" for number in range(1, 5)]
ORDERS = [*UNDONE, *DISPATCHED]


@dataclass
class Shop:
    """The system, the runs of its orders, and where its processes died."""

    local: LocalSystem
    api: PrefectServer
    marks: Path
    processes: Processes
    runs: dict[str, str] = field(default_factory=dict)
    dispatchers: list[str] = field(default_factory=list)
    has_dispatcher: bool = False

    def check_out(self, order_id: str) -> None:
        """Start an order of a customer of its own."""
        with open_store(self.local.store_url) as session:
            customer = {"id": order_id, "name": order_id, "payment_method": "pm_card_visa"}
            session.add(Customer(**customer, points=POINTS, initial_points=POINTS))
            session.commit()
        order = {"orderId": order_id, "userId": order_id, "bookId": STRIPED_PAJAMAS}
        self.runs[order_id] = str(
            self.api.start_run(
                CHECKOUT_DEPLOYMENT, {"order": {**order, "quantity": COPIES, "redeem": True}}
            ).id
        )

    def refuse(self, order_id: str) -> None:
        """Answer a waiting order that no courier takes it."""
        answer = {"outcome": NO_COURIER, "reason": "snow", "answered_by": "the test"}
        assert self.api.resume(self.runs[order_id], answer) == "ACCEPT"

    def status(self, order_id: str) -> str | None:
        with open_store(self.local.store_url) as session:
            order = session.get(Order, order_id)
            return None if order is None else order.status

    def waits(self, order_id: str) -> bool:
        state = self.api.read_run(self.runs[order_id]).state_name
        return self.status(order_id) == "waiting" and state == "Paused"

    def is_answered(self, order_id: str) -> bool:
        return self.status(order_id) not in ("started", "waiting")

    def has_ended(self, order_id: str) -> bool:
        return self.status(order_id) in ENDED

    def deaths(self, victim: str) -> list[str]:
        """The places where processes of this kind died."""
        return [mark.read_text() for mark in (self.marks / victim).glob("*")]

    def carry_out(self, order_ids: Sequence[str], until: Callable[[str], bool]) -> None:
        """Wait until it holds for each order; whenever all others are dead, recovery goes on."""

        def only_the_dead_are_left() -> bool:
            self._tend()
            left = [self.runs[order_id] for order_id in order_ids if not until(order_id)]
            return not self.processes.live(left)

        while not all(until(order_id) for order_id in order_ids):
            wait_until(only_the_dead_are_left, f"end of {', '.join(order_ids)}")
            self._recover()

    def _tend(self) -> None:
        if self.has_dispatcher and not self.processes.live(self.dispatchers[-1:]):
            run = self.api.start_run(DISPATCH_DEPLOYMENT, {"listen_seconds": 240})
            self.dispatchers.append(str(run.id))
        self.processes.tend([*self.runs.values(), *self.dispatchers])

    def _recover(self) -> None:
        """Start a round of recovery, as by hand, and again while it is killed."""
        while not self.processes.recover():
            self._tend()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A shop whose orders have all died where they were to, and have ended."""
    marks = tmp_path_factory.mktemp("marks")
    folder = tmp_path_factory.mktemp("kills")
    prepare(folder, tmp_path_factory)
    right = LocalSystem.settings
    with pytest.MonkeyPatch.context() as patch:
        # Messages that a dead dispatcher had in hand come again soon.
        patch.setenv("STORE_VISIBILITY_TIMEOUT_SECONDS", "2")
        patch.setattr(LocalSystem, "settings", lambda local: {**right(local), FOLDER: str(marks)})
        patch.setattr(LocalSystem, "start_worker", lambda _: None)
        local = LocalSystem(folder, durable=False, preferred_port=0)
        with local, PrefectServer(local.api_url) as api:
            processes = Processes(local, api)
            shop = Shop(local, api, marks, processes)
            try:
                for order_id in ORDERS:
                    shop.check_out(order_id)
                shop.carry_out(ORDERS, until=shop.waits)
                for order_id in UNDONE:
                    shop.refuse(order_id)
                shop.carry_out(UNDONE, until=shop.is_answered)
                shop.has_dispatcher = True
                shop.carry_out(UNDONE, until=shop.has_ended)
                shop.carry_out(DISPATCHED, until=shop.has_ended)
                yield shop
            finally:
                processes.stop()


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


def test_a_round_of_recovery_that_died_keeps_others_away_until_its_death_is_known(
    shop: Shop,
) -> None:
    def next_round() -> FlowRun:
        run = shop.api.start_run(RECOVERY_DEPLOYMENT, {})
        shop.api.set_state(run.id, "PENDING", "Pending", "as a worker does before it starts it")
        return shop.api.read_run(run.id)

    dead = next_round()
    assert dead.state_name == "Pending"
    shop.api.set_state(dead.id, "RUNNING", "Running", "")
    # It holds its deployment's only slot. Another run waits for that, without a process.
    waiting = next_round()
    assert waiting.state_name == "AwaitingConcurrencySlot"
    # What the automation does after two minutes without a heartbeat.
    shop.api.set_state(dead.id, "CRASHED", "Crashed", "no heartbeat")
    shop.api.set_state(waiting.id, "PENDING", "Pending", "")
    assert shop.api.read_run(waiting.id).state_name == "Pending"
    shop.api.set_state(waiting.id, "CANCELLED", "Cancelled", "")
