"""The payment gateway: what a step may ask of it, and the embedded one, a ledger.

A gateway is a party of its own. Every call carries an idempotency key, so asking again is safe,
and a call may time out after it took effect. Groups go in one call; each charge has its own
answer. The gateway of Stripe is in ``store/stripe_gateway.py``.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal, Protocol

from sqlmodel import Session, col, select

from store.bulk import insert_missing
from store.database import transaction
from store.errors import KeyReused
from store.models import LedgerEntry
from store.settings import settings

DECLINED_METHOD = "pm_card_chargeDeclined"
"""Test payment method that every gateway declines (Stripe's name for it)."""

_TEST_METHODS = "pm_ledger_"
_TEST_METHOD = re.compile(r"pm_ledger_(fail_[0-9]{1,4}|timeout_before|timeout_after)")


@dataclass(frozen=True, slots=True)
class Charge:
    """An amount to capture from a payment method, known by its idempotency key.

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
        return _refund_key(self.key) + (f":{self.refund_number}" if self.refund_number > 1 else "")


@dataclass(frozen=True, slots=True)
class Answer:
    """The gateway's word on a charge.

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
    """What the steps ask of a payment provider."""

    def capture(self, charges: Sequence[Charge]) -> dict[str, Answer]:
        """Capture each charge once; return an answer by key for every one of them.

        Answers are ``captured``, ``declined``, ``void`` (it was refunded before it arrived),
        ``unknown`` or ``refused``. The same key with the same data gets the same answer, without
        a second charge.

        Raises:
            KeyReused: a key came again with other data.
        """
        ...

    def refund(self, charges: Sequence[Charge]) -> dict[str, Answer]:
        """Give back whatever was captured for each charge, once; return answers by key.

        Safe when the charge was captured (``refunded``), was declined or never arrived
        (``void``), and when it was refunded already; ``unknown`` and ``refused`` as for
        :meth:`capture`. A capture that arrives after its refund takes no money. A refund with a
        number above 1 gives back only what no earlier one has given back.
        """
        ...


class Ledger:
    """The embedded gateway: a table of entries, one for each charge and each refund.

    Payment methods make it behave badly on purpose, for demonstrations and tests:
    ``pm_card_chargeDeclined`` is declined, ``pm_ledger_fail_N`` is unavailable for the first N
    calls, ``pm_ledger_timeout_before`` and ``pm_ledger_timeout_after`` answer the first call
    with a time-out, before or after the money was captured. An unknown one that begins with
    ``pm_ledger_`` is refused. All others are good.
    """

    def capture(self, charges: Sequence[Charge]) -> dict[str, Answer]:
        """See :meth:`PaymentGateway.capture`."""
        answers = {
            charge.key: Answer("refused", charge.key, problem)
            for charge in charges
            if (problem := _no_test_method(charge.payment_method)) is not None
        }
        charges = [charge for charge in charges if charge.key not in answers]
        first = {
            charge.key: _entry(charge, "capture", _first_status(charge.payment_method))
            for charge in charges
        }
        with transaction() as session:
            inserted = {key for (key,) in insert_missing(session, LedgerEntry, first.values())}
            asked_before = [c.key for c in charges if c.key not in inserted]
            known = _entries(session, asked_before) if asked_before else {}
            for charge in charges:
                entry = known.get(charge.key)
                if entry is None:
                    late = charge.payment_method == "pm_ledger_timeout_after"
                    status = "unknown" if late else str(first[charge.key]["status"])
                else:
                    _require_same(entry, charge)
                    if entry.status == "unknown":
                        entry.tries += 1
                        if entry.tries > _failures(charge.payment_method):
                            entry.status = "captured"
                    status = entry.status
                answers[charge.key] = _answer(charge.key, status)
        return answers

    def refund(self, charges: Sequence[Charge]) -> dict[str, Answer]:
        """See :meth:`PaymentGateway.refund`."""
        answers = {
            charge.key: _of_another_gateway(charge)
            for charge in charges
            if charge.reference not in (None, charge.key)
        }
        charges = [charge for charge in charges if charge.key not in answers]
        with transaction() as session:
            # Tombstones first: a capture still on its way finds its key taken, and takes nothing.
            insert_missing(session, LedgerEntry, [_entry(c, "capture", "void") for c in charges])
            captures = _entries(session, [charge.key for charge in charges])
            refunds = []
            for charge in charges:
                entry = captures[charge.key]
                if entry.status == "unknown":
                    entry.status = "void"
                if entry.status == "captured":
                    taken = replace(charge, amount_cents=entry.amount_cents)
                    refunds.append(_entry(taken, "refund", "refunded"))
                    answers[charge.key] = _answer(_refund_key(charge.key), "refunded")
                else:
                    answers[charge.key] = _answer(charge.key, "void")
            insert_missing(session, LedgerEntry, refunds)
        return answers


def wrong_method(payment_method: str) -> str | None:
    """Return what is wrong with a payment method, and the remedy; None if nothing is known to be.

    Only the embedded gateway knows its methods without being asked for a charge.
    """
    return _no_test_method(payment_method) if settings().payments == "ledger" else None


def _no_test_method(payment_method: str) -> str | None:
    if not payment_method.startswith(_TEST_METHODS) or _TEST_METHOD.fullmatch(payment_method):
        return None
    return (
        f"the embedded gateway has no test method {payment_method}; give pm_ledger_fail_N, N a "
        "whole number up to 9999, pm_ledger_timeout_before or pm_ledger_timeout_after"
    )


def _entries(session: Session, keys: Sequence[str]) -> dict[str, LedgerEntry]:
    found = session.exec(
        select(LedgerEntry)
        .where(col(LedgerEntry.key).in_(keys))
        .order_by(LedgerEntry.key)
        .with_for_update()
    )
    return {entry.key: entry for entry in found}


def _refund_key(key: str) -> str:
    return f"{key}:refund"


def _failures(payment_method: str) -> int:
    """Return how many calls in a row the payment method makes fail."""
    if payment_method == "pm_ledger_timeout_before":
        return 1
    prefix = "pm_ledger_fail_"
    return int(payment_method.removeprefix(prefix)) if payment_method.startswith(prefix) else 0


def _first_status(payment_method: str) -> str:
    if payment_method == DECLINED_METHOD:
        return "declined"
    return "unknown" if _failures(payment_method) else "captured"


def _entry(charge: Charge, kind: str, status: str) -> dict[str, object]:
    return {
        "key": charge.key if kind == "capture" else _refund_key(charge.key),
        "order_id": charge.order_id,
        "kind": kind,
        "status": status,
        "amount_cents": charge.amount_cents,
        "currency": charge.currency,
        "payment_method": charge.payment_method,
    }


def _answer(key: str, status: str) -> Answer:
    match status:
        case "captured" | "refunded" | "void":
            return Answer(status=status, reference=key)
        case "declined":
            return Answer(status="declined", reference=key, reason="the card was declined")
        case "unknown":
            return Answer(status="unknown", reference=key, reason="the gateway did not answer")
        case _:
            raise AssertionError(f"ledger entry {key} has status {status}")


def _of_another_gateway(charge: Charge) -> Answer:
    """Refuse the refund of a charge that is not in the ledger: nothing would be given back."""
    return Answer(
        status="refused",
        reference=charge.key,
        reason=f"{charge.reference} was charged by another gateway than the ledger; set "
        "STORE_PAYMENTS to that gateway until it is refunded",
    )


def _require_same(entry: LedgerEntry, charge: Charge) -> None:
    same = (entry.amount_cents, entry.currency, entry.payment_method) == (
        charge.amount_cents,
        charge.currency,
        charge.payment_method,
    )
    if not same:
        raise KeyReused(
            f"key {charge.key} was used for {entry.amount_cents} {entry.currency} by "
            f"{entry.payment_method}; it cannot be used for another charge"
        )


def movements_query() -> str | None:
    """Return, for the audit, a query of the gateway's own records; none if they are elsewhere.

    One row for each entry: the key of its charge, the order, whether it is a capture or a refund,
    the amount and its currency, and whether money was moved by it.
    """
    if settings().payments != "ledger":
        return None
    return """
        SELECT CASE WHEN kind = 'refund' THEN REPLACE(key, ':' || 'refund', '') ELSE key END
            AS charge,
          order_id, kind, amount_cents, currency,
          (kind = 'capture' AND status = 'captured')
            OR (kind = 'refund' AND status = 'refunded') AS moved
        FROM ledger"""


def payment_gateway() -> PaymentGateway:
    """Return the gateway that the settings choose."""
    match settings().payments:
        case "ledger":
            return Ledger()
        case "stripe":
            from store.stripe_gateway import StripeGateway

            return StripeGateway.from_settings()
