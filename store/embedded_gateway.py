"""The embedded payment gateway, a stand-in for a provider.

It is a table of the store's database.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from sqlmodel import Session, col, select

from store.bulk import insert_missing
from store.database import transaction
from store.errors import KeyReused
from store.models import LedgerEntry
from store.payments import DECLINED_METHOD, Answer, Charge, refund_key

MOVEMENTS = """
    SELECT CASE WHEN kind = 'refund' THEN REPLACE(key, ':' || 'refund', '') ELSE key END
        AS charge,
      order_id, kind, amount_cents, currency,
      (kind = 'capture' AND status = 'captured')
        OR (kind = 'refund' AND status = 'refunded') AS moved
    FROM ledger"""
"""The gateway's own records, for the audit: one row for each capture and each refund, with the key
of its charge and whether money was moved by it."""

_TEST_METHODS = "pm_ledger_"
_TEST_METHOD = re.compile(r"pm_ledger_(fail_[0-9]{1,4}|timeout_before|timeout_after)")


class EmbeddedGateway:
    """The embedded gateway, one table entry for each charge and refund.

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
            if (problem := wrong_test_method(charge.payment_method)) is not None
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
                    answers[charge.key] = _answer(refund_key(charge.key), "refunded")
                else:
                    answers[charge.key] = _answer(charge.key, "void")
            insert_missing(session, LedgerEntry, refunds)
        return answers


def wrong_test_method(payment_method: str) -> str | None:
    """Return the fault of a test payment method and its remedy.

    None is returned for a good one.
    """
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
        "key": charge.key if kind == "capture" else refund_key(charge.key),
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
            raise AssertionError(f"the gateway's entry {key} has status {status}")


def _of_another_gateway(charge: Charge) -> Answer:
    """Refuse the refund of a charge that this gateway has not made."""
    return Answer(
        status="refused",
        reference=charge.key,
        reason=f"{charge.reference} was charged by another gateway than the embedded one; set "
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
