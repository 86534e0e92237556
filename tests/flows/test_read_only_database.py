"""A database that takes no writes for a while, as in a failover: no order pays for it."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import ExceptionContext, NullPool, create_engine, event, text

from flows import compensation
from flows.batch import batch_checkout
from flows.batches.chunk import STEPS
from orders.intake import claim_orders
from store.database import engine
from store.embedded_gateway import EmbeddedGateway
from store.outages import READ_ONLY, sqlstate_of
from store.payments import Answer, Charge
from store.settings import settings
from tasks.dispatch import send_again
from tests.flows.batches import Batches, submit
from tests.flows.runs import Runs
from tests.polling import wait_until
from tests.shop import kept_cents, ledger, order_row, status, statuses, stock

ORDERS = 24
READ_ONLY_SECONDS = 1.5


class Failover:
    """Makes the real server read-only for every session, and counts those whom it refused."""

    def __init__(self, url: str) -> None:
        self.refused = 0
        self._switch = create_engine(
            url, poolclass=NullPool, isolation_level="AUTOCOMMIT", hide_parameters=True
        )

    def count(self, context: ExceptionContext) -> None:
        self.refused += sqlstate_of(context.original_exception) == READ_ONLY

    def begin(self) -> None:
        self._set("ALTER SYSTEM SET default_transaction_read_only = on", "on")

    def end(self) -> None:
        self._set("ALTER SYSTEM RESET default_transaction_read_only", "off")

    def end_later(self) -> None:
        """End it some time after the first call that it refused."""
        wait_until(lambda: self.refused, "a call that was refused")
        time.sleep(READ_ONLY_SECONDS)
        self.end()

    def _set(self, statement: str, value: str) -> None:
        with self._switch.connect() as connection:
            connection.execute(text("SET default_transaction_read_only = off"))
            connection.execute(text(statement))
            connection.execute(text("SELECT pg_reload_conf()"))

        def is_set() -> bool:
            with self._switch.connect() as connection:
                found = connection.execute(text("SHOW default_transaction_read_only")).scalar()
                return found == value

        wait_until(is_set, f"default_transaction_read_only = {value}")


@pytest.fixture
def failover(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Failover]:
    """A failover that begins when the first customers have been charged."""
    failover = Failover(settings().database_url)
    store = engine(settings().database_url)
    event.listen(store, "handle_error", failover.count)
    capture = EmbeddedGateway.capture
    begun: list[bool] = []

    def charge_and_fail_over(self: EmbeddedGateway, charges: Sequence[Charge]) -> dict[str, Answer]:
        answers = capture(self, charges)
        if not begun:
            begun.append(True)
            failover.begin()
        return answers

    monkeypatch.setattr(EmbeddedGateway, "capture", charge_and_fail_over)
    yield failover
    failover.end()
    event.remove(store, "handle_error", failover.count)


def all_are_well(orders: list[str]) -> None:
    assert statuses(orders) == {"dispatched"}
    assert {order_row(id_).attempt for id_ in orders} == {1}
    assert (stock(), kept_cents()) == (500 - ORDERS, ORDERS * 20_00)
    assert {state for _, state, _ in ledger()} == {"captured"}


def test_a_batch_outlasts_a_failover_in_the_midst_of_its_charges(
    runs: Runs, failover: Failover
) -> None:
    orders = submit(ORDERS)
    batches = Batches(runs)
    with ThreadPoolExecutor(1) as operator:
        ended = operator.submit(failover.end_later)
        running = batches.start(chunk_size=ORDERS)
        ended.result()
        state = batches.dispatched(running)
    assert state.message == f"{ORDERS} orders: {ORDERS} dispatched"
    all_are_well(orders)


def test_a_batch_claims_orders_when_the_failover_is_over(
    runs: Runs, failover: Failover, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims: list[list[str]] = []

    def claim_late(run_id: str, limit: int) -> list[str]:
        if claims:
            wait_until(lambda: failover.refused, "a call that was refused")
        claims.append(claim_orders(run_id, limit))
        return claims[-1]

    monkeypatch.setattr("flows.batch.claim_orders", claim_late)
    orders = submit(ORDERS)
    batches = Batches(runs)
    with ThreadPoolExecutor(1) as operator:
        ended = operator.submit(failover.end_later)
        running = batches.start(chunk_size=ORDERS // 2)
        ended.result()
        state = batches.dispatched(running)
    assert state.message == f"{ORDERS} orders: {ORDERS} dispatched"
    assert [len(claimed) for claimed in claims] == [ORDERS // 2, ORDERS // 2, 0]
    all_are_well(orders)


def test_a_batch_that_gives_up_is_started_again_and_nobody_is_refunded(
    runs: Runs, failover: Failover, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in STEPS:
        monkeypatch.setattr(step, "retries", 0)
    started_again = []
    monkeypatch.setattr(
        compensation, "continue_run", lambda _client, *run: started_again.append(run)
    )
    orders = submit(ORDERS)
    batches = Batches(runs)
    state = batches.start(chunk_size=4).result()
    assert state.is_failed()
    [run] = batches.found()
    failover.end()
    # Prefect's hook came while the server was read-only, and could not have done any harm then.
    started_again.clear()
    compensation.compensate_run(batch_checkout, run, state)
    assert [run_id for run_id, _ in started_again] == [str(run.id)]
    assert statuses(orders) <= {"submitted", "started", "waiting"}
    # Recovery does so after STORE_ASK_AGAIN_SECONDS: an order waits before its message is out.
    send_again([id_ for id_ in orders if status(id_) == "waiting"])
    assert batches.dispatched(batches.again(run)).is_completed()
    all_are_well(orders)
