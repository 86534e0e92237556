"""The refusals of Stripe and their remedies."""

import stripe

CORRECT_ORDER = "correct the order's payment method, amount or currency"
BY_ANOTHER_WAY = (
    "settle it (`checkout compensations settle`), so that it is not tried again, and give the "
    "money back by another way"
)
TOP_UP = "top up the balance of the Stripe account; the refund is tried again by itself"
LOOK_AT_REFUND = f"see it in Stripe's dashboard; {BY_ANOTHER_WAY}"
ANSWER_DISPUTE = (
    "the customer's bank takes the money back: look at the dispute in Stripe's dashboard; where "
    "the customer has the money, settle it (`checkout compensations settle`)"
)
OTHER_ACCOUNT = (
    "set STORE_STRIPE_SECRET_KEY to a key of the account, and of the mode, test or live, that has "
    "made the charge"
)
REFUND_REMEDIES = {
    "balance_insufficient": TOP_UP,
    "insufficient_funds": TOP_UP,
    "charge_disputed": ANSWER_DISPUTE,
    "refund_disputed_payment": ANSWER_DISPUTE,
    "charge_for_pending_refund_disputed": ANSWER_DISPUTE,
    "charge_not_refundable": BY_ANOTHER_WAY,
    "lost_or_stolen_card": BY_ANOTHER_WAY,
    "expired_or_canceled_card": BY_ANOTHER_WAY,
    "declined": BY_ANOTHER_WAY,
    "merchant_request": "somebody canceled the refund in Stripe; it is tried again by itself",
    "resource_missing": OTHER_ACCOUNT,
    "livemode_mismatch": OTHER_ACCOUNT,
    "testmode_charges_only": "activate the Stripe account for live charges",
}
"""What a person does about a refund that Stripe refuses, by the error's code or, for a refund that
failed later, its failure_reason (https://docs.stripe.com/error-codes, and the Refund object)."""
CHARGE_REMEDIES = {
    "amount_too_small": CORRECT_ORDER,
    "amount_too_large": CORRECT_ORDER,
    "resource_missing": "the Stripe account has no such payment method: " + CORRECT_ORDER,
    "payment_method_unexpected_state": "take a payment method that can be charged",
    "livemode_mismatch": (
        "the payment method is of the other mode, test or live: take one of the mode that "
        "STORE_STRIPE_SECRET_KEY is of"
    ),
    "testmode_charges_only": "activate the Stripe account for live charges",
}
"""What a person does about a charge that Stripe refuses, by the error's code."""


def charge_refused(error: stripe.StripeError) -> str | None:
    """Return why Stripe refused a charge, with the remedy.

    None is returned for an error after which the charge may have been made.
    """
    match error:
        case stripe.AuthenticationError() | stripe.PermissionError():
            return (
                f"{key_refused(error)}: set STORE_STRIPE_SECRET_KEY to a key of the account that "
                "may write PaymentIntents and Refunds and read PaymentMethods"
            )
        case stripe.InvalidRequestError() | stripe.CardError():
            remedy = CHARGE_REMEDIES.get(error.code or "", CORRECT_ORDER)
            return f"{_not_taken(error)}; {remedy}"
    return None


def refund_refused(error: stripe.StripeError) -> str:
    """Return why Stripe refused a refund and what to do."""
    return f"{_not_taken(error)}; {REFUND_REMEDIES.get(error.code or '', LOOK_AT_REFUND)}"


def refund_failed(refund: stripe.Refund) -> str:
    """Return why an accepted refund failed later and what to do."""
    why = refund.failure_reason or "no reason is given"
    remedy = REFUND_REMEDIES.get(why, BY_ANOTHER_WAY)
    return f"the refund {refund.id} has {refund.status} ({why}); {remedy}"


def _not_taken(error: stripe.StripeError) -> str:
    code = error.code or error.http_status
    return f"Stripe does not take the call ({code}): {error.user_message}"


def key_refused(error: stripe.StripeError) -> str:
    """Return the reason of a refused key, without Stripe's text.

    That text quotes the key's end.
    """
    return f"Stripe does not accept the key (HTTP {error.http_status})"
