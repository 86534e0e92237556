"""The saga log: which step of which order is done, and what is to be undone.

A step runs for a group of orders inside :func:`forward`, an undo inside :func:`backward`: one
transaction each, the orders locked, the effect and its record committed together. Steps may run
again at any time; an order that has its step already is passed over.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import bindparam, insert, update
from sqlmodel import Session, col, select

from store.database import transaction
from store.errors import OrderError, recorded_error
from store.models import (
    BEFORE_PIVOT,
    GIVING_BACK,
    GOING_FORWARD,
    HOLDING,
    Order,
    OrderStatus,
    SagaRecord,
    StepState,
    utc_now,
)

SEQUENCE = (
    "check_inventory",
    "calculate_total",
    "redeem_points",
    "bill_customer",
    "prepare_order",
    "dispatch_order",
)
"""The steps in their order. A step waits for the one before it, so that a process left over from
an earlier attempt cannot run ahead of the present one."""
COMPENSABLE = ("bill_customer", "check_inventory", "redeem_points")
"""The steps with an undo, in the order of undoing: money first, it hurts the customer most."""


class SagaOrder(NamedTuple):
    """What a step sees of an order."""

    id: str
    attempt: int
    status: str
    run_id: str | None
    user_id: str
    redeem: bool
    payment_method: str
    currency: str
    copies: int
    total_cents: int | None
    points_redeemed: int
    due_cents: int | None
    courier_id: str | None
    wait_until: datetime | None
    error: str | None
    message: str | None


_SAGA_ORDER = [getattr(Order, name) for name in SagaOrder._fields]


def lock_orders(session: Session, order_ids: Sequence[str]) -> dict[str, SagaOrder]:
    """Lock the orders, by id so that two groups cannot deadlock, and return them by id."""
    rows = session.execute(
        select(*_SAGA_ORDER)
        .where(col(Order.id).in_(order_ids))
        .order_by(col(Order.id))
        .with_for_update()
    )
    return {row[0]: SagaOrder._make(row) for row in rows}


def _records(
    session: Session, orders: Sequence[SagaOrder], steps: Sequence[str]
) -> list[SagaRecord]:
    """Return the records of the orders' present attempts for ``steps``."""
    attempt = {order.id: order.attempt for order in orders}
    found = session.scalars(
        select(SagaRecord)
        .where(col(SagaRecord.order_id).in_(attempt), col(SagaRecord.step).in_(steps))
        # The session may hold them from before an update that it did not see.
        .execution_options(populate_existing=True)
    )
    return [record for record in found if record.attempt == attempt[record.order_id]]


@dataclass
class Forward:
    """A step under way for a group, inside its transaction.

    ``todo`` are the orders that lack the step, in the order in which they were given.
    ``intents`` holds the records that :meth:`intend` made in an earlier transaction.
    """

    step: str
    session: Session
    todo: list[SagaOrder]
    intents: dict[str, SagaRecord]
    _done: list[str]
    _stopped: list[OrderError]
    _new: list[dict[str, Any]] = field(default_factory=list)
    _finished: list[dict[str, Any]] = field(default_factory=list)
    _changed: list[dict[str, Any]] = field(default_factory=list)
    _failed: list[tuple[SagaOrder, OrderError]] = field(default_factory=list)

    def done(self, order: SagaOrder, result: dict[str, Any], **columns: Any) -> None:
        """Record the step as done; ``result`` is what its undo needs.

        ``columns`` are set on the order; they must be the same ones for the whole group.
        """
        self._done.append(order.id)
        self._change(order, columns)
        if order.id in self.intents:
            self._finish(order, StepState.DONE, result)
        else:
            self._new.append(self._record(order, StepState.DONE, result))

    def intend(self, order: SagaOrder, result: dict[str, Any], **columns: Any) -> None:
        """Record, once, that an effect outside the database is about to be asked for.

        ``columns`` are as for :meth:`done`, set only with the first intent.
        """
        if order.id not in self.intents:
            self._new.append(self._record(order, StepState.INTENDED, result))
            self._change(order, columns)

    def void(self, order: SagaOrder, result: dict[str, Any]) -> None:
        """Record that an intent was refused: it had no effect, and there is nothing to undo."""
        self._finish(order, StepState.VOID, result)

    def skip(self, order: SagaOrder) -> None:
        """Let the order go on: the step is none of its own."""
        self._done.append(order.id)

    def fail(self, order: SagaOrder, error: OrderError) -> None:
        """Record that the order cannot go on, and why."""
        self._failed.append((order, error))

    def _change(self, order: SagaOrder, columns: dict[str, Any]) -> None:
        if columns:
            self._changed.append({"of": order.id, **columns})

    def _finish(self, order: SagaOrder, state: StepState, result: dict[str, Any]) -> None:
        self._finished.append(
            {
                "of": order.id,
                "in_attempt": order.attempt,
                "to_state": state,
                "with_result": result,
                "finished_at": utc_now(),
            }
        )

    def _record(self, order: SagaOrder, state: str, result: dict[str, Any]) -> dict[str, Any]:
        return {
            "order_id": order.id,
            "attempt": order.attempt,
            "step": self.step,
            "state": state,
            "result": result,
            "at": utc_now(),
        }

    def _write(self) -> None:
        if self._new:
            self.session.execute(insert(SagaRecord), self._new)
        if self._finished:
            self.session.connection().execute(
                update(SagaRecord)
                .where(
                    col(SagaRecord.order_id) == bindparam("of"),
                    col(SagaRecord.attempt) == bindparam("in_attempt"),
                    col(SagaRecord.step) == self.step,
                )
                .values(
                    state=bindparam("to_state"),
                    result=bindparam("with_result"),
                    at=bindparam("finished_at"),
                ),
                self._finished,
            )
        if self._changed:
            columns: dict[str, Any] = {
                name: bindparam(name) for name in self._changed[0] if name != "of"
            }
            self.session.connection().execute(
                update(Order)
                .where(col(Order.id) == bindparam("of"))
                .values(updated_at=utc_now(), **columns),
                self._changed,
            )
        give_up(self.session, self._failed)

    def going_on(self) -> list[str]:
        """Return the ids of the orders that go on; to be asked after the transaction.

        Raises:
            OrderError: none goes on; the error of the first. So a run shows the step that
                ended its order as failed, and one order's bad luck never stops a group.
        """
        stopped = [*self._stopped, *(error for _, error in self._failed)]
        if not self._done and stopped:
            raise stopped[0]
        return self._done


@contextmanager
def forward(step: str, order_ids: Sequence[str]) -> Iterator[Forward]:
    """Run ``step`` for the orders that lack it, in one transaction with its records.

    Orders that have failed or been cancelled meanwhile, or that lack the step before, are left
    alone: the step is not done for them and they do not go on.
    """
    with transaction() as session:
        orders = lock_orders(session, order_ids)
        live = [
            orders[id_]
            for id_ in order_ids
            if id_ in orders and orders[id_].status in GOING_FORWARD
        ]
        before = SEQUENCE[: SEQUENCE.index(step)]
        found = _records(session, live, [*before, step])
        records = {r.order_id: r for r in found if r.step == step}
        done_steps = {(r.order_id, r.step) for r in found if r.state == StepState.DONE}
        done = {id_ for id_, r in records.items() if r.state == StepState.DONE}
        group = Forward(
            step=step,
            session=session,
            todo=[
                order
                for order in live
                if order.id not in done
                and all((order.id, b) in done_steps or not _needs(order, b) for b in before)
            ],
            intents={id_: r for id_, r in records.items() if r.state == StepState.INTENDED},
            _done=[order.id for order in live if order.id in done],
            _stopped=[
                recorded_error(order.error, order.message)
                for order in orders.values()
                if order.status not in GOING_FORWARD
            ],
        )
        yield group
        group._write()


def _needs(order: SagaOrder, step: str) -> bool:
    """Say whether the later steps of the order wait for ``step``."""
    if step == "redeem_points":
        return order.redeem
    if step == "prepare_order":
        # A courier may answer before the message is recorded as sent, and that record may never
        # come; the order's status tells `dispatch_order` that it was answered.
        return False
    return step != "bill_customer" or order.due_cents != 0


def give_up(session: Session, failed: Sequence[tuple[SagaOrder, OrderError]]) -> None:
    """End the forward way of orders, each with its error; the rows must be locked.

    An order of which nothing was taken is ``rejected`` at once, any other is to be compensated.
    One that is past the pivot is left as it is: it only goes forward.
    """
    failed = [(order, error) for order, error in failed if order.status in BEFORE_PIVOT]
    if not failed:
        return
    taken = {
        r.order_id
        for r in _records(session, [order for order, _ in failed], COMPENSABLE)
        if r.state in HOLDING
    }
    session.connection().execute(
        update(Order)
        .where(col(Order.id) == bindparam("of"))
        .values(
            status=bindparam("to_status"),
            error=bindparam("error"),
            message=bindparam("message"),
            updated_at=utc_now(),
        ),
        [
            {
                "of": order.id,
                "to_status": (
                    OrderStatus.COMPENSATING if order.id in taken else OrderStatus.REJECTED
                ),
                "error": type(error).__name__,
                "message": str(error),
            }
            for order, error in failed
        ],
    )


def abandon(
    order_ids: Sequence[str], error: OrderError, attempts: Mapping[str, int] | None = None
) -> list[str]:
    """End the forward way of those orders that are before the pivot, with ``error``.

    Args:
        order_ids: The orders.
        error: Why they cannot go on.
        attempts: The attempt that each order was in when ``error`` was found. An order that has
            begun another one since is left alone: the error is none of that attempt's.

    Returns:
        The ids of the orders among ``order_ids`` of which something is left to be given back.
    """
    with transaction() as session:
        orders = lock_orders(session, order_ids)
        give_up(
            session,
            [
                (o, error)
                for o in orders.values()
                if o.status in BEFORE_PIVOT
                and (attempts is None or o.attempt == attempts.get(o.id))
            ],
        )
        return [o.id for o in lock_orders(session, order_ids).values() if o.status in GIVING_BACK]


@dataclass
class Backward:
    """An undo under way for a group: ``todo`` pairs each order with the record of its step."""

    session: Session
    todo: list[tuple[SagaOrder, SagaRecord]]

    def undone(self, record: SagaRecord, result: dict[str, Any]) -> None:
        """Mark the step as undone; ``result`` says what was given back."""
        record.state = StepState.UNDONE
        record.undone_at = utc_now()
        record.undo_result = result
        record.undo_error = None


@contextmanager
def backward(step: str, order_ids: Sequence[str]) -> Iterator[Backward]:
    """Undo ``step`` for those orders that are being compensated and still hold its effect.

    Safe when the step never happened, may have happened (an intent), or is undone already.
    """
    with transaction() as session:
        orders = lock_orders(session, order_ids)
        failing = [orders[i] for i in order_ids if i in orders and orders[i].status in GIVING_BACK]
        records = {r.order_id: r for r in _records(session, failing, [step]) if r.state in HOLDING}
        yield Backward(
            session=session,
            todo=[(order, records[order.id]) for order in failing if order.id in records],
        )


def record_undo_failure(step: str, order_ids: Sequence[str], error: str) -> None:
    """Keep, for each order whose ``step`` could not be undone, the error and one more try."""
    with backward(step, order_ids) as group:
        for _, record in group.todo:
            record.undo_tries += 1
            record.undo_error = error


def conclude_compensation(order_ids: Sequence[str]) -> dict[str, OrderStatus]:
    """Set each compensating order to ``compensated``, or ``compensation_failed``.

    Returns:
        The status that each of them has now.
    """
    with transaction() as session:
        orders = [o for o in lock_orders(session, order_ids).values() if o.status in GIVING_BACK]
        held = {r.order_id for r in _records(session, orders, COMPENSABLE) if r.state in HOLDING}
        concluded = {
            order.id: (
                OrderStatus.COMPENSATION_FAILED if order.id in held else OrderStatus.COMPENSATED
            )
            for order in orders
        }
        for status in set(concluded.values()):
            session.execute(
                update(Order)
                .where(col(Order.id).in_([i for i, s in concluded.items() if s == status]))
                .values(status=status, updated_at=utc_now())
            )
        return concluded


def held_steps(order_ids: Sequence[str]) -> set[str]:
    """Return the steps that at least one of these compensating orders has still to undo."""
    with transaction() as session:
        orders = [o for o in lock_orders(session, order_ids).values() if o.status in GIVING_BACK]
        return {r.step for r in _records(session, orders, COMPENSABLE) if r.state in HOLDING}


def taken_by(session: Session, order: SagaOrder) -> dict[str, dict[str, Any]]:
    """Return what an order's present attempt has taken, by step; what was given back counts too."""
    return {
        r.step: r.result if r.undo_result is None else r.undo_result
        for r in _records(session, [order], COMPENSABLE)
        if r.state != StepState.VOID
    }
