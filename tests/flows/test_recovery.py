"""The flow ``recover_orders``: what it finds, and in which order it gets to it."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Crashed, Failed, Paused, Running

from flows import recovery
from flows.batch import batch_checkout
from flows.dispatch import dispatch_orders
from flows.recovery import close_runs, recover_orders
from flows.runs import searches
from orders.batches import begin_batch
from orders.waits import expire_waits
from reports.audit import audit
from store.database import snapshot, transaction
from store.embedded_gateway import EmbeddedGateway
from store.errors import CheckoutFailed, QueueRefused
from store.messages import ASSIGNED, BatchAnswer, CourierAnswer
from store.models import SagaRecord, utc_now
from store.payments import Answer, Charge
from store.saga import fail_orders
from store.settings import settings
from store.table_queue import TableQueue
from tests.flows.runs import Runs
from tests.polling import wait_until
from tests.shop import (
    assign,
    decisions,
    end_run,
    notices,
    placed,
    saga_records,
    set_order,
    status,
    statuses,
)


@flow
def a_checkout() -> None:
    """Stand in for a checkout's run, of which only the state is looked at."""


def test_the_runs_of_any_number_of_orders_are_closed(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searches, "PAGE", 2)
    ids = [runs.client.create_flow_run(a_checkout, state=Running()).id for _ in range(5)]
    for number, run_id in enumerate(ids):
        placed(f"o-{number}", "dispatch_order", run_id=str(run_id))
    close_runs(runs.client, {str(id_) for id_ in ids})
    states = [runs.client.read_flow_run(id_).state for id_ in ids]
    assert [state is not None and state.is_completed() for state in states] == [True] * 5


CANCELLED: list[tuple[State[Any], bool]] = [
    (Cancelling(), True),
    (Cancelled(), True),
    # What Prefect and the store cancel by themselves is no person's cancellation.
    (Cancelled(message=f"Deployment {uuid4()} no longer exists, cancelled run."), False),
    (Cancelled(message="Deployment concurrency limit reached."), False),
    (Cancelled(message=f"replaced by run {uuid4()}"), False),
]


@pytest.mark.parametrize(("state", "by_a_person"), CANCELLED)
def test_a_cancellation_is_a_persons_only_if_the_state_says_so(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, state: State[Any], by_a_person: bool
) -> None:
    monkeypatch.setattr(recovery, "HOOK_TIME", timedelta(0))
    monkeypatch.setattr(recovery, "CANCELLING_TIME", timedelta(0))
    run = runs.client.create_flow_run(a_checkout, state=Running())
    placed("o-1", "prepare_order", run_id=str(run.id))
    runs.client.set_flow_run_state(run.id, state.fresh_copy(), force=True)
    dispatch_orders(listen_seconds=1)
    assert status("o-1") == ("waiting" if by_a_person else "dispatching")
    recover_orders()
    assert status("o-1") == ("compensated" if by_a_person else "dispatched")
    assert runs.state_types(run.id)[-1] == ("CANCELLED" if by_a_person else "COMPLETED")


@pytest.mark.parametrize("state", [Cancelling(), Cancelled(), Crashed()])
def test_a_run_whose_order_a_courier_had_accepted_says_so_at_its_end(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, state: State[Any]
) -> None:
    monkeypatch.setattr(recovery, "HOOK_TIME", timedelta(0))
    run = runs.client.create_flow_run(a_checkout, state=Running())
    placed("o-1", "prepare_order", run_id=str(run.id))
    assign("o-1")
    runs.client.set_flow_run_state(run.id, state.fresh_copy(), force=True)
    set_order("o-1", updated_at=utc_now() - timedelta(hours=1))
    monkeypatch.setenv("STORE_STALLED_SECONDS", "1")
    settings.cache_clear()
    wait_until(lambda: recover_orders() and status("o-1") == "dispatched", "the dispatch")
    ended = runs.client.read_flow_run(run.id).state
    assert ended is not None
    assert ended.is_completed()
    before_the_cancellation = "a courier had accepted before the cancellation" in str(ended.message)
    assert before_the_cancellation == (not state.is_crashed())


def test_an_order_that_recovery_dispatches_leaves_no_failed_run(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "HOOK_TIME", timedelta(0))
    run = runs.client.create_flow_run(a_checkout, state=Running())
    placed("o-1", "prepare_order", run_id=str(run.id))
    assign("o-1")
    runs.client.set_flow_run_state(run.id, Failed(message="the topic refused"), force=True)
    recover_orders()
    assert (status("o-1"), runs.state_types(run.id)[-1]) == ("dispatched", "COMPLETED")


def test_a_retry_that_was_just_asked_for_is_not_ended_with_the_attempt_before(runs: Runs) -> None:
    run = runs.client.create_flow_run(a_checkout, state=Running())
    placed("o-1", "prepare_order", run_id=str(run.id))
    end_run("o-1")
    states: tuple[State[Any], ...] = (Failed(), AwaitingRetry())
    for state in states:
        runs.client.set_flow_run_state(run.id, state, force=True)
    close_runs(runs.client, {str(run.id)})
    assert runs.state_types(run.id)[-1] == "SCHEDULED"


def test_an_answer_that_was_accepted_before_a_cancellation_counts(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "HOOK_TIME", timedelta(0))
    run = runs.client.create_flow_run(a_checkout, state=Running())
    placed("o-1", "prepare_order", run_id=str(run.id))
    answer = CourierAnswer(outcome=ASSIGNED, courier="city-vans", answered_by="Ada")
    runs.client.create_flow_run_input(
        run.id, "suspended-courier-1-x-response", answer.model_dump_json()
    )
    runs.client.set_flow_run_state(run.id, Cancelled(), force=True)
    recover_orders()
    assert decisions("o-1") == [("courier assigned", "city-vans", True)]
    assert status("o-1") == "dispatching"


def test_a_kind_of_work_that_never_ends_keeps_no_other_from_its_turn(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "HOOK_TIME", timedelta(0))
    for number in range(3):
        placed(f"a-{number}", "prepare_order")
        fail_orders([f"a-{number}"], CheckoutFailed("stopped"))
    placed("z-waits", "prepare_order")
    set_order("z-waits", wait_until=utc_now() - timedelta(hours=3))
    recover_orders(limit=2)
    assert status("z-waits") == "compensated"
    assert sorted(status(f"a-{number}") for number in range(3)) == [
        "compensated",
        "compensated",
        "compensating",
    ]


def test_an_answer_to_a_batch_that_came_in_time_counts_although_its_run_is_dead(
    runs: Runs,
) -> None:
    run = runs.client.create_flow_run(batch_checkout, state=Crashed())
    begin_batch(str(run.id), None)
    placed("o-1", "prepare_order", run_id=str(run.id))
    set_order("o-1", wait_until=utc_now() - timedelta(minutes=1))
    answer = BatchAnswer(outcome=ASSIGNED, courier="city-vans", answered_by="Ada")
    runs.client.create_flow_run_input(run.id, "paused-batch-x-response", answer.model_dump_json())
    assert recover_orders().moves == {"expire": ["o-1"]}
    assert (status("o-1"), decisions("o-1")) == (
        "dispatching",
        [("courier assigned", "city-vans", True)],
    )


def test_the_wait_of_an_order_whose_run_is_deleted_ends(runs: Runs) -> None:
    run = runs.client.create_flow_run(a_checkout, state=Crashed())
    placed("o-1", "prepare_order", run_id=str(run.id))
    set_order("o-1", wait_until=utc_now() - timedelta(minutes=1))
    runs.client.delete_flow_run(run.id)
    report = recover_orders()
    assert (report.moves, report.failed) == ({"expire": ["o-1"]}, {})
    assert status("o-1") == "compensated"


def test_after_the_runbooks_remedy_recovery_gives_back_what_a_compensated_order_holds(
    runs: Runs,
) -> None:
    run = runs.client.create_flow_run(a_checkout, state=Crashed())
    placed("o-1", "prepare_order", 2, run_id=str(run.id))
    set_order("o-1", status="compensated", error="CheckoutFailed", message="by hand")
    with snapshot() as session:
        assert "I4 compensated" in {found.invariant for found in audit(session)}
    set_order("o-1", status="compensating")
    wait_until(lambda: recover_orders() and status("o-1") == "compensated", "compensation")
    with snapshot() as session:
        assert list(audit(session)) == []


def test_an_answer_that_cannot_be_read_is_none(runs: Runs) -> None:
    run = runs.client.create_flow_run(a_checkout, state=Crashed())
    placed("o-1", "prepare_order", run_id=str(run.id))
    set_order("o-1", wait_until=utc_now() - timedelta(minutes=1))
    runs.client.create_flow_run_input(run.id, "paused-courier-1-x-response", '{"outcome": "maybe"}')
    assert recover_orders().failed == {}
    assert (status("o-1"), decisions("o-1")) == ("compensated", [])


def test_a_defect_that_one_order_hits_keeps_no_other_from_its_turn(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"o-{number}" for number in range(5)]
    for order_id in ids:
        placed(order_id, "prepare_order")
        set_order(order_id, wait_until=utc_now() - timedelta(minutes=1))

    def defective(order_ids: list[str]) -> None:
        if "o-3" in order_ids:
            raise ZeroDivisionError("a defect")
        expire_waits(order_ids)

    monkeypatch.setattr(recovery, "expire_waits", defective)
    report = recover_orders()
    assert report.failed == {"expire": "ZeroDivisionError: a defect"}
    assert {id_: status(id_) for id_ in ids} == {
        **dict.fromkeys(ids, "compensated"),
        "o-3": "waiting",
    }


def test_an_undo_that_fails_is_tried_once_in_a_round(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "HOOK_TIME", timedelta(0))
    ids = [f"o-{number}" for number in range(4)]
    for order_id in ids:
        placed(order_id, "prepare_order")
    fail_orders(ids, CheckoutFailed("stopped"))
    right = EmbeddedGateway.refund

    def broken(ledger: EmbeddedGateway, charges: Sequence[Charge]) -> dict[str, Answer]:
        if any(charge.order_id == "o-2" for charge in charges):
            raise ZeroDivisionError("a defect")
        return right(ledger, charges)

    monkeypatch.setattr(EmbeddedGateway, "refund", broken)
    assert recover_orders().failed.keys() == {"compensate"}
    assert [status(id_) for id_ in ids] == [
        "compensated",
        "compensated",
        "compensation_failed",
        "compensated",
    ]
    assert saga_records("o-2")["bill_customer"].undo_tries == 1


def test_messages_that_the_queue_refuses_are_sent_once_in_a_round(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"o-{number}" for number in range(4)]
    for order_id in ids:
        run = runs.client.create_flow_run(a_checkout, state=Paused(timeout_seconds=3600))
        placed(order_id, "prepare_order", run_id=str(run.id))
        with transaction() as session:
            session.get_one(SagaRecord, (order_id, 1, "prepare_order")).at -= timedelta(hours=1)
    calls = []

    def refuse(_: TableQueue, bodies: Sequence[str]) -> None:
        calls.append(len(bodies))
        raise QueueRefused("ExpiredToken")

    with monkeypatch.context() as patch:
        patch.setattr(TableQueue, "send", refuse)
        for _ in range(2):
            assert recover_orders().failed == {"send again": "QueueRefused: ExpiredToken"}
    assert calls == [4, 4]
    assert statuses(ids) == {"waiting"}
    assert len(notices()) == 1
    assert recover_orders().moves == {"send again": ids}
