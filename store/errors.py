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

    left_out: Collection[str] | None = None
    """What a call of the queue or the topic did not take of a group; None where it took nothing."""


class RefusedOrder(StoreError):
    """The order was not accepted, and nothing was recorded or changed."""


class UserNotFound(RefusedOrder):
    """No customer has the order's userId.

    A failed order whose customer was deleted begins no new attempt.
    """


class OrderIdConflict(RefusedOrder):
    """The orderId is taken by an order with other content."""


class OrderInProgress(RefusedOrder):
    """Another run has the order, or it is being compensated."""


class OrderArchived(RefusedOrder):
    """The order ended long ago and is in an archive.

    No command changes it. `checkout show` names its file.
    """


class UnknownTestMethod(RefusedOrder):
    """The embedded gateway has no such test method.

    Names that begin with `pm_ledger_` are reserved for its test methods.
    """


class UnreadableSource(StoreError):
    """A file of orders cannot be read at all.

    Its path, format, encoding or header is wrong, or every line is. Nothing was recorded.
    """


class DatabaseVersionUnknown(StoreError):
    """This code has no migration for the database's version.

    Nothing was changed.

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


class NoDeadLetter(StoreError):
    """The order queue has no dead letter of this id."""


class WorkPoolNotFound(StoreError):
    """Prefect has no such work pool, and no pool was changed."""


class ArchiveRefused(StoreError):
    """Orders cannot be archived, or an archive cannot be read.

    The limit is too recent, the place is wrong, or another process is archiving.
    """


class ArchiveDamaged(StoreError):
    """An archive's file differs from what was archived.

    Its orders were not deleted.
    """


class BatchFailed(StoreError):
    """More orders of a batch failed than it tolerates.

    Completed orders stay completed.
    """


class BatchNotFound(StoreError):
    """No batch ran under this id."""


class OrderNotFound(StoreError):
    """No order has this id."""


class CourierHasOrder(StoreError):
    """A courier has accepted the order, so it cannot be cancelled."""


class NothingToCancel(StoreError):
    """The order has ended or is being compensated already.

    A cancellation would change nothing.
    """


class OrderNotFailed(StoreError):
    """The order is not rejected or compensated, so no attempt begins."""


class NothingToUndo(StoreError):
    """The undo is done, was never needed, or has not failed.

    Or what is to be put back has no place: its book or customer was deleted.
    """


class DeploymentNotFound(StoreError):
    """Prefect has no deployment of a flow that is needed.

    A setting names another one, or prefect.yaml is not applied. Nothing was changed.
    """


class NoPrefectServer(StoreError):
    """No Prefect server is configured, or it does not answer.

    Its address is `PREFECT_API_URL`. Nothing was changed.
    """


class InvalidDecision(StoreError):
    """A courier decision is impossible, and the order still waits.

    It names no courier, an unknown one, or one without room.
    """


class OrderError(StoreError):
    """An order cannot go on.

    It is recorded as the order's outcome, and no task retries it.
    """

    by_name: ClassVar[dict[str, type["OrderError"]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        OrderError.by_name[cls.__name__] = cls


class BookNotFound(OrderError):
    """No book has the bookId."""


class BookOutOfStock(OrderError):
    """Fewer copies are left than the order asks for."""


class BookHasNoPrice(OrderError):
    """The book has no price, so it is not sold."""


class RedeemPointsError(OrderError):
    """The customer's points cannot be redeemed."""


class CustomerGone(OrderError):
    """The customer was deleted after the order's acceptance and is not charged."""


class BillingError(OrderError):
    """The payment was declined, or its outcome stayed unknown.

    If it may have been captured, it is refunded.
    """


class PaymentRefused(OrderError):
    """The gateway refused the call itself, not the card.

    Its key, an id or the amount is wrong; the message names the remedy.
    """

    reasons: Mapping[str, str] | None = None
    """Why each order's refund was refused, where those of a group were."""


class NoCourierAvailable(OrderError):
    """No courier takes the order.

    A person answered so, or the order has more copies than any courier takes. The latter ends it
    before a charge.
    """


class CourierWaitExpired(OrderError):
    """No answer came within `STORE_COURIER_TIMEOUT_SECONDS`."""


class OrderCancelled(OrderError):
    """A person cancelled the order or its run before the pivot."""


class CheckoutFailed(OrderError):
    """The run failed, not the order.

    A defect ended it, or `STORE_MAX_CONTINUATIONS` continuations did not finish it.
    """


class RetryableError(StoreError):
    """The same call may succeed later."""


class PaymentGatewayUnavailable(RetryableError):
    """The gateway did not answer, so the outcome of charges is unknown.

    The store retries with the same key.
    """


class QueueUnavailable(RetryableError):
    """The order queue did not answer or accepted only a part.

    The message names what was not accepted.
    """


class TopicUnavailable(RetryableError):
    """The topic did not answer or accepted only a part.

    The message names what was not accepted.
    """


class SourceUnavailable(RetryableError):
    """The place of a file of orders did not answer."""


class ArchiveUnavailable(RetryableError):
    """The place of an archive did not answer."""


class ClusterUnavailable(RetryableError):
    """The Dask cluster did not answer, or lost a chunk.

    A chunk counts as lost when its orders have not moved for ten minutes. The run's continuation
    finds them in the database.
    """


class QueueRefused(StoreError):
    """The order queue refused a call and would refuse its retry.

    The call's address, rights or content is wrong.
    """


class TopicRefused(StoreError):
    """The topic refused a call and would refuse its retry.

    The call's address, rights or content is wrong.
    """


class KeyReused(StoreError):
    """An idempotency key came again with another amount, currency or card.

    Either the store has a defect or somebody changed the order by hand.
    """


class RunTakenAway(StoreError):
    """Prefect ended or restarted the run, and its order continues in another."""


class CompensationFailed(StoreError):
    """An undo failed for good, so the order is `compensation_failed`.

    It keeps that status until the undo is done.
    """


class BooksDoNotBalance(StoreError):
    """The audit has findings.

    The message counts them and lists the first.
    """


def recorded_error(name: str | None, message: str | None) -> OrderError:
    """Return the error that an order's record holds as ``name`` and ``message``.

    A name that is no error's of an order, or none any more, gives ``CheckoutFailed``.
    """
    return OrderError.by_name.get(name or "", CheckoutFailed)(message or "")


def first_of(texts: Iterable[str], separator: str = ", ") -> str:
    """Return the first distinct texts and the number of the others."""
    different = list(dict.fromkeys(texts))
    named = separator.join(different[:NAMED_AT_MOST])
    return " ".join([named, *and_more(len(different) - NAMED_AT_MOST)])


def and_more(left_out: int) -> list[str]:
    """Return “and 3 more” for three, an empty list for zero."""
    return [f"and {left_out} more"] if left_out > 0 else []


def one_line(text: object) -> str:
    """Return an error's text as one line.

    It goes into records, states, logs and notices. A part of it may be a customer's, whose control
    characters would steer the terminal of who reads it.
    """
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def shortened(text: str) -> str:
    """Return the beginning of an error's text as one line."""
    text = one_line(text)
    return text if len(text) <= TEXT_AT_MOST else f"{text[: TEXT_AT_MOST - 1]}…"
