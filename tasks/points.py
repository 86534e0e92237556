"""The tasks ``redeem_points`` and ``restore_points``.

One point is worth one unit of the currency.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from sqlmodel import Session, col, select

from store.bulk import among, increase, read_rows
from store.errors import NothingToUndo, RedeemPointsError
from store.models import Customer
from store.saga import backward, forward
from store.settings import settings
from tasks.retries import retried_task
from tasks.undo import Taken

CENTS_PER_POINT = 100


@retried_task
def redeem_points(order_ids: list[str]) -> list[str]:
    """Redeem the available points of each order that requests it.

    At most the order's total is redeemed, in whole points; the rest stays with the customer. What
    is left to pay is nothing or large enough to be charged, where the total is. Undone by
    :func:`restore_points`.

    Returns:
        The ids of the orders that go on, those that redeem nothing among them.

    Raises:
        RedeemPointsError: no order goes on; the customer is gone.
    """
    with forward("redeem_points", order_ids) as step:
        customers = _lock_customers(step.session, {o.user_id for o in step.todo if o.redeem})
        left = dict(customers)
        for order in step.todo:
            if not order.redeem:
                step.skip(order)
            elif order.user_id not in left:
                step.fail(order, RedeemPointsError(f"customer {order.user_id} is gone"))
            else:
                total_cents = order.total_cents or 0
                points = _redeemable(left[order.user_id], total_cents)
                left[order.user_id] -= points
                step.done(
                    order,
                    {"points": points, "user_id": order.user_id},
                    points_redeemed=points,
                    due_cents=total_cents - points * CENTS_PER_POINT,
                )
        increase(
            step.session, Customer, "points", {id_: left[id_] - customers[id_] for id_ in left}
        )
    return step.going_on()


def _redeemable(points: int, total_cents: int) -> int:
    """Return how many of a customer's points an order redeems."""
    redeemed = min(points, total_cents // CENTS_PER_POINT)
    due_cents = total_cents - redeemed * CENTS_PER_POINT
    lacking_cents = settings().smallest_charge_cents - due_cents
    if due_cents and lacking_cents > 0:
        redeemed -= math.ceil(lacking_cents / CENTS_PER_POINT)
    return max(redeemed, 0)


@retried_task
def restore_points(order_ids: list[str]) -> list[str]:
    """Restore the redeemed points of failed orders, as redeem_points' undo.

    A customer who is gone is not created again: the record states that the customer was gone.

    Returns:
        The ids of the orders whose points were given back now.
    """
    with backward("redeem_points", order_ids) as undo:
        customers = _lock_customers(undo.session, {r.result["user_id"] for _, r in undo.todo})
        returned: dict[str, int] = {}
        for _, record in undo.todo:
            user_id, points = record.result["user_id"], record.result["points"]
            if user_id in customers:
                returned[user_id] = returned.get(user_id, 0) + points
                undo.undone(record, {"points": points})
            else:
                undo.undone(record, {"points": 0, "reason": f"customer {user_id} is gone"})
        increase(undo.session, Customer, "points", returned)
        return [order.id for order, _ in undo.todo]


def points_in_words(taken: Taken) -> str:
    """Return the number of redeemed points as text, empty for none."""
    points = taken.result.get("points", 0)
    return f"{points} points" if points else ""


def settle_points(session: Session, taken: Mapping[str, Any], put_back: bool) -> dict[str, Any]:
    """Book points settled by a person as restored or written off.

    Points made good otherwise are taken out of all that were ever granted, so that they still
    add up.

    Raises:
        NothingToUndo: the customer to whom they are to be put back was deleted.
    """
    user_id, points = taken["user_id"], taken["points"]
    is_there = user_id in _lock_customers(session, [user_id])
    if put_back:
        if not is_there:
            raise NothingToUndo(f"customer {user_id} is gone; settle it without --put-back")
        increase(session, Customer, "points", {user_id: points})
        return {"points": points}
    increase(session, Customer, "initial_points", {user_id: -points})
    return {"points": 0, "written_off": points}


def _lock_customers(session: Session, user_ids: Iterable[str]) -> dict[str, int]:
    """Lock the customers and return each one's points."""
    customers = read_rows(
        session,
        select(Customer.id, Customer.points)
        .where(among(col(Customer.id), user_ids))
        .order_by(Customer.id)
        .with_for_update(),
    )
    return dict(customers)
