"""One real system for all these tests: PostgreSQL, Prefect server, worker, deployments."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import FlowRun
from rich.console import Console
from sqlalchemy import update

from deployments.holdings import open_store
from deployments.local import CHECKOUT_DEPLOYMENT, DISPATCH_DEPLOYMENT, LocalSystem
from deployments.prefect_server import PrefectServer
from deployments.progress import Progress
from seed.catalogue import JOHN_DOE, STRIPED_PAJAMAS
from store.models import Customer, Order, OrderStatus
from tests import polling
from tests.prepared_cluster import prepare

# Starting all of it, and several flow runs at once, on a slow and loaded machine.
DEADLINE_SECONDS = 240.0
POLL_SECONDS = 0.2
USER, PASSWORD = "shop", "zq-prefect-password"
"""The server answers nobody else, so every test here shows that what is ours gives it."""
SECRETS = {
    "database": "zq-database-password",
    "AWS_SECRET_ACCESS_KEY": "zq-aws-secret",
    "STORE_STRIPE_SECRET_KEY": "sk_live_zqStripeKey",
}
"""In the environment of everything that works for the store; nothing may write them down."""


@dataclass(frozen=True)
class RunningSystem:
    """The system, what it printed, and an order that waited while it was restarted."""

    local: LocalSystem
    api: PrefectServer
    printed: io.StringIO
    survivor: FlowRun
    dispatcher_stayed_off: bool
    """Whether the dispatcher, switched off before the restart, was off after it."""

    @property
    def progress(self) -> Progress:
        return Progress(Console(file=self.printed, width=150))


PAYMENT_METHOD = "pm_zq_of_the_customer"
"""What the customers pay with, unless their order says otherwise."""


class SystemWithSecrets(LocalSystem):
    """A local system in whose environment secrets are planted."""

    def settings(self) -> dict[str, str]:
        settings = {**super().settings(), **SECRETS}
        # PostgreSQL asks for no password here, and takes any.
        url = self.store_url.replace("@", f":{settings.pop('database')}@", 1)
        return {**settings, "STORE_DATABASE_URL": url}


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait with the patience that a real system needs."""
    polling.wait_until(
        condition, what, patience_seconds=DEADLINE_SECONDS, poll_seconds=POLL_SECONDS
    )


def status_of(store_url: str, order_id: str) -> str | None:
    with open_store(store_url) as session:
        order = session.get(Order, order_id)
        return None if order is None else order.status


def checkout(api: PrefectServer, order: dict[str, Any]) -> FlowRun:
    return api.start_run(CHECKOUT_DEPLOYMENT, {"order": order})


@pytest.fixture(scope="session")
def local_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSystem]:
    """A system that was stopped and started again while an order waited for its courier."""
    data_dir: Path = tmp_path_factory.mktemp("local")
    prepare(data_dir, tmp_path_factory)
    printed = io.StringIO()
    # Any port: somebody may look at a `make up` of theirs on the preferred one meanwhile.
    system = SystemWithSecrets(
        data_dir,
        report=Progress(Console(file=printed, width=150)),
        durable=False,
        preferred_port=0,
        auth=f"{USER}:{PASSWORD}",
    )
    with system:
        with open_store(system.store_url) as session:
            session.execute(update(Customer).values(payment_method=PAYMENT_METHOD))
            session.commit()
        with system.api() as api:
            order = {
                "orderId": "survivor",
                "userId": JOHN_DOE,
                "bookId": STRIPED_PAJAMAS,
                "quantity": 1,
            }
            survivor = checkout(api, order)
            wait_until(
                lambda: status_of(system.store_url, "survivor") == OrderStatus.WAITING,
                "order that waits for a courier",
            )
            wait_until(
                lambda: api.read_run(survivor.id).state_type == "PAUSED", "paused run of the order"
            )
            api.pause(DISPATCH_DEPLOYMENT)
        system.stop()
        system.start()
        with system.api() as api:
            stayed_off = bool(api.is_paused(DISPATCH_DEPLOYMENT))
            api.unpause(DISPATCH_DEPLOYMENT)
            yield RunningSystem(system, api, printed, survivor, stayed_off)
