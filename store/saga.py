"""The saga log of done steps and their open undos.

A step runs for a group of orders inside :func:`forward`, an undo inside :func:`backward`: one
transaction each, the orders locked, the effect and its record committed together. Steps may run
again at any time; an order that has its step already is passed over.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from sqlmodel import Session, col, select

from store.bulk import among, insert_rows, read_rows, update_rows
from store.database import transaction
from store.errors import OrderError, recorded_error, shortened
from store.models import (
    BEFORE_PIVOT,
    GOING_FORWARD,
    HOLDING,
    UNDOING,
    Order,
    OrderStatus,
    SagaRecord,
    StepState,
    utc_now,
)
from store.saga_log import (
    SagaOrder,
    StepRecord,
    compensable,
    lock_orders,
    records,
    require_known,
    steps,
)
from store.wakeups import ORDERS_CHANGED, ORDERS_TO_CARRY, notify


@dataclass
class Forward:
    """A step under way for a group, inside its transaction.

    ``todo`` are the orders that lack the step, in the order in which they were given.
    ``intents`` are those of which :meth:`intend` made a record in an earlier transaction.
    """

    step: str
    session: Session
    todo: list[SagaOrder]
    intents: set[str]
    _done: list[str]
    _stopped: list[OrderError]
    _new: list[dict[str, Any]] = field(default_factory=list)
    _finished: list[dict[str, Any]] = field(default_factory=list)
    _changed: list[dict[str, Any]] = field(default_factory=list)
    _failed: list[tuple[SagaOrder, OrderError]] = field(default_factory=list)

    def done(self, order: SagaOrder, result: dict[str, Any], **columns: Any) -> None:
        """Record the step as done, with the ``result`` for its undo.

        ``columns`` are set on the order; they must be the same ones for the whole group.
        """
        self._done.append(order.id)
        self._change(order, columns)
        if order.id in self.intents:
            self._finish(order, StepState.DONE, result)
        else:
            self._new.append(self._record(order, StepState.DONE, result))

    def intend(self, order: SagaOrder, result: dict[str, Any], **columns: Any) -> None:
        """Record once the intent of an effect outside the database.

        ``columns`` are as for :meth:`done`, set only with the first intent.
        """
        if order.id not in self.intents:
            self._new.append(self._record(order, StepState.INTENDED, result))
            self._change(order, columns)

    def void(self, order: SagaOrder, result: dict[str, Any]) -> None:
        """Record that an intent was refused, with no effect to undo."""
        self._finish(order, StepState.VOID, result)

    def skip(self, order: SagaOrder) -> None:
        """Mark the step as not needed for this order."""
        self._done.append(order.id)

    def fail(self, order: SagaOrder, error: OrderError) -> None:
        """Record that the order cannot go on, and why."""
        self._failed.append((order, error))

    def _change(self, order: SagaOrder, columns: dict[str, Any]) -> None:
        if columns:
            self._changed.append({"id": order.id, **columns})

    def _finish(self, order: SagaOrder, state: StepState, result: dict[str, Any]) -> None:
        self._finished.append(self._record(order, state, result))

    def _record(self, order: SagaOrder, state: StepState, result: dict[str, Any]) -> dict[str, Any]:
        return {
            "order_id": order.id,
            "attempt": order.attempt,
            "step": self.step,
            "state": state,
            "result": result,
        }

    def _write(self) -> None:
        now = utc_now()
        insert_rows(self.session, SagaRecord, self._new, at=now, undo_tries=0)
        update_rows(self.session, SagaRecord, self._finished, at=now)
        update_rows(self.session, Order, self._changed, updated_at=now)
        if any("status" in changed for changed in self._changed):
            notify(self.session, ORDERS_CHANGED)
        mark_failed(self.session, self._failed)

    def going_on(self) -> list[str]:
        """Return the ids of the orders that go on.

        To be called after the transaction.

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
    """Run ``step`` and record it in one transaction for orders lacking it.

    Orders that have failed or been cancelled since, or that lack the step before, are left
    alone: the step is not done for them and they do not go on.
    """
    require_known(step)
    with transaction() as session:
        orders = lock_orders(session, order_ids)
        live = [
            orders[id_]
            for id_ in order_ids
            if id_ in orders and orders[id_].status in GOING_FORWARD
        ]
        known = _states(session, step, live)
        intents = {id_ for id_, state in known.items() if state == StepState.INTENDED}
        # Whatever is intended had the step before it when it was.
        ready = intents | _with_the_step_before(
            session, step, [order for order in live if order.id not in known]
        )
        group = Forward(
            step=step,
            session=session,
            todo=[order for order in live if order.id in ready],
            intents=intents,
            _done=[order.id for order in live if known.get(order.id) == StepState.DONE],
            _stopped=[
                recorded_error(order.error, order.message)
                for order in orders.values()
                if order.status not in GOING_FORWARD
            ],
        )
        yield group
        group._write()


def _states(session: Session, step: str, orders: Sequence[SagaOrder]) -> dict[str, str]:
    """Return the recorded states of ``step`` in the orders' present attempts."""
    attempt = {order.id: order.attempt for order in orders}
    found = read_rows(
        session,
        select(SagaRecord.order_id, SagaRecord.attempt, SagaRecord.state).where(
            among(col(SagaRecord.order_id), attempt), col(SagaRecord.step) == step
        ),
    )
    return {id_: state for id_, in_attempt, state in found if in_attempt == attempt[id_]}


def _with_the_step_before(session: Session, step: str, orders: Sequence[SagaOrder]) -> set[str]:
    """Return the orders that have their last needed step before ``step``.

    They have all the others then: none is done without the one before it.
    """
    steps_before = [*takewhile(lambda each: each.name != step, steps())][::-1]
    by_before: dict[str | None, list[SagaOrder]] = {}
    for order in orders:
        last = next((each.name for each in steps_before if each.is_awaited(order)), None)
        by_before.setdefault(last, []).append(order)
    ready: set[str] = set()
    for before, group in by_before.items():
        if before is None:
            ready.update(order.id for order in group)
        else:
            states = _states(session, before, group)
            ready.update(id_ for id_, state in states.items() if state == StepState.DONE)
    return ready


def mark_failed(session: Session, failed: Sequence[tuple[SagaOrder, OrderError]]) -> None:
    """Mark locked orders as failed, each with its error.

    An order that holds nothing becomes ``rejected``, any other ``compensating``. One past the
    pivot is left as it is: it only goes forward.
    """
    failed = [(order, error) for order, error in failed if order.status in BEFORE_PIVOT]
    if not failed:
        return
    taken = {
        r.order_id
        for r in records(session, [order for order, _ in failed], compensable())
        if r.state in HOLDING
    }
    update_rows(
        session,
        Order,
        [
            {
                "id": order.id,
                "status": (OrderStatus.COMPENSATING if order.id in taken else OrderStatus.REJECTED),
                "error": type(error).__name__,
                "message": shortened(str(error)),
            }
            for order, error in failed
        ],
        updated_at=utc_now(),
    )
    notify(session, ORDERS_CHANGED, ORDERS_TO_CARRY)


def fail_orders(
    order_ids: Sequence[str], error: OrderError, attempts: Mapping[str, int] | None = None
) -> list[str]:
    """Mark orders before the pivot as failed with ``error``.

    Args:
        order_ids: The orders.
        error: Why they cannot go on.
        attempts: The attempt in which each order met ``error``; an order that has begun another
            one since is left alone.

    Returns:
        The ids of the orders that still hold something, whenever they failed.
    """
    with transaction() as session:
        orders = lock_orders(session, order_ids)
        mark_failed(
            session,
            [
                (o, error)
                for o in orders.values()
                if o.status in BEFORE_PIVOT
                and (attempts is None or o.attempt == attempts.get(o.id))
            ],
        )
        return [o.id for o in lock_orders(session, order_ids).values() if o.status in UNDOING]


@dataclass
class Backward:
    """An undo under way for a group of orders.

    ``todo`` pairs each order with the record of its step.
    """

    session: Session
    todo: list[tuple[SagaOrder, StepRecord]]
    _undone: list[dict[str, Any]] = field(default_factory=list)
    _noted: list[dict[str, Any]] = field(default_factory=list)

    def undone(self, record: StepRecord, result: dict[str, Any]) -> None:
        """Mark the step as undone, with the undo's ``result``."""
        self._undone.append({**_key(record), "undo_result": result})

    def note(self, record: StepRecord, result: dict[str, Any]) -> None:
        """Replace the record's data for an undo still to be done."""
        self._noted.append({**_key(record), "result": result})

    def _write(self) -> None:
        update_rows(self.session, SagaRecord, self._noted)
        update_rows(
            self.session,
            SagaRecord,
            self._undone,
            state=StepState.UNDONE,
            undone_at=utc_now(),
            undo_error=None,
        )


def _key(record: StepRecord) -> dict[str, Any]:
    return {"order_id": record.order_id, "attempt": record.attempt, "step": record.step}


@contextmanager
def backward(step: str, order_ids: Sequence[str]) -> Iterator[Backward]:
    """Undo ``step`` for compensating orders that still hold its effect.

    Safe when the step never happened, may have happened (an intent), or is undone already.
    """
    require_known(step)
    with transaction() as session:
        orders = lock_orders(session, order_ids)
        failing = [orders[i] for i in order_ids if i in orders and orders[i].status in UNDOING]
        held = {r.order_id: r for r in records(session, failing, [step]) if r.state in HOLDING}
        group = Backward(
            session=session, todo=[(order, held[order.id]) for order in failing if order.id in held]
        )
        yield group
        group._write()


def record_undo_failure(step: str, order_ids: Sequence[str], error: str) -> None:
    """Record each order's failed undo of ``step`` as one more try."""
    with backward(step, order_ids) as group:
        update_rows(
            group.session,
            SagaRecord,
            [{**_key(record), "undo_tries": record.undo_tries + 1} for _, record in group.todo],
            undo_error=shortened(error),
        )


def conclude_compensation(order_ids: Sequence[str]) -> dict[str, OrderStatus]:
    """Set each compensating order to ``compensated``, or ``compensation_failed``.

    Returns:
        The status that each of them has now.
    """
    with transaction() as session:
        orders = [o for o in lock_orders(session, order_ids).values() if o.status in UNDOING]
        held = {r.order_id for r in records(session, orders, compensable()) if r.state in HOLDING}
        concluded = {
            order.id: (
                OrderStatus.COMPENSATION_FAILED if order.id in held else OrderStatus.COMPENSATED
            )
            for order in orders
        }
        update_rows(
            session,
            Order,
            [{"id": id_, "status": status} for id_, status in concluded.items()],
            updated_at=utc_now(),
        )
        if concluded:
            notify(session, ORDERS_CHANGED)
        return concluded


def held_steps(order_ids: Sequence[str]) -> set[str]:
    """Return the steps that any of these compensating orders still holds."""
    with transaction() as session:
        orders = [o for o in lock_orders(session, order_ids).values() if o.status in UNDOING]
        return {r.step for r in records(session, orders, compensable()) if r.state in HOLDING}


def taken_by(session: Session, order: SagaOrder) -> list[StepRecord]:
    """Return the records of the present attempt's effects, undone or not."""
    return [r for r in records(session, [order], compensable()) if r.state != StepState.VOID]
