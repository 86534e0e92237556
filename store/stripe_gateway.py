"""The payment gateway on Stripe, by PaymentIntents and Refunds.

Only what the settings choose imports this module, since it imports stripe. Cards only, charged
while the customer is away; the amounts are minor units, as everywhere in the store.

A charge is made under its idempotency key, so asking again gets the first answer. Stripe keeps a
key for 24 hours at least, so a charge is made within ``MADE_WITHIN`` of its intent or never. What
became of a charge in doubt is found out without making it: its key is taken by a PaymentIntent
that pays nothing. If Stripe lets us, the charge has not arrived and cannot any more; if not, it
has, and Stripe repeats its answer. An answer that Stripe cannot repeat, or of a key that it may
have forgotten, is looked for by the charge's name in the metadata.
"""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING

import stripe
from pydantic import SecretStr

from store.errors import KeyReused, PaymentGatewayUnavailable, PaymentRefused
from store.models import utc_now
from store.payments import Answer, Charge
from store.stripe_refusals import charge_refused, key_refused, refund_failed, refund_refused

if TYPE_CHECKING:
    from stripe.params import PaymentIntentCreateParams

logger = logging.getLogger("store.payments")

PARALLEL_CALLS = 16
"""A charge takes about a second. So many at once stay below the 25 calls a second that Stripe
takes in test mode, and far below the 100 of live mode."""
CONNECT_SECONDS = 5.0
READ_SECONDS = 20.0
"""Longer than an ordinary bank takes. One that takes longer is asked about again with its key; all
four tries of a task together stay below the time after which a run counts as stalled."""
GROUP_SECONDS = 60.0
"""A group's charges that were not asked for in this time are left to the task's next try, so that
a slow Stripe cannot hold a run for an hour."""
MADE_WITHIN = timedelta(hours=20)
"""Well below the 24 hours for which Stripe keeps a key at least."""
CHARGE = "store_charge"
"""The metadata's name for the charge's key."""
HOLDS_NOTHING = ("canceled", "requires_payment_method")
"""Statuses of a PaymentIntent that has captured nothing, and cannot without a new card."""
GAVE_NOTHING_BACK = ("failed", "canceled")
"""Statuses of a Refund that has ended, and the money is still with the shop."""


class _Unanswered(Exception):
    """Stripe has answered without the outcome of the charge."""


@dataclass(frozen=True)
class StripeGateway:
    """See :class:`store.payments.PaymentGateway`."""

    secret_key: SecretStr
    api_url: str | None = None

    def capture(self, charges: Sequence[Charge]) -> dict[str, Answer]:
        """See :meth:`PaymentGateway.capture`.

        Where it raises, other charges may be captured.
        """
        return _ask_for_each(charges, self._capture)

    def refund(self, charges: Sequence[Charge]) -> dict[str, Answer]:
        """See :meth:`PaymentGateway.refund`."""
        return _ask_for_each(charges, self._refund)

    def require_access(self) -> None:
        """Ask for something that changes nothing.

        Raises:
            PaymentRefused: Stripe does not accept the key.
            PaymentGatewayUnavailable: Stripe does not answer as it should.
        """
        try:
            self._stripe.payment_intents.list({"limit": 1})
        except (stripe.AuthenticationError, stripe.PermissionError) as error:
            raise PaymentRefused(key_refused(error)) from None
        except stripe.StripeError as error:
            raise PaymentGatewayUnavailable(
                f"{type(error).__name__}: {error.user_message or error}"
            ) from error

    @cached_property
    def _stripe(self) -> stripe.V1Services:
        return stripe.StripeClient(
            self.secret_key.get_secret_value(),
            # No retries of the library's own: a task's retries have the same key and longer
            # pauses, are seen in Prefect, and would be multiplied by these.
            max_network_retries=0,
            http_client=stripe.RequestsClient(timeout=(CONNECT_SECONDS, READ_SECONDS)),
            base_addresses={"api": self.api_url} if self.api_url else {},
        ).v1

    def _capture(self, charge: Charge) -> Answer:
        if _is_late(charge):
            found = self._find(charge)
            return _answer(charge, found) if found else _void(charge, "it was not made in time")
        card = self._card(charge)
        if card.type != "card":
            # Others take days to say whether they pay, or want the customer's browser.
            return _refused(charge, f"{charge.payment_method} is no card but a {card.type}")
        try:
            intent = self._make(charge, card)
        except stripe.CardError as error:
            return Answer("declined", charge.key, error.user_message or "the card was declined")
        except stripe.IdempotencyError as error:
            if self._forestall(charge):
                return _void(charge, "it was given back before it was made")
            raise KeyReused(
                f"key {charge.key} was used for another charge than {charge.amount_cents} "
                f"{charge.currency} by {charge.payment_method}"
            ) from error
        if intent.status == "succeeded":
            return _answer(charge, intent)
        # It may be an old answer, repeated. What waits for the card's holder cannot be had now.
        present = self._first_with_money([intent.id])
        if present is None:
            return Answer("declined", charge.key, f"the card's holder has to act: {intent.status}")
        return _answer(charge, present)

    def _refund(self, charge: Charge) -> Answer:
        intent_id = charge.reference
        if intent_id is None:
            found = self._find(charge)
            if found is None:
                return _void(charge, "nothing was captured")
            if found.status != "succeeded":
                raise _Unanswered(f"{found.id} is {found.status}")
            intent_id = found.id
        elif not intent_id.startswith("pi_"):
            return _refused(
                charge,
                f"{intent_id} was charged by another gateway than Stripe; set STORE_PAYMENTS to "
                "that gateway until it is refunded",
            )
        # Another key would be another refund, so what the earlier ones did is looked at first. Part
        # of it may have been given back by hand; Stripe then refunds the rest.
        if charge.refund_number > 1:
            earlier = self._refunds_of(intent_id)
            if sum(refund.amount for refund in earlier) >= charge.amount_cents:
                return Answer("refunded", earlier[0].id)
        try:
            refund = self._stripe.refunds.create(
                {"payment_intent": intent_id, "metadata": {CHARGE: charge.key}},
                {"idempotency_key": charge.refund_key},
            )
        except (stripe.InvalidRequestError, stripe.CardError) as error:
            if error.code != "charge_already_refunded":
                # Stripe repeats it to the key for a day.
                return replace(_refused(charge, refund_refused(error)), key_is_spent=True)
            # The key of the first refund is forgotten; the whole amount is given back only once.
            given = self._refunds_of(intent_id)
            if not given:
                raise _Unanswered(f"Stripe shows no refund of {intent_id} yet") from error
            return Answer("refunded", given[0].id)
        if refund.status in GAVE_NOTHING_BACK:
            return replace(_refused(charge, refund_failed(refund)), key_is_spent=True)
        return Answer("refunded", refund.id)

    def _refunds_of(self, intent_id: str) -> list[stripe.Refund]:
        """Return a PaymentIntent's refunds that have not failed, newest first.

        One that failed, as at a bank that has closed the account, leaves the money with the shop.
        """
        found = self._stripe.refunds.list({"payment_intent": intent_id, "limit": 100}).data
        return [refund for refund in found if refund.status not in GAVE_NOTHING_BACK]

    def _card(self, charge: Charge) -> stripe.PaymentMethod:
        """Return what Stripe knows of the charge's payment method."""
        return self._stripe.payment_methods.retrieve(charge.payment_method)

    def _make(self, charge: Charge, card: stripe.PaymentMethod) -> stripe.PaymentIntent:
        """Make the charge, or return Stripe's repeated answer."""
        params: PaymentIntentCreateParams = {
            **_named(charge),
            "payment_method": charge.payment_method,
            "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"},
            "confirm": True,
            "off_session": True,
        }
        # A card that is saved for a customer of Stripe's is charged in that customer's name only.
        if card.customer is not None:
            params["customer"] = str(getattr(card.customer, "id", card.customer))
        return self._stripe.payment_intents.create(params, {"idempotency_key": charge.key})

    def _forestall(self, charge: Charge) -> bool:
        """Take the charge's key with an unpaid PaymentIntent, unless already used.

        The charge cannot be made afterwards. False is returned if it was made already.
        """
        try:
            self._stripe.payment_intents.create(_named(charge), {"idempotency_key": charge.key})
        except stripe.IdempotencyError:
            return False
        except stripe.InvalidRequestError:
            # An amount or currency that is refused by itself is refused with a card as well.
            return True
        return True

    def _find(self, charge: Charge) -> stripe.PaymentIntent | None:
        """Return the PaymentIntent that captured, or may capture, the charge.

        None is returned if nothing was captured or ever will be.

        Raises:
            _Unanswered: that cannot be said yet.
        """
        # The search lags behind by minutes, the keys last for a day: together they miss nothing.
        if _is_late(charge) and (found := self._search(charge)):
            return self._first_with_money(found)
        if self._forestall(charge):
            return None
        try:
            card = self._card(charge)
        except stripe.InvalidRequestError as error:
            # Without the card's customer the call would not be the same one.
            return self._search_or_wait(charge, error)
        try:
            made = self._make(charge, card)
        except (stripe.CardError, stripe.InvalidRequestError):
            return None
        except (stripe.IdempotencyError, stripe.APIError) as error:
            return self._search_or_wait(charge, error)
        # What Stripe repeats is how it was then.
        return self._first_with_money([made.id])

    def _search_or_wait(
        self, charge: Charge, problem: stripe.StripeError
    ) -> stripe.PaymentIntent | None:
        """Look for a charge whose answer Stripe does not repeat."""
        found = self._search(charge)
        if not found:
            raise _Unanswered(f"Stripe does not repeat its answer: {problem.user_message}")
        return self._first_with_money(found)

    def _search(self, charge: Charge) -> list[str]:
        query = f"metadata['{CHARGE}']:'{charge.key}'"
        found = self._stripe.payment_intents.search({"query": query, "limit": 100})
        return [intent.id for intent in found.data]

    def _first_with_money(self, intent_ids: Sequence[str]) -> stripe.PaymentIntent | None:
        # What the search knows of them may be old.
        found = (self._with_money(self._stripe.payment_intents.retrieve(id_)) for id_ in intent_ids)
        return next((intent for intent in found if intent is not None), None)

    def _with_money(self, intent: stripe.PaymentIntent) -> stripe.PaymentIntent | None:
        """Return a PaymentIntent with money, or cancel a pending one.

        None is returned for one that holds nothing.
        """
        if intent.status in ("succeeded", "processing"):
            return intent
        if intent.status not in HOLDS_NOTHING:
            self._stripe.payment_intents.cancel(intent.id)
        return None


def _ask_for_each(charges: Sequence[Charge], call: Callable[[Charge], Answer]) -> dict[str, Answer]:
    """Call Stripe for each charge concurrently and return answers by key."""
    by_key: dict[str, Charge] = {}
    for charge in charges:
        if by_key.setdefault(charge.key, charge) != charge:
            raise KeyReused(f"key {charge.key} is used for two charges")
    deadline = time.monotonic() + GROUP_SECONDS

    def ask(charge: Charge) -> Answer:
        if time.monotonic() >= deadline:
            return _unknown(charge, "Stripe is slow, and it was not its turn yet")
        try:
            return call(charge)
        except _Unanswered as problem:
            return _unknown(charge, str(problem))
        except stripe.StripeError as error:
            reason = charge_refused(error)
            if reason is None:
                return _unknown(charge, f"{type(error).__name__}: {error.user_message}")
            return _refused(charge, reason)

    with ThreadPoolExecutor(PARALLEL_CALLS) as pool:
        return dict(zip(by_key, pool.map(ask, by_key.values()), strict=True))


def _named(charge: Charge) -> "PaymentIntentCreateParams":
    return {
        "amount": charge.amount_cents,
        "currency": charge.currency.lower(),
        "metadata": {CHARGE: charge.key, "order": charge.order_id},
    }


def _is_late(charge: Charge) -> bool:
    return charge.intended_at is not None and utc_now() - charge.intended_at > MADE_WITHIN


def _answer(charge: Charge, intent: stripe.PaymentIntent) -> Answer:
    if intent.status == "succeeded":
        return Answer("captured", intent.id)
    return _unknown(charge, f"{intent.id} is {intent.status}")


def _void(charge: Charge, reason: str) -> Answer:
    return Answer("void", charge.key, reason)


def _unknown(charge: Charge, reason: str) -> Answer:
    reason = " ".join(reason.split())
    logger.warning("charge %s: %s", charge.key, reason)
    return Answer("unknown", charge.key, reason)


def _refused(charge: Charge, reason: str) -> Answer:
    logger.error("charge %s: %s", charge.key, reason)
    return Answer("refused", charge.key, reason)
