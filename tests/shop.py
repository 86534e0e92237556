"""The shop as a test sees it: orders are placed and carried on, and everything is looked at."""

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from unittest.mock import patch
from uuid import uuid4

import pytest
from prefect import Task
from prefect.utilities.annotations import quote
from sqlalchemy import update
from sqlmodel import col, select

import tasks.inventory
import tasks.points
from flows import compensation
from orders.acceptance import accept_order, begin_attempt
from orders.lookup import statuses_of
from seed.catalogue import EDUARDO_SANTANA, TEN_X_RULE
from store.database import reading, transaction
from store.embedded_gateway import EmbeddedGateway
from store.errors import CheckoutFailed, CompensationFailed, OrderError
from store.messages import ASSIGNED, CheckoutOrder, CourierAnswer, OrderMessage
from store.models import (
    Book,
    Courier,
    Customer,
    Decision,
    LedgerEntry,
    Notification,
    Order,
    QueuedMessage,
    SagaRecord,
)
from store.saga import fail_orders
from tasks.couriers import find_couriers, record_answer
from tasks.steps import BEFORE_THE_WAIT
from tasks.steps import STEPS as TABLE

T = TypeVar("T")

LONG_AGO = datetime(2024, 5, 20, 12, tzinfo=UTC)
NOWHERE = "postgresql+psycopg://nobody@/store?host=/nowhere"
"""The URL of a database that is not there."""

STEPS: dict[str, Callable[[list[str]], list[str]]] = {
    **{step.name: step.task.fn for step in BEFORE_THE_WAIT},
    "find_couriers": lambda ids: find_couriers.fn(messages_about(ids)),
    **{step.name: step.task.fn for step in TABLE[len(BEFORE_THE_WAIT) :]},
}
"""The steps of an order, and the decision of its courier, in the order in which they happen."""


def an_order(
    order_id: str | None = None,
    quantity: int = 1,
    *,
    book_id: str = TEN_X_RULE,
    user_id: str = EDUARDO_SANTANA,
    items: dict[str, int] | None = None,
    redeem: bool = False,
    payment_method: str | None = None,
) -> CheckoutOrder:
    """An order as it comes in: one title, or a cart."""
    title: dict[str, Any] = {"book_id": book_id, "quantity": quantity}
    cart = {"items": [{"book_id": id_, "quantity": n} for id_, n in (items or {}).items()]}
    return CheckoutOrder.model_validate(
        {
            "user_id": user_id,
            "redeem": redeem,
            "order_id": order_id,
            "payment_method": payment_method,
            **(title if items is None else cart),
        }
    )


def place(order_id: str, quantity: int = 1, *, run_id: str | None = None, **options: Any) -> str:
    """Accept an order for a run of its own, as a person starts it; options as of `an_order`."""
    send(an_order(order_id, quantity, **options), run_id or str(uuid4()))
    return order_id


def send(order: CheckoutOrder, run_id: str) -> None:
    """Have a run accept an order, or begin a new attempt of a failed one."""
    if accept_order(order, run_id).failed:
        begin_attempt(order, run_id, asked_by=str(uuid4()))


def carry_on(order_ids: Sequence[str], up_to: str = "dispatch_order", after: str = "") -> None:
    """Run the orders' steps, those behind ``after``, up to and including ``up_to``."""
    names = list(STEPS)
    start = names.index(after) + 1 if after else 0
    for name in names[start : names.index(up_to) + 1]:
        STEPS[name](list(order_ids))


def placed(order_id: str, up_to: str, quantity: int = 1, **options: Any) -> str:
    """Place an order and carry it on up to a step."""
    place(order_id, quantity, **options)
    carry_on([order_id], up_to)
    return order_id


class Bare:
    """A task without Prefect: called, it just does its work."""

    def __init__(self, task: Task[..., Any]) -> None:
        self.name = task.name
        self.fn = task.fn

    def __call__(self, group: Any) -> Any:
        return self.fn(unquoted(group))


def unquoted(argument: Any) -> Any:
    """Return an argument as Prefect hands it to a task."""
    return argument.unwrap() if isinstance(argument, quote) else argument


def give_back(*order_ids: str) -> dict[str, str]:
    """Run the flow ``compensate`` on failed orders, without Prefect around it."""
    bare = {step: Bare(undo) for step, undo in compensation.UNDO.items()}
    with patch.object(compensation, "UNDO", bare), patch.object(compensation, "report_orders"):
        return compensation.compensate.fn(list(order_ids))


def end_run(order_id: str, error: OrderError | None = None) -> str:
    """End an order's run with an error, as the hook does; return how the order has ended."""
    if fail_orders([order_id], error or CheckoutFailed("the run failed")):
        give_back(order_id)
    return status(order_id)


UNDO_STANDS_ON: dict[str, tuple[Any, str]] = {
    "bill_customer": (EmbeddedGateway, "refund"),
    "check_inventory": (tasks.inventory, "increase"),
    "redeem_points": (tasks.points, "increase"),
}


@contextmanager
def undos_fail(*steps: str) -> Iterator[None]:
    """Inside, the undos of these steps fail for good."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError("it is broken")

    with pytest.MonkeyPatch.context() as patch:
        for step in steps:
            patch.setattr(*UNDO_STANDS_ON[step], broken)
        yield


def failed(order_id: str, *steps: str, run_id: str | None = None) -> str:
    """The original's example, whose run failed, and these of whose undos did so as well."""
    placed(order_id, "prepare_order", 50, redeem=True, run_id=run_id)
    with undos_fail(*steps), pytest.raises(CompensationFailed):
        end_run(order_id)
    return order_id


def messages_about(order_ids: Sequence[str]) -> list[OrderMessage]:
    """The messages that the orders' present attempts are sought a courier with."""
    with reading() as session:
        found = session.exec(select(Order).where(col(Order.id).in_(order_ids))).all()
        attempts = {order.id: (order.attempt, order.copies) for order in found}
    return [
        OrderMessage(order_id=id_, attempt=attempts[id_][0], copies=attempts[id_][1])
        for id_ in order_ids
    ]


def assign(order_id: str, courier: str = "city-vans") -> Decision:
    """A person's answer that a courier takes the order."""
    answer = CourierAnswer(outcome=ASSIGNED, courier=courier, answered_by="Ada")
    return record_answer(order_id, answer)


def add_book(book_id: str, quantity: int, price_cents: int | None = 10_00) -> str:
    with transaction() as session:
        session.add(
            Book(
                id=book_id,
                title=f"Book {book_id}",
                price_cents=price_cents,
                quantity=quantity,
                initial_quantity=quantity,
            )
        )
    return book_id


def add_customer(user_id: str, points: int = 0) -> str:
    with transaction() as session:
        session.add(
            Customer(
                id=user_id,
                name=user_id,
                points=points,
                initial_points=points,
                payment_method="pm_card_visa",
            )
        )
    return user_id


def remove_customer(user_id: str) -> None:
    with transaction() as session:
        session.delete(session.get_one(Customer, user_id))


def set_payment_method(user_id: str, method: str) -> None:
    with transaction() as session:
        session.get_one(Customer, user_id).payment_method = method


def set_price(book_id: str, price_cents: int | None) -> None:
    with transaction() as session:
        session.execute(update(Book).where(col(Book.id) == book_id).values(price_cents=price_cents))


def set_capacities(**capacities: int) -> None:
    """Have these couriers only; a name's underscores stand for dashes."""
    with transaction() as session:
        for courier in session.exec(select(Courier)):
            session.delete(courier)
        session.flush()
        session.add_all(
            Courier(id=name.replace("_", "-"), name=name, capacity_copies=copies)
            for name, copies in capacities.items()
        )


def set_order(order_id: str, **columns: Any) -> None:
    with transaction() as session:
        session.execute(update(Order).where(col(Order.id) == order_id).values(**columns))


def end_at(moment: datetime, *order_ids: str) -> None:
    """Have orders been accepted, and have ended, at a moment."""
    with transaction() as session:
        session.execute(
            update(Order)
            .where(col(Order.id).in_(order_ids))
            .values(created_at=moment, updated_at=moment)
        )


def order_row(order_id: str) -> Order:
    with reading() as session:
        order = session.get_one(Order, order_id)
        session.expunge(order)
        return order


def status(order_id: str) -> str:
    return order_row(order_id).status


def statuses(order_ids: Iterable[str]) -> set[str]:
    """The statuses that these orders have; each must be there."""
    ids = list(order_ids)
    found = statuses_of(ids)
    assert found.keys() == set(ids)
    return {*found.values()}


def stock(book_id: str = TEN_X_RULE) -> int:
    with reading() as session:
        return session.get_one(Book, book_id).quantity


def points(user_id: str = EDUARDO_SANTANA) -> int:
    with reading() as session:
        return session.get_one(Customer, user_id).points


def ledger(order_id: str | None = None) -> list[tuple[str, str, int]]:
    """The movements of money: key, status, cents."""
    with reading() as session:
        entries = session.exec(select(LedgerEntry).order_by(LedgerEntry.key)).all()
        return [
            (entry.key, entry.status, entry.amount_cents)
            for entry in entries
            if order_id in (None, entry.order_id)
        ]


def kept_cents() -> int:
    """The money that the shop has: captured and not refunded."""
    sign = {"captured": 1, "refunded": -1}
    return sum(sign.get(state, 0) * cents for _, state, cents in ledger())


def saga(order_id: str, attempt: int | None = None) -> dict[str, str]:
    """The state of each recorded step of the order's attempt, the present one if not said."""
    return {step: record.state for step, record in saga_records(order_id, attempt).items()}


def saga_records(order_id: str, attempt: int | None = None) -> dict[str, SagaRecord]:
    with reading() as session:
        order = session.get_one(Order, order_id)
        found = session.exec(
            select(SagaRecord)
            .where(
                SagaRecord.order_id == order_id, SagaRecord.attempt == (attempt or order.attempt)
            )
            .order_by(col(SagaRecord.at))
        ).all()
        session.expunge_all()
        return {record.step: record for record in found}


def assigned_copies() -> dict[str, int]:
    """The copies that each courier has accepted and not handed over, where there are any."""
    with reading() as session:
        return {c.id: c.assigned_copies for c in session.exec(select(Courier)) if c.assigned_copies}


def decisions(order_id: str) -> list[tuple[str, str | None, bool]]:
    """The answers to the order: outcome, courier, whether it counts."""
    with reading() as session:
        found = session.exec(
            select(Decision).where(Decision.order_id == order_id).order_by(col(Decision.id))
        )
        return [(d.outcome, d.courier_id, d.accepted) for d in found]


def queued() -> list[str]:
    """The orders about which a message is in the queue, dead letters left out."""
    with reading() as session:
        found = session.exec(
            select(QueuedMessage.body).where(col(QueuedMessage.dead_at).is_(None))
        ).all()
    return sorted(json.loads(body)["order_id"] for body in found)


def dead_letters() -> list[tuple[str, str | None]]:
    with reading() as session:
        found = session.exec(select(QueuedMessage).where(col(QueuedMessage.dead_at).is_not(None)))
        return [(message.body, message.dead_reason) for message in found]


def notices() -> list[str]:
    """The keys of the notifications that went out."""
    with reading() as session:
        return sorted(session.exec(select(Notification.key)))


@dataclass(frozen=True)
class Shop:
    """All that an order can take, or set going."""

    stock: dict[str, int]
    points: dict[str, int]
    kept_cents: int
    assigned_copies: dict[str, int]
    queued: list[str]
    notices: list[str]


def shop() -> Shop:
    """The whole shop as it stands."""
    with reading() as session:
        books = {book.id: book.quantity for book in session.exec(select(Book))}
        customers = {customer.id: customer.points for customer in session.exec(select(Customer))}
    return Shop(books, customers, kept_cents(), assigned_copies(), queued(), notices())


def at_once(calls: Sequence[Callable[[], T]]) -> list[T | Exception]:
    """Call all from threads of their own, let go at the same moment; errors are given back."""
    gate = threading.Barrier(len(calls))

    def after_the_gate(call: Callable[[], T]) -> T | Exception:
        gate.wait(timeout=30)
        try:
            return call()
        except Exception as error:
            return error

    with ThreadPoolExecutor(max_workers=len(calls)) as pool:
        return list(pool.map(after_the_gate, calls))
