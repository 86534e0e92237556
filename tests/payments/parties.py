"""A payment gateway as a test of the contract sees it: what it is asked, and what it has."""

from collections import Counter
from dataclasses import dataclass
from typing import Literal, Protocol

from store.embedded_gateway import EmbeddedGateway
from store.payments import DECLINED_METHOD, Charge, PaymentGateway
from store.stripe_gateway import CHARGE, StripeGateway
from tests.payments.stand_in import CREATE, Fault, StripeStandIn
from tests.shop import ledger

GOOD_METHOD = "pm_card_visa"
Deafness = Literal["before", "after", "twice before"]
"""When a charge gets no answer: before or after the money was captured."""


def a_charge(
    key: str = "k", cents: int = 5_00, *, method: str = GOOD_METHOD, currency: str = "USD"
) -> Charge:
    return Charge(key, "o", cents, currency, method)


def a_bad_charge(key: str = "k") -> Charge:
    return a_charge(key, method=DECLINED_METHOD)


class Party(Protocol):
    """A gateway, and what it has."""

    @property
    def gateway(self) -> PaymentGateway:
        """The gateway itself."""
        ...

    def unanswered(self, when: Deafness, key: str = "k") -> Charge:
        """A good charge whose first calls get no answer."""
        ...

    def captured(self) -> Counter[str]:
        """The cents that each key has taken, however often it did."""
        ...

    def refunded(self) -> Counter[str]:
        """The cents that each key has given back, however often it did."""
        ...


@dataclass
class EmbeddedParty:
    """The ledger, which misbehaves by payment method."""

    gateway: EmbeddedGateway

    def unanswered(self, when: Deafness, key: str = "k") -> Charge:
        methods = {
            "before": "pm_ledger_timeout_before",
            "after": "pm_ledger_timeout_after",
            "twice before": "pm_ledger_fail_2",
        }
        return a_charge(key, method=methods[when])

    def captured(self) -> Counter[str]:
        return Counter({key: cents for key, status, cents in ledger() if status == "captured"})

    def refunded(self) -> Counter[str]:
        return Counter(
            {
                key.removesuffix(":refund"): cents
                for key, status, cents in ledger()
                if status == "refunded"
            }
        )


@dataclass
class StripeParty:
    """Stripe's stand-in, which misbehaves by order of the test."""

    gateway: StripeGateway
    stand_in: StripeStandIn

    def unanswered(self, when: Deafness, key: str = "k") -> Charge:
        charge = a_charge(key)
        times = 2 if when == "twice before" else 1
        about = {f"metadata[{CHARGE}]": key, "confirm": "true"}
        for _ in range(times):
            self.stand_in.faults.append(Fault(CREATE, about=about, is_done=when == "after"))
        return charge

    def captured(self) -> Counter[str]:
        return self.stand_in.captured()

    def refunded(self) -> Counter[str]:
        return self.stand_in.refunded()
