"""Defects that the simulator must find: each is put into the store for as long as a block lasts.

Each is one that somebody could really make, or that the old system had. ``found_as`` are the
invariants that it breaks, so that it is found for the right reason.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch
from uuid import uuid4

from sqlalchemy import update
from sqlmodel import Session, col, select

import flows.batches.listening
import flows.checkout
import flows.compensation
import flows.order.courier_wait
import flows.recovery
import flows.runs.continuation
import flows.runs.pause
import flows.runs.work_pool
import orders.acceptance
import orders.listening
import store.embedded_gateway
import store.outages
import store.saga
import store.saga_log
import tasks.billing
import tasks.couriers
import tasks.dispatch
import tasks.inventory
import tasks.points
import tests.faults.seams
from store.bulk import increase, insert_missing, update_rows
from store.database import transaction
from store.embedded_gateway import EmbeddedGateway
from store.errors import CheckoutFailed, CourierWaitExpired
from store.messages import CourierAnswer
from store.models import (
    BEFORE_PIVOT,
    ENDED,
    UNDOING,
    Courier,
    Customer,
    Decision,
    LedgerEntry,
    Order,
    OrderStatus,
    StepState,
    utc_now,
)
from store.payments import Answer, Charge
from store.saga import Backward, Forward, backward, forward, held_steps, mark_failed
from store.saga_log import SagaOrder, lock_orders
from store.settings import settings
from store.table_topic import TableTopic
from tests.faults.partners import BadLineGateway
from tests.faults.world import LISTENING_SEEDS

Patches = Sequence[tuple[Any, str, Any]]


@dataclass(frozen=True)
class Bug:
    """A defect: what is replaced for it, the invariants it breaks, and where the search begins."""

    name: str
    found_as: frozenset[str]
    made: Callable[[], AbstractContextManager[None]]
    seeds_from: int


BUGS: list[Bug] = []


def bug(
    *found_as: str, seeds_from: int = 0
) -> Callable[[Callable[[], Patches]], Callable[[], Patches]]:
    """Register a function that returns what a defect replaces; its name is the defect's.

    A rare defect is searched for from ``seeds_from`` on, where one is near, to save time. After a
    change of the simulation that seed is another run like any, and the search just takes longer.
    """

    def register(patches: Callable[[], Patches]) -> Callable[[], Patches]:
        @contextmanager
        def made() -> Iterator[None]:
            with ExitStack() as stack:
                for owner, name, wrong in patches():
                    stack.enter_context(patch.object(owner, name, wrong))
                yield

        BUGS.append(Bug(patches.__name__, frozenset(found_as), made, seeds_from))
        return patches

    return register


@bug("I1 stock", "I2 points")
def an_undo_does_not_look_whether_it_is_done() -> Patches:
    @contextmanager
    def wrong(step: str, order_ids: Sequence[str]) -> Iterator[Backward]:
        with transaction() as session:
            orders = lock_orders(session, order_ids)
            failing = [o for o in orders.values() if o.status in UNDOING]
            records = store.saga_log.records(session, failing, [step])
            of = {record.order_id: record for record in records}
            yield Backward(session, [(o, of[o.id]) for o in failing if o.id in of])

    # Done twice in one compensation, as when two of them run at once.
    def twice(orders: list[str], step: str | None = None) -> dict[str, str]:
        undo = tasks.inventory.restore_quantity.fn
        if held_steps(orders):
            undo(orders)
        return right(orders, step)

    right = flows.compensation.compensate.fn
    return [
        (tasks.inventory, "backward", wrong),
        (tasks.points, "backward", wrong),
        (flows.compensation.compensate, "fn", twice),
    ]


@bug("I2 points")
def points_are_given_back_that_were_never_taken() -> Patches:
    right = tasks.points.restore_points.fn

    def wrong(order_ids: list[str]) -> list[str]:
        with transaction() as session:
            for order in lock_orders(session, order_ids).values():
                if order.status in UNDOING and not order.redeem:
                    points = {order.user_id: (order.total_cents or 0) // 100}
                    tasks.points._lock_customers(session, points)
                    increase(session, Customer, "points", points)
        return right(order_ids)

    return [
        (tasks.points.restore_points, "fn", wrong),
        # The flow asks which steps are held before it calls their undos.
        (flows.compensation, "held_steps", lambda _: set(flows.compensation.UNDO)),
    ]


@bug("I2 points", seeds_from=35)
def points_are_put_back_to_their_old_number() -> Patches:
    before: dict[str, int] = {}

    def wrong(session: Session, _model: object, _name: str, points: dict[str, int]) -> None:
        for user_id, added in points.items():
            customer = session.get_one(Customer, user_id)
            if added < 0:
                before[user_id] = customer.points
            points_now = before[user_id] if added > 0 else customer.points + added
            session.execute(
                update(Customer).where(col(Customer.id) == user_id).values(points=points_now)
            )

    return [(tasks.points, "increase", wrong)]


@bug("I3 one charge", "I3 money", "I5 intent")
def a_charge_has_another_key_each_time() -> Patches:
    class Wrong(BadLineGateway):
        def capture(self, charges: Sequence[Charge]) -> dict[str, Answer]:
            keyed = {
                charge.key: replace(charge, key=f"{charge.key}:{uuid4()}") for charge in charges
            }
            answers = super().capture(list(keyed.values()))
            return {
                key: replace(answers[charge.key], reference=key) for key, charge in keyed.items()
            }

    return [(tests.faults.seams, "BadLineGateway", Wrong)]


@bug("I3 money", "I3 paid", "I3 report", "I5 intent")
def a_new_attempt_charges_with_the_old_key() -> Patches:
    right = tasks.billing._charge
    return [
        (
            tasks.billing,
            "_charge",
            lambda order, record: replace(right(order, record), key=f"{order.id}:1"),
        ),
        (store.embedded_gateway, "_require_same", lambda *_: None),
    ]


@bug("I5 intent", "I3 one charge")
def a_charge_has_no_intent() -> Patches:
    return [(Forward, "intend", lambda *_, **__: None)]


@bug("I3 money", "I4 endings", "I3 no charge in doubt")
def a_refund_passes_over_intents() -> Patches:
    return [(store.saga, "HOLDING", (StepState.DONE,))]


@bug("I3 money", "I3 one charge", seeds_from=85)
def a_refund_leaves_no_tombstone() -> Patches:
    def wrong(ledger: EmbeddedGateway, charges: Sequence[Charge]) -> dict[str, Answer]:
        with transaction() as session:
            known = store.embedded_gateway._entries(session, [charge.key for charge in charges])
            captured = {key for key, entry in known.items() if entry.status == "captured"}
            entries = [
                store.embedded_gateway._entry(charge, "refund", "refunded")
                for charge in charges
                if charge.key in captured
            ]
            insert_missing(session, LedgerEntry, entries)
        return {c.key: Answer("refunded" if c.key in captured else "void", c.key) for c in charges}

    return [(EmbeddedGateway, "refund", wrong)]


@bug("I1 stock")
def the_record_is_written_after_the_effect() -> Patches:
    @contextmanager
    def wrong(step: str, order_ids: Sequence[str]) -> Iterator[Forward]:
        with forward(step, order_ids) as group:
            group._write = lambda: None  # type: ignore[method-assign]
            yield group
        with transaction() as session:
            group.session = session
            Forward._write(group)

    return [(tasks.inventory, "forward", wrong)]


@bug("I1 stock")
def the_copies_are_given_back_before_their_record() -> Patches:
    @contextmanager
    def wrong(step: str, order_ids: Sequence[str]) -> Iterator[Backward]:
        with backward(step, order_ids) as group:
            done: list[tuple[Any, ...]] = []
            group.undone = lambda record, result: done.append((record, result))  # type: ignore[method-assign]
            yield group
        with backward(step, order_ids) as group:
            for _, record in group.todo:
                group.undone(record, record.result)

    return [(tasks.inventory, "backward", wrong)]


@bug("I4 one decision", "I4 courier", "I4 capacity", seeds_from=55)
def a_second_decision_counts_as_well() -> Patches:
    def waits(order: SagaOrder, attempt: int) -> bool:
        decidable = (OrderStatus.WAITING, OrderStatus.DISPATCHING)
        return order.status in decidable and order.attempt == attempt

    return [(tasks.couriers, "_waits", waits), (tasks.couriers, "insert_rows", _insert_if_first)]


def _insert_if_first(session: Session, model: Any, rows: Sequence[Any], **same: Any) -> None:
    """Insert what the unique index lets pass, as a database without it would take all."""
    from sqlalchemy.dialects.postgresql import insert

    if rows:
        session.execute(insert(model).on_conflict_do_nothing(), [row | same for row in rows])


@bug("I4 own reason", "I4 a crash is no failure")
def a_run_ends_the_orders_of_other_runs() -> Patches:
    def wrong(_run_id: str) -> dict[str, int]:
        with transaction() as session:
            unfinished = session.exec(select(Order).where(col(Order.status).not_in(ENDED)))
            return {order.id: order.attempt for order in unfinished}

    return [(flows.compensation, "orders_of_run", wrong)]


@bug("I4 attempts", seeds_from=99)
def a_restart_begins_a_new_attempt() -> Patches:
    def wrong(_run_id: str) -> str:
        return str(uuid4())

    return [(flows.checkout, "who_asked", wrong)]


@bug("I4 an ending is final", "I4 forward", "I4 endings")
def a_retry_goes_on_in_the_old_attempt() -> Patches:
    right = orders.acceptance._begin_again

    def wrong(session: Session, methods: Mapping[str, str], run_id: str, asked_by: str) -> None:
        right(session, methods, run_id, asked_by)
        ids = [{"id": id_} for id_ in methods]
        update_rows(session, Order, ids, attempt=col(Order.attempt) - 1)

    return [(orders.acceptance, "_begin_again", wrong)]


@bug("I4 pivot", "I4 capacity", seeds_from=169)
def the_end_of_the_wait_does_not_look_for_a_decision() -> Patches:
    def wrong(order_ids: Sequence[str]) -> None:
        with transaction() as session:
            session.execute(
                update(Order)
                .where(
                    col(Order.id).in_(order_ids),
                    col(Order.status).in_([OrderStatus.WAITING, OrderStatus.DISPATCHING]),
                    col(Order.wait_until) <= utc_now(),
                )
                .values(
                    status=OrderStatus.COMPENSATING, error="CourierWaitExpired", message="too late"
                )
            )

    return [
        (flows.order.courier_wait, "expire_waits", wrong),
        (flows.recovery, "expire_waits", wrong),
    ]


@bug("I4 pivot", "I4 capacity", seeds_from=41)
def a_failure_after_the_pivot_is_compensated() -> Patches:
    return [(store.saga, "BEFORE_PIVOT", (*BEFORE_PIVOT, OrderStatus.DISPATCHING))]


@bug("I4 notice")
def the_parcel_is_announced_before_the_pivot() -> Patches:
    right = tasks.dispatch.prepare_order.fn

    def wrong(order_ids: list[str]) -> list[str]:
        going_on = right(order_ids)
        with transaction() as session:
            orders = list(lock_orders(session, going_on).values())
            notices = tasks.dispatch._notices(session, orders)
        TableTopic().publish(notices)
        return going_on

    return [(tasks.dispatch.prepare_order, "fn", wrong)]


@bug("I4 capacity")
def a_courier_is_never_free_again() -> Patches:
    def wrong(session: Session, model: type[Courier], name: str, copies: dict[str, int]) -> None:
        increase(session, model, name, {id_: added for id_, added in copies.items() if added > 0})

    return [(tasks.dispatch, "increase", wrong)]


@bug("I4 capacity", seeds_from=40)
def a_late_answer_holds_its_courier() -> Patches:
    right = tasks.couriers.record_answer

    def wrong(order_id: str, answer: CourierAnswer) -> Decision:
        decision = right(order_id, answer)
        if answer.courier and decision.decided_by != answer.answered_by:
            with transaction() as session:
                session.execute(
                    update(Courier)
                    .where(col(Courier.assigned_copies) < col(Courier.capacity_copies))
                    .values(assigned_copies=col(Courier.assigned_copies) + 1)
                )
        return decision

    return [(flows.order.courier_wait, "record_answer", wrong)]


@bug("I4 every order ends", seeds_from=3)
def an_order_is_continued_without_end() -> Patches:
    right = settings
    return [
        (
            flows.runs.continuation,
            "settings",
            lambda: right().model_copy(update={"max_continuations": 1_000_000}),
        )
    ]


@bug("I1 stock", "I2 points", "I3 money", "I4 endings")
def a_compensation_ends_although_an_undo_failed() -> Patches:
    def wrong(order_ids: Sequence[str]) -> dict[str, OrderStatus]:
        with transaction() as session:
            giving_back = [
                o.id for o in lock_orders(session, order_ids).values() if o.status in UNDOING
            ]
            session.execute(
                update(Order)
                .where(col(Order.id).in_(giving_back))
                .values(status=OrderStatus.COMPENSATED)
            )
        return dict.fromkeys(giving_back, OrderStatus.COMPENSATED)

    return [(flows.compensation, "conclude_compensation", wrong)]


@bug("I4 every order ends", seeds_from=3)
def recovery_passes_over_compensations_that_were_cut_short() -> Patches:
    right = flows.recovery.next_move

    def wrong(order: Any, run: Any, now: Any, **more: bool) -> flows.recovery.Move:
        if order.status in UNDOING:
            return flows.recovery.Move.LEAVE
        return right(order, run, now, **more)

    return [(flows.recovery, "next_move", wrong)]


@bug("I4 a crash is no failure", seeds_from=20)
def a_crash_is_taken_for_a_failure() -> Patches:
    return [
        (flows.compensation, "is_interruption", lambda _: False),
    ]


@bug("no defect", "I4 a crash is no failure", seeds_from=27)
def a_read_only_database_is_taken_for_a_defect() -> Patches:
    return [(store.outages, "OUTAGES", {})]


@bug("I4 a crash is no failure", seeds_from=233)
def a_closed_pool_ends_the_orders_that_wait() -> Patches:
    right = flows.runs.work_pool.pool_is_closed

    def wrong() -> bool:
        if right():
            raise CheckoutFailed("the workers are being stopped")
        return False

    return [(flows.runs.pause, "pool_is_closed", wrong)]


@bug("I4 notice", "I4 pivot", "I4 capacity", seeds_from=LISTENING_SEEDS + 33)
def a_batch_takes_over_what_waited_when_it_looked_last() -> Patches:
    seen: dict[str, list[str]] = {}

    def wrong(from_run: str, to_run: str) -> bool:
        waits = (col(Order.run_id) == from_run, col(Order.status) == OrderStatus.WAITING)
        with transaction() as session:
            session.execute(
                update(Order)
                .where(col(Order.id).in_(seen.get(to_run, [])))
                .values(run_id=to_run, status=OrderStatus.WAITING)
            )
            seen[to_run] = list(session.scalars(select(Order.id).where(*waits)))
        return True

    return [(flows.batches.listening, "take_over_waiting", wrong)]


@bug("I4 own reason", seeds_from=LISTENING_SEEDS + 12)
def a_batch_that_stops_gives_up_what_still_waits() -> Patches:
    def every_wait(run_id: str, _limit: int) -> list[str]:
        if orders.listening.listens(run_id):
            return []
        waits = (col(Order.run_id) == run_id, col(Order.status) == OrderStatus.WAITING)
        with transaction() as session:
            return list(session.scalars(select(Order.id).where(*waits)))

    def end(order_ids: Sequence[str]) -> None:
        with transaction() as session:
            waiting = lock_orders(session, order_ids).values()
            mark_failed(session, [(order, CourierWaitExpired("it stops")) for order in waiting])

    return [
        (flows.batches.listening, "expired_waits", every_wait),
        (flows.batches.listening, "expire_waits", end),
    ]
