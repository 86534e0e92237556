"""Record failed undos as settled by a person.

The record says who made it good and why (docs/adr/0010-settled-by-hand.md).
"""

from orders.lookup import read_order
from store.database import reading
from store.errors import NothingToUndo
from store.models import UNDOING, Order, SagaRecord, StepState
from store.saga import backward
from tasks.steps import UNDOS


def settle(order_id: str, step: str, *, by: str, reason: str, put_back: bool = False) -> None:
    """Record a failed undo as done by a person.

    The gateway is not asked again.

    Args:
        order_id: The order.
        step: The step whose undo failed.
        by: Who has seen to it.
        reason: What was done, or why nothing can be.
        put_back: Whether what was taken is where it came from again, which is then booked;
            otherwise it is written off. Money was given back in either case.

    Raises:
        OrderNotFound: no order has the id.
        NothingToUndo: the undo is done, was never needed, or has not failed, or the book or
            customer is gone to which it is to be put back; nothing changed.
    """
    read_order(order_id)
    if step not in UNDOS:
        raise NothingToUndo(f"{step} is not a step with an undo; those are {', '.join(UNDOS)}")
    with backward(step, [order_id]) as undo:
        failed = [record for _, record in undo.todo if record.undo_error is not None]
        if failed:
            (record,) = failed
            undo.undone(
                record,
                {
                    **UNDOS[step].settle(undo.session, record.result, put_back),
                    "settled_by": by,
                    "reason": reason,
                    "failed_with": record.undo_error,
                },
            )
            return
    raise NothingToUndo(why_not_open(order_id, step))


def why_not_open(order_id: str, step: str) -> str:
    """Return why an undo is not among the failed ones."""
    with reading() as session:
        order = session.get_one(Order, order_id)
        record = session.get(SagaRecord, (order_id, order.attempt, step))
        if record is None or record.state == StepState.VOID:
            return f"order {order_id}, which is {order.status}, has not taken anything in {step}"
        if record.undone_at is not None:
            by = (record.undo_result or {}).get("settled_by")
            how = f"settled by {by}" if by else "given back by itself"
            return (
                f"{step} of order {order_id} was {how} at {record.undone_at:%Y-%m-%d %H:%M:%S} "
                "UTC; it is not to be given back once more"
            )
        if order.status not in UNDOING:
            return (
                f"order {order_id} is {order.status}, so nothing of it is to be given back; "
                f"`checkout cancel {order_id}` ends it, before a courier has accepted"
            )
    return (
        f"giving back {step} of order {order_id} has not failed; it is under way. "
        "`checkout compensations` shows what has failed"
    )
