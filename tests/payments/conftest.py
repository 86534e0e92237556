"""The payment gateways: the embedded one, and Stripe against its stand-in."""

from collections.abc import Callable, Iterator

import pytest
from pydantic import SecretStr

from seed.catalogue import empty
from store.database import transaction
from store.embedded_gateway import EmbeddedGateway
from store.models import LedgerEntry
from store.settings import settings
from store.stripe_gateway import StripeGateway
from tests.flows.runs import Runs
from tests.payments.parties import EmbeddedParty, Party, StripeParty
from tests.payments.stand_in import StripeStandIn
from tests.polling import PATIENCE_SECONDS

SECRET = "sk_test_not_to_be_seen_anywhere"  # noqa: S105


@pytest.fixture(scope="session")
def stripe_server() -> Iterator[StripeStandIn]:
    with StripeStandIn() as server:
        yield server


@pytest.fixture
def stand_in(stripe_server: StripeStandIn) -> StripeStandIn:
    """Stripe's stand-in, with nothing in it and no fault ordered."""
    stripe_server.reset()
    return stripe_server


@pytest.fixture
def stripe_gateway(stand_in: StripeStandIn) -> StripeGateway:
    return StripeGateway(SecretStr(SECRET), stand_in.url)


@pytest.fixture(params=["embedded", "stripe"])
def party(request: pytest.FixtureRequest, setting: Callable[[str, object], None]) -> Party:
    """A gateway with nothing in it."""
    if request.param == "stripe":
        return StripeParty(
            request.getfixturevalue("stripe_gateway"), request.getfixturevalue("stand_in")
        )
    setting("database_url", request.getfixturevalue("store_url"))
    empty()
    return EmbeddedParty(EmbeddedGateway())


@pytest.fixture
def paid_by_stripe(
    database: str, stand_in: StripeStandIn, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StripeStandIn]:
    """The shop charges by Stripe; at the end its books are held against Stripe's."""
    for name, value in {
        "STORE_PAYMENTS": "stripe",
        "STORE_STRIPE_SECRET_KEY": SECRET,
        "STORE_STRIPE_API_URL": stand_in.url,
    }.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    yield stand_in
    # Where the check of the books looks for the money.
    with transaction() as session:
        for kind, moved in (("captured", stand_in.captured()), ("refunded", stand_in.refunded())):
            session.add_all(
                LedgerEntry(
                    key=key if kind == "captured" else f"{key}:refund",
                    order_id=key.rpartition(":")[0],
                    kind="capture" if kind == "captured" else "refund",
                    status=kind,
                    amount_cents=cents,
                    currency="USD",
                    payment_method="stripe",
                )
                for key, cents in moved.items()
            )


@pytest.fixture
def runs(
    prefect_server: None,
    database: str,
    paid_by_stripe: StripeStandIn,
    setting: Callable[[str, object], None],
) -> Iterator[Runs]:
    """What a test starts and looks at flow runs with, which charge by Stripe."""
    setting("pause_poll_seconds", 1)
    setting("courier_timeout_seconds", int(PATIENCE_SECONDS))
    with Runs() as started:
        yield started
