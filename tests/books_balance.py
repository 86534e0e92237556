"""The invariants of the shop, checked over the whole database.

Written apart from the code that it checks: it reads the tables alone and uses none of the saga's
own functions.
"""

from collections import Counter, defaultdict

from sqlmodel import Session, col, select

from store.database import reading
from store.models import (
    Book,
    Courier,
    Customer,
    Decision,
    LedgerEntry,
    Order,
    OrderLine,
    SagaRecord,
)

HOLDS_NOTHING = {"submitted", "rejected", "compensated"}
FORWARD_STEPS = {"check_inventory", "calculate_total", "prepare_order", "dispatch_order"}


def imbalances() -> list[str]:
    """Return everything in the database that is off, one sentence each; nothing if all is well."""
    with reading() as session:
        orders = {order.id: order for order in session.exec(select(Order))}
        records = {(r.order_id, r.attempt, r.step): r for r in session.exec(select(SagaRecord))}
        held = {key: r for key, r in records.items() if r.state in ("intended", "done")}
        return [
            *_of_stock(session, orders, held),
            *_of_points(session, orders, held),
            *_of_money(session, orders, records),
            *_of_couriers(session, orders),
            *_of_endings(orders, held),
        ]


def assert_books_balance() -> None:
    """Assert I1 (stock), I2 (points), I3 (money), I4 (endings) and the couriers' capacity."""
    wrong = imbalances()
    assert not wrong, "\n".join(wrong)


Records = dict[tuple[str, int, str], SagaRecord]
Orders = dict[str, Order]


def _of_stock(session: Session, orders: Orders, held: Records) -> list[str]:
    wrong = []
    ordered: dict[str, dict[str, int]] = defaultdict(dict)
    for line in session.exec(select(OrderLine)):
        ordered[line.order_id][line.book_id] = line.quantity
    out: Counter[str] = Counter()
    for (order_id, _, step), record in held.items():
        if step == "check_inventory":
            out.update(record.result["copies"])
            if record.result["copies"] != ordered[order_id]:
                wrong.append(
                    f"order {order_id} holds {record.result['copies']}, not {ordered[order_id]}"
                )
    wrong += [
        f"order {order.id} says {order.copies} copies, its lines do not"
        for order in orders.values()
        if order.copies != sum(ordered[order.id].values())
    ]
    wrong += [
        f"book {book.id}: {book.initial_quantity} at first, {book.quantity} now, "
        f"{out[book.id]} held or sold"
        for book in session.exec(select(Book))
        if book.initial_quantity != book.quantity + out[book.id]
    ]
    return wrong


def _of_points(session: Session, orders: Orders, held: Records) -> list[str]:
    wrong = []
    spent: Counter[str] = Counter()
    for (order_id, attempt, step), record in held.items():
        if step == "redeem_points":
            spent[record.result["user_id"]] += record.result["points"]
            order = orders[order_id]
            if order.attempt == attempt and order.points_redeemed != record.result["points"]:
                wrong.append(
                    f"order {order_id} redeemed {record.result['points']} points, "
                    f"its row says {order.points_redeemed}"
                )
    wrong += [
        f"customer {customer.id}: {customer.initial_points} points at first, "
        f"{customer.points} now, {spent[customer.id]} held or spent"
        for customer in session.exec(select(Customer))
        if customer.initial_points != customer.points + spent[customer.id]
    ]
    return wrong


def _of_money(session: Session, orders: Orders, records: Records) -> list[str]:
    wrong = []
    captured: Counter[str] = Counter()
    refunded: Counter[str] = Counter()
    attempts = {f"{order_id}:{attempt}" for order_id, attempt, _ in records}
    for entry in session.exec(select(LedgerEntry)):
        if entry.kind == "refund":
            refunded[entry.key.removesuffix(":refund")] += entry.amount_cents
        elif entry.status == "captured":
            captured[entry.key] += entry.amount_cents
        if entry.order_id in orders and entry.key.removesuffix(":refund") not in attempts:
            wrong.append(f"ledger entry {entry.key} belongs to no attempt")
    for key, cents in refunded.items():
        if cents != captured[key]:
            wrong.append(f"charge {key}: {captured[key]} captured, {cents} refunded")
    wrong += [
        f"charge {order_id}:{attempt} was given back by hand, and refunded as well"
        for (order_id, attempt, step), record in records.items()
        if step == "bill_customer" and _by_hand(record) and refunded[f"{order_id}:{attempt}"]
    ]
    for order in orders.values():
        for attempt in range(1, order.attempt + 1):
            key = f"{order.id}:{attempt}"
            kept = captured[key] - refunded[key]
            if kept not in _rightful(order, attempt, records):
                wrong.append(
                    f"charge {key}: {kept} kept of order {order.id}, which is {order.status} "
                    f"in attempt {order.attempt} and owes {order.due_cents}"
                )
    return wrong


def _rightful(order: Order, attempt: int, records: Records) -> set[int]:
    """Return the amounts that the shop may hold for an attempt of an order."""
    record = records.get((order.id, attempt, "bill_customer"))
    if record is not None and _by_hand(record):
        # The customer has it back from somewhere else; whether it was captured may be in doubt.
        settled = {record.result["amount_cents"]}
        return settled if "reference" in record.result else settled | {0}
    if attempt != order.attempt or order.status in HOLDS_NOTHING or record is None:
        return {0}
    match record.state:
        case "undone" | "void":
            return {0}
        case "done":
            return {order.due_cents or 0}
        case _:
            return {0, order.due_cents or 0}


def _by_hand(record: SagaRecord) -> bool:
    """Say whether a person has recorded that the step's effect was given back outside the shop."""
    return "settled_by" in (record.undo_result or {})


def _of_couriers(session: Session, orders: Orders) -> list[str]:
    assigned: Counter[str] = Counter()
    for order in orders.values():
        if order.status == "dispatching":
            assigned[order.courier_id or "nobody"] += order.copies
    wrong = [
        f"courier {courier.id} has {courier.assigned_copies} copies assigned, "
        f"the orders say {assigned[courier.id]}"
        for courier in session.exec(select(Courier))
        if courier.assigned_copies != assigned[courier.id]
    ]
    decided: dict[tuple[str, int], str | None] = {}
    for decision in session.exec(select(Decision).where(col(Decision.accepted))):
        if (decision.order_id, decision.attempt) in decided:
            wrong.append(f"order {decision.order_id} was decided twice")
        decided[decision.order_id, decision.attempt] = decision.courier_id
    wrong += [
        f"order {order.id} goes with a courier who was not decided on"
        for order in orders.values()
        if order.status in ("dispatching", "dispatched")
        and (order.courier_id is None or decided.get((order.id, order.attempt)) != order.courier_id)
    ]
    return wrong


def _of_endings(orders: Orders, held: Records) -> list[str]:
    wrong = []
    for order_id, attempt, step in held:
        order = orders[order_id]
        compensable = step in ("bill_customer", "check_inventory", "redeem_points")
        if compensable and attempt != order.attempt:
            wrong.append(f"order {order_id} still holds {step} of its old attempt {attempt}")
        if compensable and attempt == order.attempt and order.status in HOLDS_NOTHING:
            wrong.append(f"order {order_id} is {order.status} and still holds {step}")
    for order in orders.values():
        if order.status == "dispatched":
            needed = FORWARD_STEPS | ({"bill_customer"} if order.due_cents else set())
            done = {
                step
                for (id_, attempt, step), record in held.items()
                if (id_, attempt) == (order.id, order.attempt)
                # A person may answer for an order whose message the queue has not taken.
                and (record.state == "done" or step == "prepare_order")
            }
            if not needed <= done:
                wrong.append(f"order {order.id} is dispatched without {needed - done}")
        if (order.error is not None) != (
            order.status in ("rejected", "compensated", "compensating", "compensation_failed")
        ):
            wrong.append(f"order {order.id} is {order.status} with error {order.error}")
    return wrong
