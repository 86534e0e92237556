"""One simulation: a small shop, a few orders, random faults, and what must come out of it.

First chaos, then calm: faults stop, dispatcher and recovery run on, and every order must end.
The invariants are checked after every turn that wrote something.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from unittest.mock import patch

import httpx
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from sqlalchemy import Connection, create_engine, delete

from flows.actions.drain import wake
from flows.compensation import compensate
from flows.dispatch import dispatch_orders
from flows.recovery import recover_orders
from orders.intake import submit_orders
from reports.audit import audit
from seed.catalogue import empty
from store.bulk import insert_missing
from store.database import engine, snapshot, transaction
from store.errors import (
    CompensationFailed,
    OrderError,
    RefusedOrder,
    RetryableError,
    RunTakenAway,
    StoreError,
)
from store.messages import ASSIGNED, NO_COURIER, CheckoutOrder, CourierAnswer
from store.models import ENDED, Book, Courier, Customer, OrderStatus, QueuedMessage
from store.settings import settings
from store.table_queue import TableQueue
from tasks.dispatch import dispatch_order
from tasks.retries import is_transient
from tests.books_balance import ALWAYS, AT_REST, Violation, violations
from tests.faults.chance import Chance
from tests.faults.prefect_model import FINAL, Prefect, Run
from tests.faults.seams import installed
from tests.faults.world import LISTENING_SEEDS, FoundViolation, Process, Rates, World
from tests.sales_agree import disagreements

CHAOS_TURNS = 120
"""Turns of the chaos for the shop itself; each order adds as many as a checkout takes."""
TURNS_FOR_AN_ORDER = 100
CALM_ROUNDS = 60
"""Rounds of recovery after which every order must have ended; the longest delay is an hour."""
CALM_TURNS = 20_000
"""So many turns in the calm mean that something goes round in circles."""
SETTINGS = {
    "STORE_COURIER_TIMEOUT_SECONDS": "240",
    "STORE_PAUSE_POLL_SECONDS": "20",
    "STORE_REMINDER_SECONDS": "100",
    "STORE_ASK_AGAIN_SECONDS": "90",
    "STORE_ESCALATE_SECONDS": "150",
    "STORE_STALLED_SECONDS": "120",
    "STORE_MAX_CONTINUATIONS": "6",
    "STORE_VISIBILITY_TIMEOUT_SECONDS": "30",
}
MAX_CONTINUATIONS = int(SETTINGS["STORE_MAX_CONTINUATIONS"])
WAKINGS = 3
"""A drain looks so often for runs that are paused."""
BATCH_LISTENS_SECONDS = 40
LISTEN_SECONDS = 3
"""A dispatcher's run is short here, so that many of them meet."""

BOOKS = {"novel": (12, 20_00), "atlas": (7, 75_50), "poems": (3, 5_25)}
POINTS = {"ann": 150, "ben": 600}
CARDS = [
    "pm_card_visa",
    "pm_card_chargeDeclined",
    "pm_ledger_fail_2",
    "pm_ledger_fail_9",
    "pm_ledger_timeout_before",
    "pm_ledger_timeout_after",
]
COURIERS = {"bike": 2, "van": 4}
DISPATCHED = OrderStatus.DISPATCHED


@dataclass(frozen=True)
class Outcome:
    """What a simulation came to: its violation, if any, with all that is needed to replay it."""

    seed: int
    violation: Violation | None
    decisions: list[int]
    story: list[str]
    turns: int
    endings: Counter[str]


def simulate(seed: int, url: str, decisions: Sequence[int] | None = None) -> Outcome:
    """Run one simulation on the database at ``url``; everything in it is deleted before.

    Args:
        seed: What all decisions are drawn from.
        url: A migrated database.
        decisions: Those of an earlier run, to be taken again instead.
    """
    with _settings(url):
        return Simulation(seed, Chance(seed, decisions), url).run()


@contextmanager
def _settings(url: str) -> Iterator[None]:
    with patch.dict("os.environ", {**SETTINGS, "STORE_DATABASE_URL": url}):
        settings.cache_clear()
        try:
            yield
        finally:
            settings.cache_clear()


_onlookers: dict[str, Connection] = {}


def _onlooker(url: str) -> Connection:
    """Return a connection of its own, which sees what is committed and holds no lock."""
    if url not in _onlookers:
        _onlookers[url] = create_engine(url, isolation_level="AUTOCOMMIT").connect()
    return _onlookers[url]


class Course(NamedTuple):
    """What is known of an order's course at one moment."""

    id: str
    attempt: int
    status: str
    error: str | None
    continuations: int
    wait_until: datetime | None
    reserved: str | None


class Unexpected(logging.Handler):
    """Finds errors that the store's own code logs and survives, but that are defects."""

    def __init__(self, found: Callable[[Exception], None]) -> None:
        super().__init__(logging.ERROR)
        self._found = found

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and isinstance(record.exc_info[1], Exception):
            self._found(record.exc_info[1])


class Simulation:
    """The course of one simulation."""

    def __init__(self, seed: int, chance: Chance, url: str) -> None:
        self.seed = seed
        self.chance = chance
        self.url = url
        self.world = World(chance)
        self.prefect = Prefect(self.world)
        self.world.when_killed = self.prefect.process_was_killed
        self.world.when_failed = self.expect
        self.orders_left = 0
        self.dispatchers: list[Process] = []
        self.has_batches = seed >= LISTENING_SEEDS
        self.next_batch = 0.0
        self.next_dispatch = 100.0
        self.next_recovery = 60.0
        self.stood: dict[tuple[str, int], str] = {}
        self.asked_for: Counter[str] = Counter()
        self.cancelled: set[str] = set()
        self.sent: list[CheckoutOrder] = []

    def run(self) -> Outcome:
        """Run chaos and calm; return what came of it."""
        violation = None
        logger = logging.getLogger("store")
        handler = Unexpected(self.expect)
        propagates, level = logger.propagate, logger.level
        logger.propagate = False
        logger.setLevel(logging.ERROR)
        logger.addHandler(handler)
        try:
            empty()
            put_small_shop()
            with installed(self.world, self.prefect):
                try:
                    self._chaos()
                    self._calm()
                    self._once_more()
                except FoundViolation as found:
                    violation = found.violation
                finally:
                    self.world.close()
        finally:
            logger.removeHandler(handler)
            logger.propagate = propagates
            logger.setLevel(level)
        return Outcome(
            seed=self.seed,
            violation=violation,
            decisions=self.chance.taken,
            story=self.world.story,
            turns=self.world.turns,
            endings=Counter(status for status in self.stood.values() if status in ENDED),
        )

    # What happens

    def _chaos(self) -> None:
        self.orders_left = 1 + self.chance.number(5)
        turns = CHAOS_TURNS + TURNS_FOR_AN_ORDER * self.orders_left
        self.world.rates = self._rates()
        while self.world.turns < turns:
            self._something_happens()
            self.prefect.work()
            self._one_turn()
            if not self.orders_left and not self.world.processes and self._all_ended():
                return

    def _rates(self) -> Rates:
        """Choose which faults there are in this simulation, and how many.

        Most kinds are left out each time: where everything fails, nothing gets far.
        """

        def none_few_many(few: float, many: float) -> float:
            return self.chance.weighted([0.0, few, many], [5, 3, 2])

        return Rates(
            kill=none_few_many(0.003, 0.02),
            terminate=none_few_many(0.003, 0.02),
            database=none_few_many(0.01, 0.05),
            gateway=none_few_many(0.2, 0.7),
            queue=none_few_many(0.1, 0.5),
            topic=none_few_many(0.2, 0.8),
            prefect=none_few_many(0.02, 0.1),
            slow=none_few_many(0.005, 0.03),
            people=self.chance.one_of([0.0, 0.02, 0.1]),
            machines=none_few_many(0.01, 0.04),
        )

    def _one_turn(self) -> None:
        world = self.world
        ready = world.ready()
        if not ready:
            asleep = min((p.wake_at for p in world.processes), default=world.now + 30.0)
            world.now = max(world.now, min(asleep, world.now + 30.0))
            world.turns += 1
            return
        # Mostly a process goes on for a while; otherwise hardly anything would ever get done.
        others = len(ready) > 1 and self.chance.happens(0.4)
        process = ready[1 + self.chance.number(len(ready) - 1)] if others else ready[0]
        world.now += 0.01
        world.give_turn(process)
        self.check()

    def _something_happens(self) -> None:
        world, chance = self.world, self.chance
        if self.orders_left and (not self.sent or chance.happens(0.05)):
            self.orders_left -= 1
            self._send_order()
        if world.now >= self.next_dispatch or (
            len(self._alive(self.dispatchers)) < 2 and chance.happens(0.02)
        ):
            self.next_dispatch = max(self.next_dispatch, world.now) + 100.0
            self._dispatch()
        if self.has_batches and (world.now >= self.next_batch or chance.happens(0.002)):
            self.next_batch = world.now + BATCH_LISTENS_SECONDS
            self._listen()
        if world.now >= self.next_recovery or chance.happens(0.004):
            self.next_recovery = max(self.next_recovery, world.now) + 60.0
            self._recover()
        if chance.happens(0.05):
            self.prefect.server.end_expired_pauses()
        if chance.happens(world.rates.people):
            chance.weighted(
                [self._answer, self._cancel, self._retry, self._send_order_again],
                [6, 1, 2, 1],
            )()
        if chance.happens(world.rates.machines):
            chance.weighted(
                [
                    self._time_passes,
                    self._kill_a_process,
                    self._end_worker,
                    self._restart_worker,
                    self._database_goes_away,
                    self._server_goes_away,
                    self._call_a_run_crashed,
                    self._delete_a_run,
                    self._duplicate_messages,
                    self._lose_messages,
                    self._close_pool,
                    self._open_pool,
                ],
                [4, 3, 2, 3, 1, 1, 1, 1, 1, 1, 2, 2],
            )()

    def _send_order(self) -> None:
        chance = self.chance
        number = len(self.sent) + 1
        books = list(BOOKS)
        cart = chance.happens(0.3)
        chosen = (
            {"items": [{"bookId": b, "quantity": 1 + chance.number(2)} for b in books[:2]]}
            if cart
            else {"bookId": chance.one_of(books), "quantity": 1 + chance.number(3)}
        )
        order = CheckoutOrder.model_validate(
            {
                "orderId": f"order-{number}",
                "userId": chance.one_of(list(POINTS)),
                "redeem": chance.happens(0.5),
                "paymentMethod": chance.weighted(CARDS, [6, 1, 1, 1, 1, 1]),
                **chosen,
            }
        )
        self.sent.append(order)
        if chance.happens(0.05):
            self.world.tell(f"order-{number} kills its process whenever it is billed")
            self.prefect.poison.add(f"order-{number}")
        self.asked_for[f"order-{number}"] += 1
        self.world.tell(f"somebody orders {order.model_dump(exclude_none=True)}")
        if self.has_batches and chance.happens(0.8):
            self._submit(order)
            return
        self.prefect.server.create(order, chance.weighted(["pause", "suspend"], [3, 1]))

    def _send_order_again(self) -> None:
        if self.sent:
            order = self.chance.one_of(self.sent)
            self.asked_for[order.order_id or ""] += 1
            self.prefect.server.create(order, "pause")

    def _submit(self, order: CheckoutOrder) -> None:
        """Submit an order as a front end does, which tries again while the database is away."""

        def submit() -> None:
            while True:
                try:
                    submit_orders([order], "web")
                except Exception as error:
                    if not is_transient(error):
                        raise
                    self.world.sleep(5.0)
                else:
                    return

        self.world.start("the front end", submit)

    def _listen(self) -> None:
        self.prefect.server.create(None, "pause", listen_seconds=BATCH_LISTENS_SECONDS)

    def _dispatch(self) -> None:
        self.dispatchers.append(
            self.world.start("the dispatcher", lambda: dispatch_orders.fn(LISTEN_SECONDS))
        )

    def _recover(self) -> None:
        self.world.start("recovery", self._recovery_round)

    def _recovery_round(self) -> None:
        report = recover_orders.fn(limit=self.chance.one_of([500, 1]))
        if report.moves:
            self.world.tell(f"recovery: {report.moves}")

    def _alive(self, processes: list[Process]) -> list[Process]:
        return [process for process in processes if not process.ended]

    # People

    def _a_run(self, wanted: Callable[[Run], bool]) -> Run | None:
        runs = [run for run in self.prefect.server.runs.values() if wanted(run)]
        return self.chance.one_of(runs) if runs else None

    def _answer(self) -> None:
        run = self._a_run(lambda run: run.state.type == StateType.PAUSED)
        if run is None:
            return
        answer = self.chance.one_of(
            [
                CourierAnswer(outcome=ASSIGNED, courier="van", answered_by="Ada"),
                CourierAnswer(outcome=ASSIGNED, courier="bike", answered_by="Bob"),
                CourierAnswer(outcome=NO_COURIER, answered_by="Ada"),
                CourierAnswer(outcome=ASSIGNED, courier="nobody", answered_by="Bob"),
            ]
        )
        status = self.prefect.server.resume(run, answer.model_dump())
        self.world.tell(f"a person answers {run.name} {answer.outcome} {answer.courier}: {status}")

    def _cancel(self) -> None:
        run = self._a_run(lambda run: run.state.type not in FINAL)
        if run is not None:
            self.world.tell(f"a person cancels {run.name}")
            # A batch may own any order by the time when it ends.
            sent = {order.order_id or "" for order in self.sent}
            self.cancelled |= {run.order_id} if run.order else sent
            cancelling: State[None] = State(type=StateType.CANCELLING, name="Cancelling")
            self.prefect.server.propose(run, cancelling)

    def _retry(self) -> None:
        run = self._a_run(
            lambda run: run.state.type in FINAL and run.state.type != StateType.COMPLETED
        )
        if run is not None:
            self.world.tell(f"a person retries {run.name}")
            self.asked_for[run.order_id] += 1
            retry: State[None] = State(type=StateType.SCHEDULED, name="AwaitingRetry")
            self.prefect.server.propose(run, retry)

    # Machines

    def _time_passes(self) -> None:
        seconds = self.chance.one_of([5.0, 60.0, 300.0, 1000.0])
        self.world.tell(f"{seconds:.0f} s pass")
        self.world.now += seconds

    def _kill_a_process(self) -> None:
        if self.world.processes:
            process = self.chance.one_of(self.world.processes)
            if self.chance.happens(0.3):
                self.world.tell(f"{process.name} is sent SIGTERM")
                self.world.terminate(process)
            else:
                self.world.tell(f"{process.name} is killed")
                self.world.kill(process)

    def _end_worker(self) -> None:
        self.prefect.worker_alive = False
        if self.chance.happens(0.5):
            self.world.tell("the worker ends, its runs are orphans")
            return
        self.world.tell("the worker is killed with its runs")
        for process in list(self.world.processes):
            if isinstance(process.owner, Run) and not process.ended:
                self.world.kill(process)

    def _restart_worker(self) -> None:
        if not self.prefect.worker_alive:
            self.world.tell("the worker is started again")
            self.prefect.worker_alive = True

    def _close_pool(self) -> None:
        self.world.tell("the work pool is closed")
        self.prefect.server.pool_is_closed = True
        self.world.start("the drain", self._wake_all)

    def _wake_all(self) -> None:
        for _ in range(WAKINGS):
            paused = [
                run.id
                for run in self.prefect.server.runs.values()
                if run.state.type == StateType.PAUSED and not run.is_suspended
            ]
            client: Any = self.prefect.get_client()
            wake(client, paused)
            self.world.sleep(15.0)

    def _open_pool(self) -> None:
        if self.prefect.server.pool_is_closed:
            self.world.tell("the work pool is open again")
            self.prefect.server.pool_is_closed = False

    def _database_goes_away(self) -> None:
        seconds = self.chance.one_of([3.0, 30.0, 300.0])
        self.world.tell(f"the database is away for {seconds:.0f} s")
        self.world.database_away_until = self.world.now + seconds

    def _server_goes_away(self) -> None:
        seconds = self.chance.one_of([10.0, 90.0, 500.0])
        self.world.tell(f"Prefect's server is away for {seconds:.0f} s")
        self.prefect.server.away_until = self.world.now + seconds

    def _call_a_run_crashed(self) -> None:
        run = self._a_run(lambda run: run.state.type in (StateType.RUNNING, StateType.PAUSED))
        if run is not None:
            self.world.tell(f"an automation calls {run.name} crashed")
            crashed: State[None] = State(type=StateType.CRASHED, name="Crashed")
            self.prefect.server.propose(run, crashed)

    def _delete_a_run(self) -> None:
        run = self._a_run(lambda run: run.process is None or run.process.ended)
        if run is not None:
            self.world.tell(f"{run.name} is deleted")
            del self.prefect.server.runs[run.id]

    def _duplicate_messages(self) -> None:
        self.world.tell("the queue delivers everything twice")
        bodies = self._rows("SELECT DISTINCT body FROM order_queue ORDER BY body")
        TableQueue().send([str(body) for (body,) in bodies])

    def _lose_messages(self) -> None:
        self.world.tell("the queue loses everything")
        with transaction() as session:
            session.execute(delete(QueuedMessage))

    # The calm

    def _calm(self) -> None:
        world = self.world
        world.tell("the calm: faults stop")
        world.end_faults()
        self.prefect.server.away_until = 0.0
        self.prefect.worker_alive = True
        self._open_pool()
        while self.orders_left:
            self.orders_left -= 1
            self._send_order()
        last_turn = world.turns + CALM_TURNS
        for round_ in range(CALM_ROUNDS):
            if not self._alive(self.dispatchers):
                self._dispatch()
            if self.has_batches and round_ % 10 == 0:
                self._listen()
            self._recover()
            until = world.now + (60.0 if round_ < CALM_ROUNDS // 2 else 1800.0)
            while world.now < until:
                self.prefect.server.end_expired_pauses()
                self.prefect.work()
                ready = world.ready()
                if not ready:
                    world.now = min([until, *(p.wake_at for p in world.processes)])
                    continue
                world.now += 0.001
                world.give_turn(ready[0])
                self.check()
                if world.turns > last_turn:
                    raise FoundViolation(
                        Violation("I4 every order ends", f"it goes round: {world.story[-1]}")
                    )
            if self._at_rest():
                break
        self._must(violations(_onlooker(self.url), AT_REST))
        if world.processes:
            names = ", ".join(process.name for process in world.processes)
            raise FoundViolation(Violation("I4 every run ends", names))

    def _at_rest(self) -> bool:
        if self.world.processes or violations(_onlooker(self.url), AT_REST):
            return False
        return all(r.state.type in FINAL for r in self.prefect.server.runs.values())

    def _once_more(self) -> None:
        """Do everything once more: nothing may change in what has ended."""
        ids = [row[0] for row in self._rows("SELECT id FROM orders ORDER BY id")]
        before = self._books()
        recover_orders.fn()
        compensate.fn(ids)
        with suppress(OrderError):
            dispatch_order.fn(ids)
        if self._books() != before:
            raise FoundViolation(Violation("I4 an ending is final", "doing it again changed it"))
        self.check(always=True)
        with snapshot() as session:
            # The shop's own audit, written apart from the invariants here, must be of one mind.
            self._must([Violation(f.invariant, f"{f.subject} {f.facts}") for f in audit(session)])
            self._must([Violation("I3 report", told) for told in disagreements(session, ["title"])])

    def _books(self) -> list[tuple[Any, ...]]:
        return [
            tuple(row)
            for statement in (
                "SELECT id, status, attempt, run_id FROM orders ORDER BY id",
                "SELECT id, quantity FROM books ORDER BY id",
                "SELECT id, points FROM customers ORDER BY id",
                "SELECT key, status, amount_cents FROM ledger ORDER BY key",
                "SELECT key FROM notifications ORDER BY key",
            )
            for row in self._rows(statement)
        ]

    def _rows(self, statement: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in _onlooker(self.url).exec_driver_sql(statement)]

    def _all_ended(self) -> bool:
        return not violations(_onlooker(self.url), AT_REST)

    # What is checked

    def check(self, *, always: bool = False) -> None:
        """Check the invariants, if anything was written since the last time."""
        if not (self.world.wrote or always):
            return
        self.world.wrote = False
        self._must(violations(_onlooker(self.url), ALWAYS))
        for row in self._rows(
            "SELECT o.id, o.attempt, o.status, o.error, o.continuations, "
            "o.wait_until, s.order_id "
            "FROM orders o LEFT JOIN saga_log s ON s.order_id = o.id AND s.attempt = o.attempt "
            "AND s.step = 'check_inventory' ORDER BY o.id"
        ):
            self._check_course(Course._make(row))

    def _check_course(self, order: "Course") -> None:
        """Check what an order's row alone does not tell: where it stood before, and why it ends."""
        before = self.stood.get((order.id, order.attempt), order.status)
        self.stood[order.id, order.attempt] = order.status
        if before != order.status:
            self.world.tell(f"{order.id} is {order.status} in attempt {order.attempt}")
        now = f"{order.id} was {before} in attempt {order.attempt}, now it is {order.status}"
        if before in ENDED and order.status != before:
            raise FoundViolation(Violation("I4 an ending is final", now))
        if before == OrderStatus.DISPATCHING and order.status not in (before, DISPATCHED):
            raise FoundViolation(Violation("I4 pivot", now))
        if order.attempt > self.asked_for[order.id]:
            raise FoundViolation(
                Violation("I4 attempts", f"{order.id} is in attempt {order.attempt}, unasked")
            )
        if order.error == "CheckoutFailed" and order.continuations < MAX_CONTINUATIONS:
            raise FoundViolation(
                Violation(
                    "I4 a crash is no failure",
                    f"{order.id} failed after {order.continuations} continuations",
                )
            )
        too_early = (
            before != order.status
            and order.wait_until is not None
            and order.wait_until > self.world.today()
        )
        not_its_own = (
            (order.error == "OrderCancelled" and order.id not in self.cancelled)
            or (order.error == "BookOutOfStock" and order.reserved is not None)
            or (order.error == "CourierWaitExpired" and too_early)
        )
        if not_its_own:
            raise FoundViolation(
                Violation("I4 own reason", f"{order.id} ended with the error {order.error}")
            )

    def _must(self, found: list[Violation]) -> None:
        if found:
            raise FoundViolation(found[0])

    def expect(self, error: Exception) -> None:
        """Raise unless ``error`` is one that may happen in a shop without defects."""
        if is_expected(error):
            self.world.tell(f"{type(error).__name__}: {error}"[:160])
            return
        raise FoundViolation(Violation("no defect", f"{type(error).__name__}: {error}"))


def is_expected(error: Exception) -> bool:
    """Say whether an error may reach a process's end in a shop without defects."""
    if isinstance(error, StoreError):
        return isinstance(
            error, OrderError | RefusedOrder | RetryableError | CompensationFailed | RunTakenAway
        )
    if isinstance(error, httpx.TransportError | PrefectHTTPStatusError | ObjectNotFound):
        return True
    cannot_pause = isinstance(error, RuntimeError) and "cannot be paused" in str(error)
    return is_transient(error) or cannot_pause


def put_small_shop() -> None:
    """Put few books, customers and couriers, so that orders meet."""
    with transaction() as session:
        insert_missing(
            session,
            Book,
            [
                {
                    "id": id_,
                    "title": id_,
                    "price_cents": price_cents,
                    "quantity": copies,
                    "initial_quantity": copies,
                }
                for id_, (copies, price_cents) in BOOKS.items()
            ],
        )
        insert_missing(
            session,
            Customer,
            [
                {
                    "id": id_,
                    "name": id_,
                    "points": points,
                    "initial_points": points,
                    "payment_method": "pm_card_visa",
                }
                for id_, points in POINTS.items()
            ],
        )
        insert_missing(
            session,
            Courier,
            [
                {"id": id_, "name": id_, "capacity_copies": copies, "assigned_copies": 0}
                for id_, copies in COURIERS.items()
            ],
        )


def dispose(url: str) -> None:
    """Close what simulations left open at ``url``."""
    onlooker = _onlookers.pop(url, None)
    if onlooker is not None:
        onlooker.close()
        onlooker.engine.dispose()
    engine(url).dispose()
