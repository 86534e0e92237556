"""Every error of the checkout, in one tree.

``OrderError`` is terminal: the order cannot go on, a retry of the step cannot help, and it is
recorded as the order's outcome. ``RefusedOrder`` is raised before anything was recorded.
``RetryableError`` says that the same call may succeed later.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import ClassVar

NAMED_AT_MOST = 10
"""A group may have thousands of orders; who reads its error looks into a few of them."""
TEXT_AT_MOST = 500
"""Characters of an error that are kept; longer than any text of the store itself."""


class StoreError(Exception):
    """Base of every error that the store raises on purpose."""


class RefusedOrder(StoreError):
    """The order was not accepted; nothing was recorded and nothing changed."""


class UserNotFound(RefusedOrder):
    """No customer has the order's userId."""


class OrderIdConflict(RefusedOrder):
    """The orderId is taken by an order with other content."""


class OrderInProgress(RefusedOrder):
    """The order is still in the hands of another run, or is being compensated."""


class UnknownTestMethod(RefusedOrder):
    """The embedded gateway has no such test method; nothing was recorded."""


class UnreadableSource(StoreError):
    """A file of orders cannot be read at all; nothing of it was recorded."""


class DatabaseVersionUnknown(StoreError):
    """The database is at a version from which this code has no migration; nothing was changed.

    Args:
        found: What was found.
        remedy: What to do.
    """

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found, remedy)
        self.found = found
        self.remedy = remedy

    def __str__(self) -> str:
        """Return both in one line."""
        return f"{self.found}; {self.remedy}. Nothing was changed"


class DispatcherNotDeployed(StoreError):
    """There is no deployment of the dispatcher to switch."""


class WorkPoolNotFound(StoreError):
    """Prefect has no such work pool; nothing was closed or opened."""


class BatchFailed(StoreError):
    """More orders of a batch failed than it tolerates; those that are done stay done."""


class BatchNotFound(StoreError):
    """No batch was carried out in a run of this id."""


class OrderNotFound(StoreError):
    """No order has this id."""


class CourierHasOrder(StoreError):
    """A courier has accepted the order: it only goes forward, and cannot be cancelled any more."""


class NothingToCancel(StoreError):
    """The order has ended, or is being given back already; a cancellation would change nothing."""


class OrderNotFailed(StoreError):
    """The order is neither rejected nor compensated, so it begins no new attempt."""


class NothingToUndo(StoreError):
    """There is no such undo: it is done, it was never needed, or it has not failed."""


class DeploymentNotFound(StoreError):
    """Prefect has no deployment of the name that a setting gives."""


class NoPrefectServer(StoreError):
    """No Prefect server is named, or the one that is named does not answer."""


class InvalidDecision(StoreError):
    """A courier decision makes no sense; the order waits on for another one."""


class OrderError(StoreError):
    """An order cannot go on; recorded as the order's outcome, never retried by a task."""

    by_name: ClassVar[dict[str, type["OrderError"]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        OrderError.by_name[cls.__name__] = cls


class BookNotFound(OrderError):
    """No book has the bookId (the original's checkInventory)."""


class BookOutOfStock(OrderError):
    """Fewer copies are left than the order asks for (the original's checkInventory)."""


class BookHasNoPrice(OrderError):
    """The book has no price, so it cannot be sold."""


class RedeemPointsError(OrderError):
    """The customer's points cannot be redeemed (the original's RedeemPoints)."""


class CustomerGone(OrderError):
    """The customer was deleted after the order was accepted; nobody is charged."""


class BillingError(OrderError):
    """The payment was declined, or its outcome stayed unknown (the original's BillCustomer)."""


class PaymentRefused(OrderError):
    """The gateway refused the call itself, not the card: its key, an id or the amount is wrong."""

    reasons: Mapping[str, str] | None = None
    """Why each order's refund was refused, where those of a group were."""


class NoCourierAvailable(OrderError):
    """No courier takes the order (the original's sqsWorker)."""


class CourierWaitExpired(OrderError):
    """No answer came in the time that an order waits for a courier."""


class OrderCancelled(OrderError):
    """The order, or its run, was cancelled by a person before a courier had accepted."""


class CheckoutFailed(OrderError):
    """The run failed for a reason that is none of the order's own, such as a defect."""


class RetryableError(StoreError):
    """The same call may succeed later."""


class PaymentGatewayUnavailable(RetryableError):
    """The gateway did not answer for some charges, so their outcome is unknown for now."""


class QueueUnavailable(RetryableError):
    """The order queue did not answer, or did not take everything; it names what it did not take."""

    unsent: Collection[str] | None = None
    """The messages that a send left out; None where it sent nothing."""


class TopicUnavailable(RetryableError):
    """The topic did not answer, or did not take everything; it names what it did not take."""

    unpublished: Collection[str] | None = None
    """The keys of the notices that were left out; None where none was published."""


class SourceUnavailable(RetryableError):
    """The place of a file of orders did not answer."""


class ClusterUnavailable(RetryableError):
    """The Dask cluster did not answer, or lost a chunk; its orders are found in the database."""


class QueueRefused(StoreError):
    """The order queue refused a call and would refuse it again: its address, rights or content."""

    unsent: Collection[str] | None = None
    """The messages that a send left out; None where it sent nothing."""


class TopicRefused(StoreError):
    """The topic refused a call and would refuse it again: its address, rights or content."""

    unpublished: Collection[str] | None = None
    """The keys of the notices that were left out; None where none was published."""


class KeyReused(StoreError):
    """An idempotency key came again with another amount, currency or payment method."""


class RunTakenAway(StoreError):
    """The run was ended, or started again, from outside; its order is fine and goes on."""


class CompensationFailed(StoreError):
    """An undo failed for good; the order is ``compensation_failed`` until it is done."""


class BooksDoNotBalance(StoreError):
    """The audit has found what must not be; it says how much, and the first of it."""


def recorded_error(name: str | None, message: str | None) -> OrderError:
    """Return the error that an order's record holds as ``name`` and ``message``.

    A name that is no error's of an order, or none any more, gives ``CheckoutFailed``.
    """
    return OrderError.by_name.get(name or "", CheckoutFailed)(message or "")


def first_of(texts: Iterable[str], separator: str = ", ") -> str:
    """Return the first few of the texts, each once, and how many more there are."""
    different = list(dict.fromkeys(texts))
    named = separator.join(different[:NAMED_AT_MOST])
    return " ".join([named, *and_more(len(different) - NAMED_AT_MOST)])


def and_more(left_out: int) -> list[str]:
    """Return “and 3 more” for three, an empty list for zero."""
    return [f"and {left_out} more"] if left_out > 0 else []


def one_line(text: object) -> str:
    """Return an error's text as one line, for records, states, logs and notices."""
    return " ".join(str(text).split())


def shortened(text: str) -> str:
    """Return an error's text as it is kept: in one line, its beginning if it is long."""
    text = one_line(text)
    return text if len(text) <= TEXT_AT_MOST else f"{text[: TEXT_AT_MOST - 1]}…"
