"""Many checkouts at once on a running system, and what must have come of each.

The orders are of all kinds, so that each ending is met at full load: of ten in a row seven are
dispatched, one is declined by the bank, one is too large for every courier, one is out of stock.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from prefect.client.schemas.objects import TERMINAL_STATES
from sqlmodel import col, func, select

from deployments.holdings import open_store
from deployments.local import CHECKOUT_DEPLOYMENT, DISPATCH_DEPLOYMENT, LocalSystem
from deployments.prefect_server import PrefectServer
from flows.runs.pause import Wait
from seed.catalogue import EDUARDO_SANTANA, JOHN_DOE, STRIPED_PAJAMAS, TEN_X_RULE
from store.models import ENDED, Book, Order, OrderStatus
from store.settings import settings
from tests.books_balance import imbalances

CLIENTS = 16
"""Threads that start the runs: whoever sends orders does not wait for one to send the next."""
POLL_SECONDS = 1.0
MORE_THAN_A_COURIER_TAKES = 201
MORE_THAN_THERE_ARE = 501
STOCK = 1_000_000


@dataclass
class Expected:
    """How an order must end, and how its run."""

    order: dict[str, Any]
    status: OrderStatus
    error: str | None = None

    @property
    def waits(self) -> bool:
        """Whether the order comes to its wait for a courier."""
        return self.status == OrderStatus.DISPATCHED

    @property
    def run_state(self) -> str:
        """The type of the state in which its run must end."""
        return "COMPLETED" if self.status == OrderStatus.DISPATCHED else "FAILED"


@dataclass
class AtOnce:
    """Checkouts that are started at once, with their runs by order id."""

    local: LocalSystem
    api: PrefectServer
    wait: Wait
    expected: Mapping[str, Expected]
    deployment: str = CHECKOUT_DEPLOYMENT
    runs: dict[str, str] = field(default_factory=dict)

    def start(self, order_ids: Iterable[str]) -> None:
        """Start some of them, all at once."""
        with ThreadPoolExecutor(CLIENTS) as clients:
            self.runs.update(clients.map(self._start_one, order_ids))

    def _start_one(self, order_id: str) -> tuple[str, str]:
        parameters = {"order": self.expected[order_id].order, "wait": self.wait}
        return order_id, str(self.api.start_run(self.deployment, parameters).id)

    def statuses(self) -> Counter[str]:
        """Count the orders by their status in the store."""
        with open_store(self.local.store_url) as session:
            found = session.exec(
                select(col(Order.status), func.count())
                .where(col(Order.id).in_(self.expected))
                .group_by(col(Order.status))
            )
            return Counter(dict(found.all()))

    def states(self) -> Counter[str]:
        """Count the runs by the names of their states in Prefect."""
        with ThreadPoolExecutor(CLIENTS) as clients:
            return Counter(
                str(run.state_name) for run in clients.map(self.api.read_run, self._ids())
            )

    def _ids(self) -> list[str]:
        return list(self.runs.values())

    def until(
        self,
        reached: Callable[[], bool],
        deadline_seconds: float,
        tell: Callable[[str], None] = lambda _: None,
    ) -> float:
        """Wait until something is reached, telling how far it is; return the seconds."""
        began = time.monotonic()
        while not reached():
            seconds = time.monotonic() - began
            standing = dict(self.statuses())
            assert seconds < deadline_seconds, f"after {seconds:.0f} s: {standing}"
            tell(f"{seconds:4.0f} s  {standing}")
            time.sleep(POLL_SECONDS)
        return time.monotonic() - began

    def all_wait(self) -> bool:
        """Say whether every order that comes to its wait waits, and the others have ended."""
        statuses = self.statuses()
        waiting = sum(expected.waits for expected in self.expected.values())
        ended = sum(statuses[status] for status in ENDED)
        if (statuses[OrderStatus.WAITING], ended) != (waiting, len(self.expected) - waiting):
            return False
        state = "Suspended" if self.wait == "suspend" else "Paused"
        return self.states()[state] == waiting

    def all_ended(self) -> bool:
        """Say whether every order and every run has ended."""
        if sum(self.statuses()[status] for status in ENDED) < len(self.expected):
            return False
        with ThreadPoolExecutor(CLIENTS) as clients:
            return all(
                run.state_type in TERMINAL_STATES
                for run in clients.map(self.api.read_run, self._ids())
            )

    def wrong(self) -> list[str]:
        """Return everything that did not end as it must, one sentence each."""
        with open_store(self.local.store_url) as session:
            orders = {
                order.id: order
                for order in session.exec(select(Order).where(col(Order.id).in_(self.expected)))
            }
            session.expunge_all()
        found = []
        for id_, expected in self.expected.items():
            order, run = orders[id_], self.api.read_run(self.runs[id_])
            if (order.status, order.error, order.attempt) != (expected.status, expected.error, 1):
                found.append(
                    f"{id_} is {order.status} ({order.error}) in attempt {order.attempt}, "
                    f"not {expected.status} ({expected.error})"
                )
            if order.continuations:
                found.append(f"{id_} was continued {order.continuations} times")
            if run.state_type != expected.run_state:
                found.append(
                    f"the run of {id_} is {run.state_name}: {run.state and run.state.message}"
                )
        with patch.dict("os.environ", {"STORE_DATABASE_URL": self.local.store_url}):
            settings.cache_clear()
            try:
                return [*found, *imbalances()]
            finally:
                settings.cache_clear()


def at_once(
    local: LocalSystem, api: PrefectServer, count: int, wait: Wait, prefix: str = "at-once"
) -> AtOnce:
    """Make ``count`` orders for a system, not started yet; put enough copies for them."""
    with open_store(local.store_url) as session:
        for book in session.exec(select(Book).where(col(Book.id) == STRIPED_PAJAMAS)):
            book.initial_quantity += STOCK
            book.quantity += STOCK
        session.commit()
    ids = [f"{prefix}-{number:03d}" for number in range(count)]
    expected = {id_: _expected(number, id_) for number, id_ in enumerate(ids)}
    return AtOnce(local, api, wait, expected)


def _expected(number: int, order_id: str) -> Expected:
    order = {
        "orderId": order_id,
        "userId": (JOHN_DOE, EDUARDO_SANTANA)[number % 2],
        "bookId": STRIPED_PAJAMAS,
        "quantity": 1,
    }
    match number % 10:
        case 7:
            order["paymentMethod"] = "pm_card_chargeDeclined"
            return Expected(order, OrderStatus.COMPENSATED, "BillingError")
        case 8:
            order["quantity"] = MORE_THAN_A_COURIER_TAKES
            return Expected(order, OrderStatus.REJECTED, "NoCourierAvailable")
        case 9:
            order |= {"bookId": TEN_X_RULE, "quantity": MORE_THAN_THERE_ARE}
            return Expected(order, OrderStatus.REJECTED, "BookOutOfStock")
    return Expected(order, OrderStatus.DISPATCHED)


def dispatch(api: PrefectServer) -> None:
    """Seek couriers from now on, as `make up` does."""
    api.unpause(DISPATCH_DEPLOYMENT)
    api.start_run(DISPATCH_DEPLOYMENT, {})
