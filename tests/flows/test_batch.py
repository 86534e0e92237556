"""A batch's run from its file to its report, with failures, couriers that are full and crashes."""

import gc
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext
from prefect.states import Cancelling
from sqlalchemy.exc import OperationalError

from flows import batch
from flows.actions.by_hand import cancel_order
from flows.batch import batch_checkout
from flows.batches import chunk, wait
from flows.batches import report as batch_report
from flows.batches.report import Progress
from flows.compensation import compensate_run
from flows.dispatch import dispatch_orders
from flows.recovery import recover_orders
from orders.batches import count_by_status, failed_orders
from orders.intake import submit_orders
from orders.lookup import count_orders
from seed.catalogue import EDUARDO_SANTANA, TEN_X_RULE
from store.errors import (
    BatchFailed,
    BatchNotFound,
    TopicRefused,
    TopicUnavailable,
    UnreadableSource,
)
from store.messages import ASSIGNED, GO_ON, NO_COURIER, BatchAnswer
from store.models import OrderStatus
from store.notifications import Notice
from store.table_topic import TableTopic
from tasks.dispatch import dispatch_order
from tasks.retries import retried_task
from tests.flows.batches import Batches, run_id_of, submit
from tests.polling import PATIENCE_SECONDS, wait_until
from tests.shop import (
    add_customer,
    an_order,
    assign,
    assigned_copies,
    carry_on,
    decisions,
    end_run,
    kept_cents,
    order_row,
    placed,
    queued,
    remove_customer,
    set_capacities,
    status,
    stock,
)


def test_a_file_of_orders_ends_with_each_order_on_its_own(batches: Batches, tmp_path: Path) -> None:
    good = [{"orderId": f"o-{number}", "quantity": 1} for number in range(7)]
    orders = [
        *good,
        {"orderId": "too-many", "quantity": 501},
        {"orderId": "declined", "quantity": 2, "paymentMethod": "pm_card_chargeDeclined"},
        {"orderId": "too-large", "quantity": 201},
        {"orderId": "bad", "quantity": 0},
    ]
    path = tmp_path / "orders.jsonl"
    path.write_text(
        "".join(
            json.dumps({"userId": EDUARDO_SANTANA, "bookId": TEN_X_RULE, **order}) + "\n"
            for order in orders
        )
    )
    running = batches.start(source=str(path), chunk_size=5, tolerated_failures=0.5)
    state = batches.dispatched(running)

    assert state.is_completed(), state.message
    assert state.message == "10 orders: 7 dispatched, 2 rejected, 1 compensated; 1 lines rejected"
    assert {status(f"o-{number}") for number in range(7)} == {"dispatched"}
    assert {id_: order_row(id_).error for id_ in ("too-many", "declined", "too-large")} == {
        "too-many": "BookOutOfStock",
        "declined": "BillingError",
        "too-large": "NoCourierAvailable",
    }
    assert (stock(), kept_cents(), queued(), assigned_copies()) == (493, 7 * 20_00, [], {})
    report = state.result()
    assert (report.new, report.rejected_lines) == (10, 1)
    assert (report.captured_cents, report.refunded_cents) == (7 * 20_00, 0)
    assert report.slowest_step
    artifacts = batches.artifacts(run_id_of(state))
    assert set(artifacts) >= {"batch-progress", "batch-report", "batch-failed-orders"}
    assert artifacts["batch-progress"] == 100
    assert "140.00 USD" in artifacts["batch-report"]
    assert "| 11 | quantity |" in artifacts["batch-report"]
    assert len(json.loads(artifacts["batch-failed-orders"])) == 3
    assert [each.order_id for each in failed_orders(run_id_of(state))] == [
        "declined",
        "too-large",
        "too-many",
    ]

    # The same file once more: nothing is new, nothing is done twice.
    again = batches.start(source=str(path)).result()
    assert again.is_completed()
    assert again.message == "0 orders; 1 lines rejected"
    assert (stock(), kept_cents()) == (493, 7 * 20_00)


def test_two_batches_at_once_share_the_orders(batches: Batches) -> None:
    submit(20)
    first, second = batches.start(chunk_size=4), batches.start(chunk_size=4)
    states = [batches.dispatched(first), batches.dispatched(second)]
    assert [state.is_completed() for state in states] == [True, True]
    done = [count_by_status(run_id_of(state)).get("dispatched", 0) for state in states]
    assert sum(done) == 20
    assert (stock(), count_orders(OrderStatus.SUBMITTED), queued()) == (480, 0, [])


def test_prefect_keeps_nothing_of_the_chunks_that_are_done(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(40)
    kept = []
    show = Progress.show

    def look(progress: Progress, at_once: bool = False) -> None:
        context = FlowRunContext.get()
        assert context is not None
        kept.append(len(context.run_results))
        show(progress, at_once)

    monkeypatch.setattr(Progress, "show", look)
    batches.dispatched(batches.start(chunk_size=10, concurrency=1))
    assert len(kept) >= 8
    assert max(kept) < 10


def test_the_garbage_collector_leaves_out_what_is_there_before_the_chunks(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit_orders([an_order(f"too-many-{number}", 501) for number in range(3)])
    left_out = []

    def look() -> None:
        left_out.append(gc.get_freeze_count())

    monkeypatch.setattr(batch, "forget_results", look)
    batches.start(tolerated_failures=1).result()
    assert left_out[0] > 0
    assert gc.get_freeze_count() == 0


def test_a_batch_larger_than_its_couriers_hands_over_in_rounds(batches: Batches) -> None:
    set_capacities(only=5)
    submit(8)
    state = batches.dispatched(batches.start())
    assert state.message == "8 orders: 8 dispatched"
    assert (assigned_copies(), queued()) == ({}, [])


def test_a_batch_whose_orders_are_decided_at_once_does_not_pause(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait, "PATIENCE_SECONDS", PATIENCE_SECONDS)
    submit(2)
    running = batches.start()
    wait_until(lambda: status("o-001") == "waiting", "waiting orders")
    assert batches.dispatched(running).message == "2 orders: 2 dispatched"
    assert batches.forms(batches.found()[0]) == []


def test_the_run_is_resumed_for_the_last_decision_only(batches: Batches) -> None:
    set_capacities(only=5)
    submit(2)
    submit_orders([an_order("o-003", quantity=3)])
    placed("holds-the-courier", "find_couriers", 3)
    running = batches.start()
    run = batches.paused()
    dispatch_orders(listen_seconds=2)
    # Two of three were decided; the run was told to hand them over, and waits again.
    wait_until(lambda: decisions("o-000") and decisions("o-001"), "two decisions")
    assert not running.done()
    assert status("o-003") == "waiting"
    carry_on(["holds-the-courier"], after="find_couriers")
    assert batches.dispatched(running).is_completed()
    assert batches.runs.client.read_flow_run(run.id).state_type == StateType.COMPLETED


def test_a_person_answers_for_all_orders_that_still_wait(batches: Batches) -> None:
    submit(4)
    running = batches.start(chunk_size=2, tolerated_failures=0.5)
    run = batches.paused()
    runs = batches.runs
    assert runs.answer(run) == "REJECT"
    assert runs.answer(run, outcome="courier assigned") == "ACCEPT"
    run = batches.paused(after=1)
    assert status("o-000") == "waiting"
    assert runs.answer(run, outcome=NO_COURIER, reason="snow", answered_by="Ada") == "ACCEPT"
    state = running.result()
    with pytest.raises(BatchFailed, match="4 orders: 4 compensated; more than 50% failed"):
        state.result()
    assert (stock(), kept_cents(), order_row("o-000").message) == (500, 0, "snow")

    # A later run takes the failed ones alone, as new attempts.
    submit(1, "other")
    later = batches.dispatched(batches.start(failed_of=run_id_of(state)))
    assert later.message == "4 orders: 4 dispatched"
    assert (order_row("o-000").attempt, status("other-000")) == (2, "submitted")


def test_failed_orders_whose_customer_is_gone_are_named_and_not_taken_again(
    batches: Batches,
) -> None:
    submit(2, "stays", payment_method="pm_card_chargeDeclined")
    user_id = add_customer("leaves")
    submit(2, "goes", payment_method="pm_card_chargeDeclined", user_id=user_id)
    first = batches.start(tolerated_failures=1.0).result()
    remove_customer(user_id)
    state = batches.start(failed_of=run_id_of(first), tolerated_failures=1.0).result()
    assert state.message == "2 orders: 2 compensated; 2 not taken again, their customers are gone"
    assert state.result().without_customer == ["goes-000", "goes-001"]
    assert "goes-001" in batches.artifacts(run_id_of(state))["batch-report"]
    assert [order_row(id_).attempt for id_ in ("goes-000", "stays-000")] == [1, 2]


def test_an_answer_is_about_the_orders_that_waited_when_it_was_given(batches: Batches) -> None:
    submit(2)
    running = batches.start(tolerated_failures=1.0)
    run = batches.paused()
    assert batches.runs.answer(run, outcome=NO_COURIER, reason="snow") == "ACCEPT"
    assert running.result().message == "2 orders: 2 compensated"

    submit(2, "later")
    again = batches.again(run)
    batches.paused(after=1)
    assert status("later-000") == "waiting"
    assert batches.dispatched(again).message == "4 orders: 2 compensated, 2 dispatched"


def test_what_was_answered_to_a_dead_batch_is_recorded_before_others_begin_to_wait(
    batches: Batches,
) -> None:
    run = batches.died()
    placed("o-000", "prepare_order", run_id=str(run.id))
    submit(1, "other")
    answer = BatchAnswer(outcome=NO_COURIER, reason="snow", answered_by="Ada")
    batches.runs.client.create_flow_run_input(
        run.id, "paused-batch-x-response", answer.model_dump_json()
    )
    running = batches.again(run)
    batches.paused()
    assert (status("o-000"), status("other-000")) == ("compensated", "waiting")
    assert batches.dispatched(running).message == "2 orders: 1 compensated, 1 dispatched"
    assert order_row("o-000").message == "snow"


def test_who_answers_for_more_orders_than_the_courier_has_room_for_is_told(
    batches: Batches,
) -> None:
    set_capacities(small=2, large=9)
    submit(3)
    running = batches.start()
    run = batches.paused()
    assert batches.runs.answer(run, outcome=ASSIGNED, courier="small") == "ACCEPT"
    run = batches.paused(after=1)
    (remark,) = [form for form in batches.forms(run) if "wait on" in form]
    assert "**1 of 3 orders wait on:** courier small has no room for them" in remark
    assert batches.dispatched(running).message == "3 orders: 3 dispatched"


def test_the_wait_of_a_batch_ends(batches: Batches, setting: Callable[[str, object], None]) -> None:
    setting("courier_timeout_seconds", 3)
    submit(2)
    state = batches.start(tolerated_failures=1.0).result()
    assert state.message == "2 orders: 2 compensated"
    assert order_row("o-000").error == "CourierWaitExpired"


def test_a_defect_that_one_order_hits_costs_that_order_only(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(7)
    real = chunk.STEPS[1]

    @retried_task
    def calculate_total(order_ids: list[str]) -> list[str]:
        if "o-004" in order_ids:
            raise ZeroDivisionError("a defect")
        return real.fn(order_ids)

    steps = (chunk.STEPS[0], calculate_total, *chunk.STEPS[2:])
    monkeypatch.setattr(chunk, "STEPS", steps)
    state = batches.dispatched(batches.start())
    assert state.message == "7 orders: 6 dispatched, 1 compensated"
    assert order_row("o-004").message == "ZeroDivisionError: a defect"


def test_a_batch_that_died_goes_on_where_it_was(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(9)
    real = chunk.STEPS[-1]
    deaths = iter([False, True])

    @retried_task
    def prepare_order(order_ids: list[str]) -> list[str]:
        if next(deaths, False):
            raise SystemExit("the process is told to stop")
        return real.fn(order_ids)

    with monkeypatch.context() as patch:
        patch.setattr(chunk, "STEPS", (*chunk.STEPS[:-1], prepare_order))
        with pytest.raises(BaseException):  # noqa: B017, PT011
            batches.start(chunk_size=3, concurrency=1).result()
    (run,) = batches.runs._found("batch-checkout", FlowRunFilter())
    counts = count_by_status(str(run.id))
    assert (counts, count_orders(OrderStatus.SUBMITTED)) == ({"waiting": 3, "started": 3}, 3)
    assert kept_cents() == 6 * 20_00
    state = batches.dispatched(batches.again(run))
    assert state.message == "9 orders: 9 dispatched"
    assert (stock(), kept_cents()) == (491, 9 * 20_00)


def test_a_batch_that_starts_over_does_not_need_its_file_again(
    batches: Batches, tmp_path: Path
) -> None:
    gone = str(tmp_path / "gone.jsonl")
    run = batches.died(gone)
    placed("o-000", "prepare_order", run_id=str(run.id))
    state = batches.dispatched(batches.again(run, source=gone))
    assert state.message == "1 orders: 1 dispatched"
    report = batches.artifacts(str(run.id))["batch-report"]
    assert "Read to its end by an earlier execution of the run" in report


def test_a_file_that_nobody_has_read_is_asked_for(batches: Batches, tmp_path: Path) -> None:
    submit(1)
    state = batches.start(source=str(tmp_path / "orders.jsonl")).result()
    with pytest.raises(UnreadableSource, match=r"orders\.jsonl"):
        state.result()
    assert status("o-000") == "submitted"


@pytest.mark.parametrize(
    "refusal",
    [TopicUnavailable("away"), TopicRefused("no rights"), PermissionError("not allowed")],
)
def test_a_topic_that_refuses_neither_ends_the_batch_nor_refunds_who_waits(
    batches: Batches, monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    set_capacities(only=2)
    submit(4)
    publish = TableTopic.publish

    def refuses(topic: TableTopic, notices: Sequence[Notice]) -> None:
        if any(notice.order_id == "o-001" for notice in notices):
            raise refusal
        publish(topic, notices)

    impatient = dispatch_order.with_options(retry_delay_seconds=0)
    monkeypatch.setattr(chunk, "dispatch_order", impatient)
    with monkeypatch.context() as patch:
        patch.setattr(TableTopic, "publish", refuses)
        running = batches.start(chunk_size=1)
        run = batches.paused()
        set_capacities(only=10)
        state = batches.ended(running)
    assert state.is_completed()
    assert state.message == "4 orders: 3 dispatched, 1 dispatching"
    assert (status("o-001"), kept_cents()) == ("dispatching", 4 * 20_00)
    recovered = wait_until(lambda: recover_orders().moves, "recovery of the order")
    assert recovered == {"dispatch": ["o-001"]}
    assert count_by_status(str(run.id)) == {OrderStatus.DISPATCHED: 4}


def test_only_the_failed_orders_of_a_batch_can_be_asked_for(batches: Batches) -> None:
    submit(1)
    state = batches.start(failed_of="typo").result()
    with pytest.raises(BatchNotFound, match="in a run typo"):
        state.result()
    assert status("o-000") == "submitted"


def test_progress_that_cannot_be_counted_does_not_end_the_batch(
    batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: str) -> dict[str, int]:
        raise OperationalError("select", {}, Exception("the database is away"))

    monkeypatch.setattr(batch_report, "count_by_status", away)
    submit(2)
    assert batches.dispatched(batches.start()).message == "2 orders: 2 dispatched"


def test_an_order_of_a_batch_is_cancelled_alone_and_the_last_that_waits_wakes_it(
    batches: Batches,
) -> None:
    first, last = submit(2)
    running = batches.start(tolerated_failures=1)
    run = batches.paused()
    assert cancel_order(first, 1, "").status == "compensated"
    still = batches.runs.client.read_flow_run(run.id)
    assert (still.state_type, status(last)) == (StateType.PAUSED, "waiting")
    assert cancel_order(last, 1, "").status == "compensated"
    woken = batches.runs.client.read_flow_run(run.id)
    assert woken.state_type != StateType.PAUSED
    assert running.result().message == "2 orders: 2 compensated"
    assert (kept_cents(), stock()) == (0, 500)


def test_a_cancelled_batch_gives_everything_back(batches: Batches) -> None:
    submit(5)
    running = batches.start(chunk_size=2)
    run = batches.paused()
    compensate_run(batch_checkout, run, Cancelling())
    assert count_by_status(str(run.id)) == {"compensated": 5}
    assert (stock(), kept_cents()) == (500, 0)
    assert batches.runs.answer(run, outcome=GO_ON) == "ACCEPT"
    assert running.result().is_failed()


def test_recovery_leaves_a_batch_alone_that_works_and_ends_one_that_died(
    batches: Batches, setting: Callable[[str, object], None]
) -> None:
    submit(4)
    running = batches.start(chunk_size=2)
    run = batches.paused()
    report = recover_orders()
    assert (report.unfinished, report.moves) == (4, {})
    # The decisions came, and the resume was lost: recovery hands over, and wakes the batch.
    for number in range(4):
        assign(f"o-{number:03d}")
    setting("stalled_seconds", 1)

    def handed_over() -> bool:
        recover_orders()
        return count_by_status(str(run.id)) == {OrderStatus.DISPATCHED: 4}

    wait_until(handed_over, "all orders dispatched")
    wait_until(lambda: recover_orders() and running.done(), "the end of the batch")
    assert running.result().message == "4 orders: 4 dispatched"


def test_recovery_wakes_a_batch_that_pauses_for_nothing(batches: Batches) -> None:
    submit(1)
    running = batches.start(tolerated_failures=1.0)
    run = batches.paused()
    recover_orders()
    assert batches.runs.client.read_flow_run(run.id).state_type == StateType.PAUSED
    # As a cancellation that is killed before it wakes the run, or comes just before the pause.
    end_run("o-000")
    recover_orders()
    assert batches.runs.client.read_flow_run(run.id).state_type != StateType.PAUSED
    assert running.result().message == "1 orders: 1 compensated"
