"""The tasks ``bill_customer`` and ``refund_customer``.

The gateway is outside the database, so a charge has an intent in the saga log before it and an
idempotency key of its own for each attempt of the order.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlmodel import Session, col, select

from store.bulk import among, read_rows
from store.errors import (
    BillingError,
    CustomerGone,
    PaymentGatewayUnavailable,
    PaymentRefused,
    first_of,
)
from store.messages import money
from store.models import Customer
from store.partners import payment_gateway
from store.payments import Charge
from store.saga import backward, forward
from store.saga_log import SagaOrder, StepRecord, records
from tasks.retries import is_last_try, retried_task
from tasks.undo import Taken


@retried_task
def bill_customer(order_ids: list[str]) -> list[str]:
    """Capture the amount that each order still owes.

    An order paid wholly in points is not billed.

    Undone by :func:`refund_customer`. A gateway that does not answer is asked again with the same
    key; what stays unknown after the last try, or is refused, fails the order, and its refund
    finds it out. A customer who is gone is not charged.

    Returns:
        The ids of the orders that go on.

    Raises:
        CustomerGone: no order goes on; the first one's customer was deleted.
        BillingError: no order goes on; the first one's charge was declined or stayed unknown.
        PaymentRefused: no order goes on; the gateway does not take the call for the first one.
        PaymentGatewayUnavailable: some charges have no answer yet; the task is tried again.
        KeyReused: a key was used for another charge; the intents stay for the refund.
    """
    with forward("bill_customer", order_ids) as intents:
        to_bill = [order for order in intents.todo if order.due_cents]
        customers = _present_customers(intents.session, to_bill)
        intended = [order for order in to_bill if order.id in intents.intents]
        before = {r.order_id: r for r in records(intents.session, intended, ["bill_customer"])}
        charges = {}
        for order in to_bill:
            intent = before.get(order.id)
            if intent is None and order.user_id not in customers:
                intents.fail(order, CustomerGone(f"customer {order.user_id} is gone"))
                continue
            charges[order.id] = _charge(order, intent)
            intents.intend(order, {"amount_cents": order.due_cents})
    answers = payment_gateway().capture(list(charges.values())) if charges else {}
    unanswered = []
    with forward("bill_customer", order_ids) as step:
        for order in step.todo:
            if not order.due_cents:
                step.skip(order)
                continue
            if charges.get(order.id) != _charge(order, None):
                # Given back and begun again meanwhile: the answer is about the old attempt.
                continue
            answer = answers[charges[order.id].key]
            match answer.status:
                case "captured":
                    taken = {"amount_cents": order.due_cents, "reference": answer.reference}
                    step.done(order, taken)
                case "declined" | "void":
                    step.void(order, {"amount_cents": order.due_cents, "reason": answer.reason})
                    step.fail(order, BillingError(f"payment {answer.status}: {answer.reason}"))
                case "refused":
                    # An earlier call may have captured, so the intent stays for the refund.
                    step.fail(order, PaymentRefused(answer.reason))
                case "unknown" if is_last_try():
                    unknown = f"the payment's outcome is unknown: {answer.reason}"
                    step.fail(order, BillingError(unknown))
                case _:
                    unanswered.append(order.id)
    if unanswered:
        raise PaymentGatewayUnavailable(f"no answer for {first_of(unanswered)}")
    return step.going_on()


@retried_task
def refund_customer(order_ids: list[str]) -> list[str]:
    """Refund the captured charges of failed orders, as bill_customer's undo.

    An order whose charge is in doubt is refunded as well: the gateway gives back what it took,
    if it took anything, and takes nothing afterwards. A refund that was refused for good is asked
    for again under the next key, which is recorded before it is used; one without an answer keeps
    its key.

    Returns:
        The ids of the orders whose charge was answered now.

    Raises:
        PaymentGatewayUnavailable: some refunds have no answer yet; the task is tried again.
        PaymentRefused: the gateway does not take some refunds; a person has to see to it.
    """
    with backward("bill_customer", order_ids) as owed:
        charges = [_charge(order, record) for order, record in owed.todo]
    answers = payment_gateway().refund(charges) if charges else {}
    asked = {charge.key: charge.refund_number for charge in charges}
    answered, unanswered = [], []
    refused: dict[str, list[str]] = defaultdict(list)
    with backward("bill_customer", order_ids) as undo:
        for order, record in undo.todo:
            charge = _charge(order, record)
            # None for an order whose present attempt failed after the gateway was asked.
            answer = answers.get(charge.key)
            if answer is None or answer.status == "unknown":
                unanswered.append(order.id)
                continue
            if answer.status == "refused":
                refused[answer.reason].append(order.id)
                if answer.key_is_spent and charge.refund_number == asked[charge.key]:
                    undo.note(record, {**record.result, "refund": charge.refund_number + 1})
                continue
            refunded = charge.amount_cents if answer.status == "refunded" else 0
            undo.undone(record, {"amount_cents": refunded, "reference": answer.reference})
            answered.append(order.id)
    if unanswered:
        raise PaymentGatewayUnavailable(f"no answer for the refund of {first_of(unanswered)}")
    if refused:
        reasons = (f"refund of {first_of(ids)}: {why}" for why, ids in refused.items())
        refusal = PaymentRefused(first_of(reasons, "; "))
        refusal.reasons = {id_: why for why, ids in refused.items() for id_ in ids}
        raise refusal
    return answered


def charge_in_words(taken: Taken) -> str:
    """Return the captured amount as text, empty for none."""
    cents = taken.result.get("amount_cents", 0)
    if not cents:
        return ""
    amount = money(cents, taken.currency)
    return f"{amount}, if it was captured" if taken.in_doubt else amount


def settle_charge(_session: Session, taken: Mapping[str, Any], _put_back: bool) -> dict[str, Any]:
    """Return the amount that a person refunded outside of the gateway.

    There is nothing to book.
    """
    return {"amount_cents": taken["amount_cents"]}


def _present_customers(session: Session, orders: Sequence[SagaOrder]) -> set[str]:
    ids = {order.user_id for order in orders}
    found = read_rows(session, select(Customer.id).where(among(col(Customer.id), ids)))
    return {id_ for (id_,) in found}


def _charge(order: SagaOrder, record: StepRecord | None) -> Charge:
    """Return the charge of an order's present attempt, always the same.

    ``record`` is what the saga log has of it already: an intent, or the captured charge.
    """
    return Charge(
        key=f"{order.id}:{order.attempt}",
        order_id=order.id,
        amount_cents=order.due_cents or 0,
        currency=order.currency,
        payment_method=order.payment_method,
        reference=record.result.get("reference") if record else None,
        intended_at=record.at if record else None,
        refund_number=record.result.get("refund", 1) if record else 1,
    )
