"""Acceptance of orders and the attempts that begin again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, exists, insert, literal
from sqlalchemy import select as select_columns
from sqlmodel import Session, col, select

from store.archived_orders import require_not_archived
from store.bulk import among, insert_missing, update_rows
from store.database import reading, transaction
from store.errors import (
    BookNotFound,
    OrderIdConflict,
    OrderInProgress,
    UnknownTestMethod,
    UserNotFound,
)
from store.messages import CheckoutOrder
from store.models import (
    FAILED,
    UNDOING,
    Attempt,
    Book,
    Customer,
    Order,
    OrderLine,
    OrderStatus,
    UtcDateTime,
    utc_now,
)
from store.partners import wrong_method
from store.settings import settings
from tasks.retries import retried


@dataclass(frozen=True, slots=True)
class AcceptedOrder:
    """An order that is recorded.

    ``owned`` says whether the asking run carries it out, ``started_over`` whether some of it may
    be done already, ``failed`` whether the attempt that was found has ended, or is ending,
    without a dispatch.
    """

    id: str
    owned: bool
    started_over: bool
    failed: bool = False


def accept_order(order: CheckoutOrder, run_id: str, wait: str = "pause") -> AcceptedOrder:
    """Record the order for ``run_id``, or return the one already recorded.

    The run that brings a new order owns it. The run that owns an order finds its own again when
    it starts over. A run that brings the orderId of another run's order joins it. Whether a failed
    order is tried again is for the caller to know (see `begin_attempt`).

    Args:
        order: The order as it came in.
        run_id: The flow run that asks.
        wait: How that run waits for a courier, ``pause`` or ``suspend``.

    Returns:
        The order as it was found, or begun now.

    Raises:
        UserNotFound: it is new, and no customer has its userId.
        UnknownTestMethod: it is new, and the embedded gateway does not have its payment method.
        OrderIdConflict: the orderId is taken by an order with other content.
        OrderArchived: the orderId is that of an archived order.
    """
    order_id = order.order_id or run_id
    with transaction() as session:
        # A known order goes on although its customer is gone.
        known = session.scalar(select(Order.id).where(Order.id == order_id))
        if known is None:
            method = _method_of(session, order)
            new = new_order(order, order_id, method, OrderStatus.STARTED, run_id)
            new["wait"] = wait
            if insert_missing(session, Order, [new]):
                # Asked afterwards: the insert may have waited for the order's archival.
                require_not_archived(session, order_id)
                session.add_all(
                    OrderLine(order_id=order_id, book_id=line.book_id, quantity=line.quantity)
                    for line in order.lines()
                )
                return AcceptedOrder(id=order_id, owned=True, started_over=False)

        found = _same_order(session, order, order_id)
        if found.status == OrderStatus.SUBMITTED:
            found.status, found.run_id, found.wait = OrderStatus.STARTED, run_id, wait
            # Prices are in the shop's present currency, which may be another one by now.
            found.currency, found.updated_at = settings().currency, utc_now()
        return _as_found(found, run_id)


def begin_attempt(
    order: CheckoutOrder, run_id: str, asked_by: str, wait: str = "pause"
) -> AcceptedOrder:
    """Begin a new attempt of a failed order, owned by the run.

    The attempt has new idempotency keys.

    Args:
        order: The order as it came in; it is recorded already.
        run_id: The flow run that asks.
        asked_by: What asked for it, an id that is another one each time somebody asks. The same
            one begins one attempt, however many processes bring it, and however late.
        wait: How the run waits for a courier, ``pause`` or ``suspend``.

    Returns:
        The order as it was found, or begun again now.

    Raises:
        OrderIdConflict: the orderId is that of an order with other content.
        OrderInProgress: the order is being compensated; to be tried again after that.
        OrderArchived: the order was archived.
        UserNotFound: the customer is gone; the order stays as it is.
        UnknownTestMethod: the embedded gateway does not have the payment method that counts now.
    """
    order_id = order.order_id or run_id
    with transaction() as session:
        found = _same_order(session, order, order_id)
        if session.get(Attempt, (order_id, asked_by)) is None:
            if found.status in UNDOING:
                raise OrderInProgress(
                    f"order {order_id} is {found.status}; try again when it is compensated"
                )
            if found.status in FAILED:
                _begin_again(session, {order_id: _method_of(session, order)}, run_id, asked_by)
                found.wait = wait
                return AcceptedOrder(id=order_id, owned=True, started_over=False)
        return _as_found(found, run_id)


@retried
def claim_failed_orders(run_id: str, failed_of: str, limit: int) -> list[str]:
    """Claim another run's failed orders and begin their new attempts.

    Each is begun once for the run that asks: an order that fails again stays failed. One whose
    customer is gone stays as it is (see :func:`failed_orders_without_customer`).

    Args:
        run_id: The flow run that asks.
        failed_of: The flow run whose rejected and compensated orders are taken.
        limit: How many at most.

    Returns:
        The ids of the orders; none when no more of that run's orders have failed.
    """
    with transaction() as session:
        failed = session.execute(
            select_columns(col(Order.id), col(Order.request), col(Customer.payment_method))
            .join(Customer, col(Customer.id) == col(Order.user_id))
            .where(
                *_failed_in(failed_of),
                ~exists().where(
                    col(Attempt.order_id) == col(Order.id), col(Attempt.asked_by) == run_id
                ),
            )
            .order_by(col(Order.id))
            .limit(limit)
            .with_for_update(skip_locked=True, of=Order)
        ).all()
        # A customer may have another card by now.
        methods = {
            id_: request["paymentMethod"] or customers_method
            for id_, request, customers_method in failed
        }
        _begin_again(session, methods, run_id, asked_by=run_id)
        return list(methods)


@retried
def failed_orders_without_customer(run_id: str) -> list[str]:
    """Return the run's failed orders whose customer was deleted, by id."""
    with reading() as session:
        found = session.scalars(
            select(Order.id)
            .where(*_failed_in(run_id), ~exists().where(col(Customer.id) == col(Order.user_id)))
            .order_by(col(Order.id))
        )
        return list(found)


def _failed_in(run_id: str) -> tuple[ColumnElement[bool], ...]:
    return (col(Order.run_id) == run_id, col(Order.status).in_(FAILED))


def _begin_again(session: Session, methods: Mapping[str, str], run_id: str, asked_by: str) -> None:
    """Reset ended orders to a new attempt and record the request.

    How the last attempt ended is kept with the request, since the order's row is that of the new
    one. The rows must be locked.

    Args:
        session: The transaction.
        methods: By the order's id, the payment method of its new attempt.
        run_id: The flow run that owns the attempts.
        asked_by: What asked for them.
    """
    now = utc_now()
    requests: dict[Any, Any] = {
        Attempt.order_id: Order.id,
        Attempt.attempt: col(Order.attempt) + 1,
        Attempt.previous_status: Order.status,
        Attempt.previous_error: Order.error,
        Attempt.previous_currency: Order.currency,
        Attempt.previous_ended_at: Order.updated_at,
        Attempt.asked_by: literal(asked_by),
        Attempt.began_at: literal(now, UtcDateTime),
    }
    session.execute(
        insert(Attempt).from_select(
            list(requests), select_columns(*requests.values()).where(among(col(Order.id), methods))
        )
    )
    update_rows(
        session,
        Order,
        [{"id": id_, "payment_method": method} for id_, method in methods.items()],
        attempt=col(Order.attempt) + 1,
        status=OrderStatus.STARTED,
        run_id=run_id,
        currency=settings().currency,
        continuations=0,
        points_redeemed=0,
        total_cents=None,
        due_cents=None,
        courier_id=None,
        wait_until=None,
        error=None,
        message=None,
        updated_at=now,
    )


def known_order(order: CheckoutOrder) -> Order | None:
    """Return the recorded order of this orderId, else None.

    Nothing is changed.

    Raises:
        OrderIdConflict: the orderId is taken by an order with other content.
        OrderArchived: the orderId is that of an archived order.
        UserNotFound: it is new, and no customer has its userId.
        UnknownTestMethod: it is new, and the embedded gateway does not have its payment method.
        BookNotFound: it is new, and no book has one of its bookIds.
    """
    with reading() as session:
        found = session.get(Order, order.order_id) if order.order_id else None
        if found is not None:
            require_same(order.content(), found.request, found.id)
            return found
        if order.order_id:
            require_not_archived(session, order.order_id)
        _method_of(session, order)
        for line in order.lines():
            if session.get(Book, line.book_id) is None:
                raise BookNotFound(f"bookId: no book has the id {line.book_id}")
    return None


def _same_order(session: Session, order: CheckoutOrder, order_id: str) -> Order:
    """Lock and return the order of this id and content."""
    found = session.get(Order, order_id, with_for_update=True)
    if found is None:
        require_not_archived(session, order_id)
        raise LookupError(f"order {order_id} is gone")
    require_same(order.content(), found.request, order_id)
    return found


def require_same(content: dict[str, Any], known: dict[str, Any], order_id: str) -> None:
    """Raise OrderIdConflict unless the order has the recorded content.

    Raises:
        OrderIdConflict: the two contents differ.
    """
    if content != known:
        raise OrderIdConflict(
            f"orderId: {order_id} belongs to an order with other content; "
            "use another orderId for another order"
        )


def _as_found(found: Order, run_id: str) -> AcceptedOrder:
    return AcceptedOrder(
        id=found.id,
        owned=found.run_id == run_id,
        started_over=True,
        failed=found.status in (*UNDOING, *FAILED),
    )


def new_order(
    order: CheckoutOrder,
    order_id: str,
    customers_method: str,
    status: OrderStatus,
    run_id: str | None = None,
) -> dict[str, Any]:
    """Return the row of an order's first attempt.

    Args:
        order: The order as it came in.
        order_id: Its id; the order need not have one itself.
        customers_method: The customer's payment method, for an order that names none.
        status: Where it stands.
        run_id: The flow run that owns it, if one does.
    """
    now = utc_now()
    return {
        "id": order_id,
        "attempt": 1,
        "status": status,
        "run_id": run_id,
        "user_id": order.user_id,
        "redeem": order.redeem,
        "payment_method": order.payment_method or customers_method,
        "currency": settings().currency,
        "request": order.content(),
        "copies": sum(line.quantity for line in order.lines()),
        "points_redeemed": 0,
        "continuations": 0,
        "announced_attempt": 0,
        "reminded_attempt": 0,
        "created_at": now,
        "updated_at": now,
    }


def _method_of(session: Session, order: CheckoutOrder) -> str:
    """Return the payment method of an order whose customer must exist."""
    customer = session.get(Customer, order.user_id)
    if customer is None:
        raise UserNotFound(f"userId: no customer has the id {order.user_id}")
    customers_method = customer.payment_method
    refused = refused_method(order, customers_method)
    if refused is not None:
        raise refused
    return order.payment_method or customers_method


def refused_method(order: CheckoutOrder, customers_method: str) -> UnknownTestMethod | None:
    """Return the refusal of an order's payment method, else None."""
    problem = wrong_method(order.payment_method or customers_method)
    if problem is None:
        return None
    if order.payment_method is None:
        problem = f"that of customer {order.user_id}, since the order names none: {problem}"
    return UnknownTestMethod(f"paymentMethod: {problem}")
