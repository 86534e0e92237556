"""The contract of a payment gateway.

A gateway is a party of its own. Every call carries an idempotency key, so asking again is safe,
and a call may time out after it took effect. Groups go in one call; each charge has its own
answer. ``store/partners.py`` chooses the gateway.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

DECLINED_METHOD = "pm_card_chargeDeclined"
"""Test payment method that every gateway declines (Stripe's name for it)."""


def refund_key(key: str) -> str:
    """Return the idempotency key of the first refund of a charge."""
    return f"{key}:refund"


@dataclass(frozen=True, slots=True)
class Charge:
    """An amount to capture from a payment method under an idempotency key.

    ``reference`` is the gateway's own name of the charge, where it has given one, and
    ``intended_at`` says when the charge was first meant to be made, if that was before now. A
    gateway that forgets its keys in time needs them. ``refund_number`` counts the refunds of the
    charge that are asked for: the next one after each that was refused for good.
    """

    key: str
    order_id: str
    amount_cents: int
    currency: str
    payment_method: str
    reference: str | None = field(default=None, compare=False)
    intended_at: datetime | None = field(default=None, compare=False)
    refund_number: int = field(default=1, compare=False)

    @property
    def refund_key(self) -> str:
        """Return the idempotency key of the refund that is asked for now."""
        return refund_key(self.key) + (f":{self.refund_number}" if self.refund_number > 1 else "")


@dataclass(frozen=True, slots=True)
class Answer:
    """The gateway's answer about a charge.

    ``void`` says that nothing was captured under the key and never will be. ``unknown`` says
    that the gateway did not answer: the call is to be repeated as it is, never to be guessed.
    ``refused`` says that the gateway does not take the call as it is, by no fault of the card;
    the reason names the remedy. What earlier calls did is as open as before. ``key_is_spent`` says
    that the gateway would repeat this answer to the same key, so that the next try needs another.
    """

    status: Literal["captured", "declined", "refunded", "void", "unknown", "refused"]
    reference: str
    reason: str = ""
    key_is_spent: bool = False


class PaymentGateway(Protocol):
    """The interface of a payment provider."""

    def capture(self, charges: Sequence[Charge]) -> dict[str, Answer]:
        """Capture each charge once and return every answer by key.

        Answers are ``captured``, ``declined``, ``void`` (it was refunded before it arrived),
        ``unknown`` or ``refused``. The same key with the same data gets the same answer, without
        a second charge.

        Raises:
            KeyReused: a key came again with other data.
        """
        ...

    def refund(self, charges: Sequence[Charge]) -> dict[str, Answer]:
        """Refund each charge's captured amount once and return answers by key.

        Safe when the charge was captured (``refunded``), was declined or never arrived
        (``void``), and when it was refunded already; ``unknown`` and ``refused`` as for
        :meth:`capture`. A capture that arrives after its refund takes no money. A refund with a
        number above 1 gives back only what no earlier one has given back.
        """
        ...
