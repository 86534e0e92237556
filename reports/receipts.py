"""The receipt that a run returns, or the explained error it raises."""

from collections.abc import Sequence

from orders.lookup import outcome_error
from reports.history import lines_of
from store.database import reading, transaction
from store.errors import OrderError, OrderInProgress, one_line
from store.messages import Receipt, ReceiptLine
from store.models import Order, OrderStatus, SagaRecord, StepState
from store.saga import taken_by
from store.saga_log import StepRecord, lock_order
from tasks.steps import UNDOS
from tasks.undo import Taken


def explain(order_id: str, error: OrderError) -> OrderError:
    """Return ``error`` with the order's finished and open undos in its message.

    Args:
        order_id: The order; it must be recorded.
        error: Why it ends; what is returned is of the same type.
    """
    with transaction() as session:
        order = lock_order(session, order_id)
        taken = taken_by(session, order)
    taken.sort(key=lambda record: UNDOS[record.step].place)
    undone = [record for record in taken if record.undo_result is not None]
    held = [record for record in taken if record.undo_result is None]
    parts = [
        *([f"Given back: {given}."] if (given := _amounts(undone, order.currency)) else []),
        *([f"To be given back: {left}."] if (left := _amounts(held, order.currency)) else []),
    ]
    why = one_line(error).rstrip(".")
    return type(error)(" ".join([f"{why}.", *(parts or ["Nothing was taken."])]))


def _amounts(records: Sequence[StepRecord], currency: str) -> str:
    """Return the amounts of saga records in words, empty for nothing."""
    words = (
        UNDOS[record.step].in_words(
            Taken(
                record.result if record.undo_result is None else record.undo_result,
                currency,
                in_doubt=record.state == StepState.INTENDED,
            )
        )
        for record in records
    )
    return ", ".join(filter(None, words))


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
        lines = lines_of(session, order_id)
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
