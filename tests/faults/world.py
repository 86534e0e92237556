"""The simulated world: processes that take turns, a clock of their own, and faults.

A process is a greenlet. It runs alone until it comes to a boundary (before a transaction, a call
to a partner, a sleep), where the simulation chooses who goes on. So transactions are atomic and
everything between them interleaves. A process may die at any boundary, or just before a commit.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from uuid import UUID

import greenlet  # type: ignore[import-untyped]
from prefect.exceptions import TerminationSignal
from psycopg.errors import ReadOnlySqlTransaction
from sqlalchemy.exc import InternalError, OperationalError

from tests.books_balance import Violation
from tests.faults.chance import Chance

BEGINNING = datetime(2030, 1, 1, 8, tzinfo=UTC)
SIGTERM = 15


LISTENING_SEEDS = 1_000_000
"""From this seed on, orders are submitted to batches that listen as well."""


class Killed(BaseException):
    """The process is dead: nothing in it may go on, and nobody may handle this."""


class FoundViolation(BaseException):
    """An invariant does not hold; the simulation ends here."""

    def __init__(self, violation: Violation) -> None:
        super().__init__(f"{violation.invariant}: {violation.sentence}")
        self.violation = violation


@dataclass
class Rates:
    """How probable each kind of fault is, at each of its opportunities."""

    kill: float = 0.0
    terminate: float = 0.0
    database: float = 0.0
    gateway: float = 0.0
    queue: float = 0.0
    topic: float = 0.0
    prefect: float = 0.0
    slow: float = 0.0
    people: float = 0.0
    machines: float = 0.0


@dataclass(eq=False)
class Process:
    """One process: what it does, whether it sleeps, and how it is to end."""

    number: int
    name: str
    wake_at: float
    in_main_thread: bool
    owner: Any = None
    doomed: bool = False
    terminated: bool = False
    ended: bool = False
    task_try: Any = None
    lives: greenlet.greenlet = field(init=False)


class World:
    """Processes, clock and faults of one simulation."""

    def __init__(self, chance: Chance) -> None:
        self.chance = chance
        self.rates = Rates()
        self.now = 0.0
        self.story: list[str] = []
        self.processes: list[Process] = []
        self.current: Process | None = None
        self.wrote = False
        self.turns = 0
        self.database_away_until = 0.0
        self.when_killed: Callable[[Process], None] = lambda _: None
        self.when_failed: Callable[[Exception], None] = lambda _: None
        self._hub = greenlet.getcurrent()
        self._last: Process | None = None
        self._lasting: dict[str, tuple[str, float]] = {}
        self._started = 0

    def tell(self, what: str) -> None:
        """Put a sentence into the story of this simulation."""
        self.story.append(f"{self.now:9.1f}s  {what}")

    def today(self) -> datetime:
        """Return the simulated moment."""
        return BEGINNING + timedelta(seconds=self.now)

    def new_id(self) -> UUID:
        """Return an id, the same one in each replay."""
        return UUID(int=self.chance.unrecorded_id())

    # Processes

    def start(
        self,
        name: str,
        body: Callable[[], object],
        *,
        delay: float = 0.0,
        owner: Any = None,
        in_main_thread: bool = True,
    ) -> Process:
        """Start a process; it comes to its first turn after ``delay``."""
        self._started += 1
        process = Process(
            number=self._started,
            name=f"{name} (process {self._started})",
            wake_at=self.now + delay,
            in_main_thread=in_main_thread,
            owner=owner,
        )

        def live() -> None:
            try:
                body()
            except (Killed, TerminationSignal):
                process.doomed = True
            except Exception as error:
                self.when_failed(error)
            finally:
                process.ended = True

        process.lives = greenlet.greenlet(live, parent=self._hub)
        self.processes.append(process)
        return process

    def ready(self) -> list[Process]:
        """Return the processes that can go on now, the one that went last at first."""
        ready = [p for p in self.processes if p.wake_at <= self.now]
        ready.sort(key=lambda p: (p is not self._last, p.number))
        return ready

    def give_turn(self, process: Process) -> None:
        """Let a process go on to its next boundary."""
        self._last = self.current = process
        self.turns += 1
        try:
            process.lives.switch()
        finally:
            self.current = None
            self._bury()

    def kill(self, process: Process) -> None:
        """Kill a process where it stands."""
        process.doomed = True
        self.current = process
        try:
            if process.lives:
                process.lives.throw(Killed)
            process.ended = True
        finally:
            self.current = None
            self._bury()

    def terminate(self, process: Process) -> None:
        """Send a process SIGTERM; it notices when it goes on."""
        process.terminated = True
        process.wake_at = min(process.wake_at, self.now)

    def _bury(self) -> None:
        dead = [p for p in self.processes if p.ended]
        self.processes = [p for p in self.processes if not p.ended]
        for process in dead:
            if process.doomed:
                self.when_killed(process)

    def close(self) -> None:
        """End all processes that are left."""
        self.when_killed = lambda _: None
        for process in list(self.processes):
            self.kill(process)

    # What a process meets on its way

    def boundary(self, what: str) -> None:
        """Let others go on; the process may die here."""
        process = self.current
        if process is None:
            return
        self._die_if_doomed(process)
        self._hub.switch()
        self._die_if_doomed(process)
        if process.terminated:
            process.terminated = False
            raise TerminationSignal(SIGTERM)
        self.may_die(what)
        if self.chance.happens(self.rates.slow):
            seconds = self.chance.one_of([1.0, 20.0, 150.0, 700.0])
            self.tell(f"{process.name} is held up for {seconds:.0f} s before {what}")
            process.wake_at = self.now + seconds
            self._hub.switch()
            self._die_if_doomed(process)

    def may_die(self, what: str) -> None:
        """Kill or terminate the process that is at its turn, or not."""
        process = self.current
        if process is None:
            return
        self._die_if_doomed(process)
        if self.chance.happens(self.rates.kill):
            self.tell(f"{process.name} is killed before {what}")
            process.doomed = True
            raise Killed
        if self.chance.happens(self.rates.terminate):
            self.tell(f"{process.name} is sent SIGTERM before {what}")
            raise TerminationSignal(SIGTERM)

    def sleep(self, seconds: float) -> None:
        """Let a process sleep on the simulated clock."""
        process = self.current
        if process is None:
            return
        process.wake_at = self.now + seconds
        self.boundary("waking up")

    def monotonic(self) -> float:
        """Return the simulated seconds since the beginning."""
        return self.now

    def fault(self, rate: float, kinds: list[str], lasting_in: str = "") -> str:
        """Return which kind of fault happens now; the empty string for none.

        Args:
            rate: How probable a fault is.
            kinds: The kinds to choose from.
            lasting_in: The place in which a fault may last, as outages do, so that all tries of a
                call meet the same one.
        """
        if self.current is None:
            return ""
        kind, until = self._lasting.get(lasting_in, ("", 0.0))
        if self.now >= until:
            if not self.chance.happens(rate):
                return ""
            kind = self.chance.one_of(kinds)
            if lasting_in:
                lasts = self.chance.one_of([0.0, 0.0, 30.0, 300.0])
                self._lasting[lasting_in] = (kind, self.now + lasts)
        self.tell(f"{self.current.name}: {kind}")
        return kind

    def _die_if_doomed(self, process: Process) -> None:
        if process.doomed:
            raise Killed

    def end_faults(self) -> None:
        """Let everything work from now on."""
        self.rates = Rates()
        self.database_away_until = 0.0
        self._lasting.clear()

    # The database

    def before_transaction(self) -> None:
        """Come to a transaction; the database may be away, or be there and take no writes."""
        self.boundary("a transaction")
        if self.current is not None and self.now < self.database_away_until:
            # No decision of its own: the seeds keep their stories.
            raise read_only() if int(self.database_away_until) % 2 else connection_lost()

    def before_commit(self) -> None:
        """Come to a commit; what raises here rolls back."""
        self.may_die("its commit")
        if self.fault(self.rates.database, ["the connection is lost before the commit"]):
            raise connection_lost()

    def after_commit(self) -> None:
        """Come back from a commit; its answer may be lost."""
        self.wrote = True
        if self.fault(self.rates.database, ["the answer to the commit is lost"]):
            raise connection_lost()


def connection_lost() -> OperationalError:
    """Return what SQLAlchemy raises when the database is out of reach."""
    return OperationalError("COMMIT", None, Exception("the connection was lost"))


def read_only() -> InternalError:
    """Return what SQLAlchemy raises when the server takes no writes, as in a failover."""
    return InternalError("UPDATE", None, ReadOnlySqlTransaction("the server is read-only"))


class Today(datetime):
    """Stands in for ``datetime`` where the store asks what time it is."""

    world: World

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        """Return the simulated moment."""
        return cls.world.today().astimezone(tz)
