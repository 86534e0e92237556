"""The flow ``recover_orders``: what it finds, and in which order it gets to it."""

from collections.abc import Sequence
from datetime import timedelta

import pytest
from prefect import flow
from prefect.states import Crashed, Paused, Running

from flows import recovery
from flows.batch import batch_checkout
from flows.recovery import close_runs, recover_orders
from store.database import transaction
from store.errors import CheckoutFailed, QueueRefused
from store.messages import ASSIGNED, BatchAnswer
from store.models import SagaRecord, utc_now
from store.payments import Answer, Charge, Ledger
from store.queue import TableQueue
from store.saga import abandon
from tasks.batches import begin_batch
from tasks.dispatch import expire_waits
from tests.flows.runs import Runs
from tests.shop import decisions, notices, placed, saga_records, set_order, sqlite_only, status


@flow
def a_checkout() -> None:
    """Stand in for a checkout's run, of which only the state is looked at."""


@sqlite_only
def test_the_runs_of_any_number_of_orders_are_closed(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "PAGE", 2)
    ids = [runs.client.create_flow_run(a_checkout, state=Running()).id for _ in range(5)]
    for number, run_id in enumerate(ids):
        placed(f"o-{number}", "dispatch_order", run_id=str(run_id))
    close_runs(runs.client, {str(id_) for id_ in ids})
    states = [runs.client.read_flow_run(id_).state for id_ in ids]
    assert [state is not None and state.is_completed() for state in states] == [True] * 5


@sqlite_only
def test_a_kind_of_work_that_never_ends_keeps_no_other_from_its_turn(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "HOOK_TIME", timedelta(0))
    for number in range(3):
        placed(f"a-{number}", "prepare_order")
        abandon([f"a-{number}"], CheckoutFailed("stopped"))
    placed("z-waits", "prepare_order")
    set_order("z-waits", wait_until=utc_now() - timedelta(hours=3))
    recover_orders(limit=2)
    assert status("z-waits") == "compensated"
    assert sorted(status(f"a-{number}") for number in range(3)) == [
        "compensated",
        "compensated",
        "compensating",
    ]


@sqlite_only
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


@sqlite_only
def test_the_wait_of_an_order_whose_run_is_deleted_ends(runs: Runs) -> None:
    run = runs.client.create_flow_run(a_checkout, state=Crashed())
    placed("o-1", "prepare_order", run_id=str(run.id))
    set_order("o-1", wait_until=utc_now() - timedelta(minutes=1))
    runs.client.delete_flow_run(run.id)
    report = recover_orders()
    assert (report.moves, report.failed) == ({"expire": ["o-1"]}, {})
    assert status("o-1") == "compensated"


@sqlite_only
def test_an_answer_that_cannot_be_read_is_none(runs: Runs) -> None:
    run = runs.client.create_flow_run(a_checkout, state=Crashed())
    placed("o-1", "prepare_order", run_id=str(run.id))
    set_order("o-1", wait_until=utc_now() - timedelta(minutes=1))
    runs.client.create_flow_run_input(run.id, "paused-courier-1-x-response", '{"outcome": "maybe"}')
    assert recover_orders().failed == {}
    assert (status("o-1"), decisions("o-1")) == ("compensated", [])


@sqlite_only
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


@sqlite_only
def test_an_undo_that_fails_is_tried_once_in_a_round(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "HOOK_TIME", timedelta(0))
    ids = [f"o-{number}" for number in range(4)]
    for order_id in ids:
        placed(order_id, "prepare_order")
    abandon(ids, CheckoutFailed("stopped"))
    right = Ledger.refund

    def broken(ledger: Ledger, charges: Sequence[Charge]) -> dict[str, Answer]:
        if any(charge.order_id == "o-2" for charge in charges):
            raise ZeroDivisionError("a defect")
        return right(ledger, charges)

    monkeypatch.setattr(Ledger, "refund", broken)
    assert recover_orders().failed.keys() == {"compensate"}
    assert [status(id_) for id_ in ids] == [
        "compensated",
        "compensated",
        "compensation_failed",
        "compensated",
    ]
    assert saga_records("o-2")["bill_customer"].undo_tries == 1


@sqlite_only
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
    assert {status(id_) for id_ in ids} == {"waiting"}
    assert len(notices()) == 1
    assert recover_orders().moves == {"send again": ids}
