"""The orders themselves: taking one in, owning it, and telling what became of it."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import update
from sqlmodel import Session, col, select

from store.database import insert_missing, reading, transaction
from store.errors import OrderError, OrderIdConflict, OrderInProgress, UserNotFound, recorded_error
from store.messages import CheckoutOrder, Receipt, ReceiptLine, money
from store.models import (
    ENDED,
    GIVING_BACK,
    Book,
    Courier,
    Customer,
    Order,
    OrderLine,
    OrderStatus,
    SagaRecord,
    utc_now,
)
from store.saga import held_by, lock_orders
from store.settings import settings


@dataclass(frozen=True, slots=True)
class AcceptedOrder:
    """An order that is recorded; ``owned`` says whether the asking run carries it out."""

    id: str
    owned: bool


def accept_order(order: CheckoutOrder, run_id: str) -> AcceptedOrder:
    """Record the order for the flow run ``run_id``, or find it recorded already.

    The run that brings a new order owns it. The run that owns an order finds its own again when
    it starts over. A run that brings the orderId of another run's order joins it while it goes
    on, or begins a new attempt, with new keys, when it was rejected or compensated.

    Raises:
        UserNotFound: no customer has the order's userId.
        OrderIdConflict: the orderId is taken by an order with other content.
        OrderInProgress: the order is being compensated; to be tried again after that.
    """
    order_id = order.order_id or run_id
    with transaction() as session:
        customer = session.get(Customer, order.user_id)
        if customer is None:
            raise UserNotFound(f"userId: no customer has the id {order.user_id}")
        new = _new_order(order, order_id, run_id, customer)
        if insert_missing(session, Order, [new]):
            session.add_all(
                OrderLine(order_id=order_id, book_id=line.book_id, quantity=line.quantity)
                for line in order.lines()
            )
            return AcceptedOrder(id=order_id, owned=True)

        found = session.get_one(Order, order_id, with_for_update=True)
        if found.request != order.content():
            raise OrderIdConflict(
                f"orderId: {order_id} belongs to an order with other content; "
                "use another orderId for another order"
            )
        if found.status in GIVING_BACK:
            raise OrderInProgress(
                f"order {order_id} is {found.status}; try again when it is compensated"
            )
        if found.status in (OrderStatus.REJECTED, OrderStatus.COMPENSATED):
            _begin_attempt(session, new, found.attempt + 1)
        elif found.status == OrderStatus.SUBMITTED:
            found.status, found.run_id = OrderStatus.STARTED, run_id
        elif found.run_id != run_id:
            return AcceptedOrder(id=order_id, owned=False)
        return AcceptedOrder(id=order_id, owned=True)


def _new_order(
    order: CheckoutOrder, order_id: str, run_id: str, customer: Customer
) -> dict[str, Any]:
    """Return the row of an order's first attempt."""
    return {
        "id": order_id,
        "attempt": 1,
        "status": OrderStatus.STARTED,
        "run_id": run_id,
        "user_id": order.user_id,
        "redeem": order.redeem,
        "payment_method": order.payment_method or customer.payment_method,
        "currency": settings().currency,
        "request": order.content(),
        "copies": sum(line.quantity for line in order.lines()),
        "points_redeemed": 0,
        "continuations": 0,
        "created_at": utc_now(),
        "updated_at": utc_now(),
    }


def _begin_attempt(session: Session, new: dict[str, Any], attempt: int) -> None:
    """Put an ended order back to its beginning, under a new attempt."""
    cleared = dict.fromkeys(
        ["total_cents", "due_cents", "courier_id", "wait_until", "error", "message"]
    )
    session.execute(
        update(Order)
        .where(col(Order.id) == new["id"])
        .values({**new, **cleared, "attempt": attempt, "created_at": Order.created_at})
    )


def orders_of_run(run_id: str) -> list[str]:
    """Return the ids of the orders that the flow run owns and that have not ended."""
    with reading() as session:
        return list(
            session.exec(
                select(Order.id)
                .where(col(Order.run_id) == run_id, col(Order.status).not_in(ENDED))
                .order_by(Order.id)
            )
        )


def read_order(order_id: str) -> Order:
    """Return the order as it stands."""
    with reading() as session:
        order = session.get_one(Order, order_id)
        session.expunge(order)
        return order


def outcome_error(order: Order) -> OrderError:
    """Return the error that ended, or is ending, the order."""
    return recorded_error(order.error, order.message)


def describe(order: Order, refused: str) -> str:
    """Return, in Markdown, what a person is asked to decide about a waiting order.

    ``refused`` says what was wrong with the last answer, if there was one.
    """
    with reading() as session:
        lines = session.exec(
            select(OrderLine, Book.title)
            .join(Book, col(Book.id) == col(OrderLine.book_id))
            .where(OrderLine.order_id == order.id)
            .order_by(OrderLine.book_id)
        ).all()
        couriers = session.exec(select(Courier).order_by(Courier.id)).all()
        rows = [
            f"| {title} | {line.quantity} | {money(line.unit_price_cents or 0, order.currency)} |"
            for line, title in lines
        ]
        free = [
            f"`{courier.id}` ({courier.capacity_copies - courier.assigned_copies} copies free)"
            for courier in couriers
        ]
    return "\n".join(
        [
            *([f"**Your answer was refused.** {refused}", ""] if refused else []),
            f"Order `{order.id}` waits for a courier until {order.wait_until:%Y-%m-%d %H:%M} UTC.",
            "",
            "| title | copies | price each |",
            "|---|---:|---:|",
            *rows,
            "",
            f"Total {money(order.total_cents or 0, order.currency)}, paid with "
            f"{order.points_redeemed} points and {money(order.due_cents or 0, order.currency)}.",
            "",
            f"Couriers: {', '.join(free) or 'none'}.",
            "",
            "Is there a courier who takes the order? If not, it is refunded and undone.",
        ]
    )


def explain(order_id: str, error: OrderError) -> OrderError:
    """Return ``error`` with one more sentence: what its compensation gives back."""
    with transaction() as session:
        order = lock_orders(session, [order_id])[order_id]
        held = held_by(session, order)
    parts = []
    if "bill_customer" in held:
        amount = money(held["bill_customer"]["amount_cents"], order.currency)
        in_doubt = "reference" not in held["bill_customer"]
        parts.append(f"{amount}, if it was captured" if in_doubt else amount)
    if "check_inventory" in held:
        parts.append(f"{sum(held['check_inventory']['copies'].values())} copies")
    if "redeem_points" in held:
        parts.append(f"{held['redeem_points']['points']} points")
    given_back = f"Given back: {', '.join(parts)}." if parts else "Nothing was taken."
    return type(error)(f"{str(error).rstrip('.')}. {given_back}")


def receipt(order_id: str) -> Receipt:
    """Return the receipt of a dispatched order.

    Raises:
        OrderError: the order ended otherwise; its reason.
        OrderInProgress: the order has not ended.
    """
    with reading() as session:
        order = session.get_one(Order, order_id)
        if order.error is not None:
            raise outcome_error(order)
        if order.status != OrderStatus.DISPATCHED:
            raise OrderInProgress(f"order {order_id} is {order.status}")
        lines = session.exec(
            select(OrderLine, Book.title)
            .join(Book, col(Book.id) == col(OrderLine.book_id))
            .where(OrderLine.order_id == order_id)
            .order_by(OrderLine.book_id)
        ).all()
        dispatched = session.get_one(SagaRecord, (order_id, order.attempt, "dispatch_order"))
        return Receipt(
            order_id=order.id,
            attempt=order.attempt,
            status=order.status,
            lines=[
                ReceiptLine(
                    book_id=line.book_id,
                    title=title,
                    quantity=line.quantity,
                    unit_price_cents=line.unit_price_cents or 0,
                )
                for line, title in lines
            ],
            currency=order.currency,
            total_cents=order.total_cents or 0,
            points_redeemed=order.points_redeemed,
            billed_cents=order.due_cents or 0,
            courier=order.courier_id or "",
            dispatched_at=dispatched.at,
        )
