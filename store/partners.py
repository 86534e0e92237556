"""Which queue, topic and payment gateway the settings choose.

An adapter is imported where it is chosen: boto3 and stripe take a good part of a second.
"""

from typing import TYPE_CHECKING

from pydantic import SecretStr

from store.embedded_gateway import MOVEMENTS, EmbeddedGateway, wrong_test_method
from store.notifications import Topic
from store.payments import PaymentGateway
from store.queue import OrderQueue
from store.settings import settings
from store.table_queue import TableQueue
from store.table_topic import TableTopic

if TYPE_CHECKING:
    from store.stripe_gateway import StripeGateway


def order_queue() -> OrderQueue:
    """Return the order queue that the settings choose."""
    chosen = settings()
    match chosen.queue:
        case "table":
            return TableQueue()
        case "sqs":
            from store.sqs import SqsQueue

            return SqsQueue(
                queue_url=chosen.queue_url or "",
                dead_letter_url=chosen.dead_letter_url or "",
                visibility_timeout_seconds=chosen.visibility_timeout_seconds,
                endpoint_url=chosen.aws_endpoint_url,
            )


def topic() -> Topic:
    """Return the topic that the settings choose."""
    chosen = settings()
    match chosen.topic:
        case "table":
            return TableTopic()
        case "sns":
            from store.sns import SnsTopic

            return SnsTopic(chosen.topic_arn or "", chosen.aws_endpoint_url)


def payment_gateway() -> PaymentGateway:
    """Return the payment gateway that the settings choose."""
    match settings().payments:
        case "embedded":
            return EmbeddedGateway()
        case "stripe":
            return stripe_gateway()


def stripe_gateway() -> "StripeGateway":
    """Return Stripe with the settings' key."""
    from store.stripe_gateway import StripeGateway

    chosen = settings()
    return StripeGateway(chosen.stripe_secret_key or SecretStr(""), chosen.stripe_api_url)


def wrong_method(payment_method: str) -> str | None:
    """Return what is wrong with a payment method, and the remedy; None if nothing is known to be.

    Only the embedded gateway knows its methods without being asked for a charge.
    """
    return wrong_test_method(payment_method) if settings().payments == "embedded" else None


def movements_query() -> str | None:
    """Return the audit's query of the gateway's own records; None if they are elsewhere.

    One row for each capture and each refund: the key of its charge, the order, the kind, the
    amount, its currency, and whether money was moved by it.
    """
    return MOVEMENTS if settings().payments == "embedded" else None
