"""An order is cancelled with all that it took, exactly as shown; too late it is left alone."""

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import State, StateDetails, StateType
from prefect.states import Failed, Late, Paused, Running, Scheduled

from console import orders
from flows import compensation
from flows.actions import by_hand
from flows.actions.by_hand import cancel_order
from flows.batch import batch_checkout
from flows.checkout import store_checkout
from flows.recovery import recover_orders
from orders.intake import submit_orders
from store.embedded_gateway import EmbeddedGateway
from store.errors import (
    CourierHasOrder,
    CourierWaitExpired,
    NothingToCancel,
    OrderError,
    RunTakenAway,
)
from store.models import OrderStatus, utc_now
from tests.flows.runs import Runs
from tests.shop import (
    an_order,
    assign,
    at_once,
    carry_on,
    end_run,
    kept_cents,
    ledger,
    order_row,
    place,
    placed,
    points,
    set_order,
    shop,
    status,
    stock,
)

from .conftest import Call

PREVIEW = """\
Order o-1 (attempt 1) is waiting.
Cancelling it gives back:
  refund_customer   700.00 USD
  restore_quantity  50 of “The 10X Rule”
  restore_points    300 points
"""


@pytest.mark.parametrize("typed", ["n\n", "\n", ""])
def test_without_a_yes_it_is_shown_what_would_be_given_back_and_nothing_happens(
    runs: Runs, checkout: Call, typed: str
) -> None:
    placed("o-1", "prepare_order", 50, redeem=True)
    before = shop()
    said = checkout("cancel", "o-1", typed=typed)
    assert (said.status, said.out) == (1, PREVIEW)
    assert "Cancel order o-1? [y/N]" in said.err
    assert "Nothing was changed." in said.err
    assert (status("o-1"), shop()) == ("waiting", before)


@pytest.mark.parametrize("named", [True, False], ids=["named by its order", "named by Prefect"])
def test_an_order_that_no_run_has_recorded_yet_is_cancelled_with_its_run(
    deployment: Runs, checkout: Call, named: bool
) -> None:
    order_id = f"to-come-{named}"
    found = deployment.client.read_deployment_by_name("store-checkout/local")
    run = deployment.client.create_flow_run_from_deployment(
        found.id,
        parameters={"order": an_order(order_id).content() | {"orderId": order_id}},
        name=order_id if named else None,
    )
    shown = checkout("show", order_id, "--json").data
    assert shown["next"].startswith("It is recorded as soon as its run begins: ")
    asked = checkout("cancel", order_id, typed="n\n")
    assert (asked.status, asked.out) == (1, "")
    assert "is not recorded yet, and has taken nothing" in asked.err
    said = checkout("cancel", order_id, "--yes", "--json")
    assert said.data == {"order_id": order_id, "status": None, "cancelled_runs": [str(run.id)]}
    assert deployment.state_types(run.id)[-1] == "CANCELLED"
    again = checkout("cancel", order_id, "--yes")
    assert (again.status, f"There is no order {order_id}" in again.err) == (1, True)


def test_the_id_of_an_orders_run_is_not_taken_for_an_order_that_has_taken_nothing(
    runs: Runs, checkout: Call
) -> None:
    run = runs.client.create_flow_run(store_checkout, parameters={"order": an_order("o-1")})
    runs.client.set_flow_run_state(run.id, Paused(timeout_seconds=60), force=True)
    placed("o-1", "prepare_order", run_id=str(run.id))
    for command in (["cancel", "--yes"], ["show"]):
        said = checkout(*command, str(run.id))
        assert (said.status, said.out) == (1, "")
        assert f"no order {run.id}; this is the id of the run of order o-1." in said.err
    assert runs.client.read_flow_run(run.id).state_type == StateType.PAUSED
    batch = runs.client.create_flow_run(batch_checkout, parameters={})
    for order_id in ("o-2", "o-3"):
        place(order_id, run_id=str(batch.id))
    said = checkout("show", str(batch.id))
    assert (said.status, "this is the id of a batch's run" in said.err) == (1, True)


def test_with_a_yes_all_that_was_shown_is_given_back_through_a_compensation(
    runs: Runs, checkout: Call
) -> None:
    placed("o-1", "prepare_order", 50, redeem=True)
    said = checkout("cancel", "o-1", "--reason", "ordered twice", typed="y\n")
    ending = (
        "Order o-1 is compensated: cancelled by a person: ordered twice. "
        "Given back: 700.00 USD, 50 copies, 300 points.\n"
    )
    assert (said.status, said.out) == (0, PREVIEW + ending)
    assert order_row("o-1").error == "OrderCancelled"
    assert (stock(), points(), kept_cents()) == (500, 300, 0)
    (run,) = runs.compensations("o-1")
    assert run.state is not None
    assert run.state.is_completed()


def test_a_program_gets_what_was_given_back_as_data_and_is_not_asked(
    runs: Runs, checkout: Call
) -> None:
    placed("o-1", "prepare_order", 50, redeem=True)
    said = checkout("cancel", "o-1", "--yes", "--json")
    assert (said.status, said.err) == (0, "")
    answer = said.data
    assert (answer["status"], answer["error"]) == ("compensated", "OrderCancelled")
    assert [(undo["undo"], undo["at_stake"]) for undo in answer["preview"]] == [
        ("refund_customer", "700.00 USD"),
        ("restore_quantity", "50 of “The 10X Rule”"),
        ("restore_points", "300 points"),
    ]


def test_an_order_that_took_nothing_is_rejected(runs: Runs, checkout: Call) -> None:
    place("o-1")
    submit_orders([an_order("o-2")])
    for order_id in ("o-1", "o-2"):
        said = checkout("cancel", order_id, "--yes")
        assert said.status == 0
        assert "gives nothing back" in said.out
        assert "cancelled by a person. Nothing was taken." in said.out
        assert status(order_id) == "rejected"


@pytest.mark.parametrize("up_to", ["find_couriers", "dispatch_order"])
def test_an_order_that_a_courier_has_accepted_is_not_cancelled(
    runs: Runs, checkout: Call, up_to: str
) -> None:
    placed("o-1", up_to, 50, redeem=True)
    before = status("o-1"), shop()
    said = checkout("cancel", "o-1", "--yes")
    assert (said.status, said.out) == (1, "")
    assert f"order o-1 is {before[0]}: courier city-vans has accepted it" in said.err
    assert (status("o-1"), shop()) == before


def test_an_order_that_has_ended_is_not_cancelled_again(runs: Runs, checkout: Call) -> None:
    placed("o-1", "bill_customer")
    assert checkout("cancel", "o-1", "--yes").status == 0
    said = checkout("cancel", "o-1", "--yes")
    assert (said.status, said.out) == (1, "")
    assert "compensated already (OrderCancelled: cancelled by a person)" in said.err


def between_preview_and_yes(patch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    def confirmed(_: str) -> bool:
        act()
        return True

    patch.setattr(orders, "confirmed", confirmed)


def test_a_courier_who_accepts_between_the_question_and_the_answer_has_the_order(
    runs: Runs, checkout: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed("o-1", "prepare_order", 50, redeem=True)
    between_preview_and_yes(monkeypatch, lambda: assign("o-1", "night-rail"))
    said = checkout("cancel", "o-1")
    assert (said.status, said.out) == (1, PREVIEW)
    assert "courier night-rail has accepted it" in said.err
    assert (status("o-1"), kept_cents()) == ("dispatching", 700_00)
    carry_on(["o-1"], after="find_couriers")


def test_an_order_whose_time_ends_between_the_question_and_the_answer_keeps_its_own_reason(
    runs: Runs, checkout: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed("o-1", "prepare_order", 50, redeem=True)
    late = CourierWaitExpired("no courier answered")
    between_preview_and_yes(monkeypatch, lambda: end_run("o-1", late))
    said = checkout("cancel", "o-1")
    assert said.status == 1
    assert "compensated already (CourierWaitExpired: no courier answered)" in said.err
    assert len(ledger("o-1")) == 2


def test_another_attempt_that_is_begun_between_the_question_and_the_answer_is_left_alone(
    runs: Runs, checkout: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed("o-1", "prepare_order", 50, redeem=True)

    def try_again() -> None:
        end_run("o-1")
        placed("o-1", "prepare_order", 50, redeem=True)

    between_preview_and_yes(monkeypatch, try_again)
    said = checkout("cancel", "o-1")
    assert said.status == 1
    assert "attempt 1 of order o-1 has ended, and somebody has begun another one" in said.err
    assert (status("o-1"), order_row("o-1").attempt, kept_cents()) == ("waiting", 2, 700_00)


def test_another_attempt_that_is_begun_at_the_last_moment_is_left_alone(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed("o-1", "prepare_order", 50, redeem=True)
    act = compensation.fail_and_compensate

    def overtaken(meant: dict[str, int], error: OrderError) -> None:
        end_run("o-1")
        placed("o-1", "prepare_order", 50, redeem=True)
        act(meant, error)

    monkeypatch.setattr(by_hand, "fail_and_compensate", overtaken)
    with pytest.raises(NothingToCancel, match="somebody has begun another one, which is waiting"):
        cancel_order("o-1", 1, "")
    assert (order_row("o-1").attempt, kept_cents()) == (2, 700_00)


def test_what_is_billed_between_the_question_and_the_answer_is_given_back_as_well(
    runs: Runs, checkout: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed("o-1", "redeem_points", 50, redeem=True)
    between_preview_and_yes(
        monkeypatch, lambda: carry_on(["o-1"], "prepare_order", after="redeem_points")
    )
    said = checkout("cancel", "o-1")
    assert "refund_customer" not in said.out
    assert "Given back: 700.00 USD, 50 copies, 300 points." in said.out
    assert kept_cents() == 0


def test_of_two_cancellations_and_a_courier_at_the_same_moment_one_decides(runs: Runs) -> None:
    placed("o-1", "prepare_order", 50, redeem=True)
    rivals: list[Callable[[], object]] = [
        lambda: cancel_order("o-1", 1, "once"),
        lambda: cancel_order("o-1", 1, "twice"),
        lambda: assign("o-1", "city-vans"),
    ]
    outcomes = at_once(rivals)
    failures = [type(o) for o in outcomes if isinstance(o, Exception)]
    if status("o-1") == OrderStatus.DISPATCHING:
        assert failures == [CourierHasOrder, CourierHasOrder]
        assert kept_cents() == 700_00
        carry_on(["o-1"], after="find_couriers")
    else:
        assert status("o-1") == OrderStatus.COMPENSATED
        assert set(failures) <= {NothingToCancel}
        assert len(ledger("o-1")) == 2
        assert (stock(), points(), kept_cents()) == (500, 300, 0)


def test_a_cancellation_while_recovery_compensates_gives_everything_back_once(runs: Runs) -> None:
    placed("o-1", "prepare_order", 50, redeem=True)
    set_order("o-1", wait_until=utc_now().replace(year=2020))
    rivals: list[Callable[[], object]] = [lambda: cancel_order("o-1", 1, ""), recover_orders]
    cancelled, recovered = at_once(rivals)
    assert not isinstance(recovered, Exception)
    assert not isinstance(cancelled, Exception) or isinstance(cancelled, NothingToCancel)
    assert status("o-1") == "compensated"
    assert order_row("o-1").error in ("OrderCancelled", "CourierWaitExpired")
    assert len(ledger("o-1")) == 2
    assert (stock(), points(), kept_cents()) == (500, 300, 0)


CAPTURED = [("o-1:1", "captured", 700_00), ("o-1:1:refund", "refunded", 700_00)]


@pytest.mark.parametrize(
    ("is_captured_first", "movements"), [(False, [("o-1:1", "void", 700_00)]), (True, CAPTURED)]
)
def test_an_order_cancelled_in_the_middle_of_its_charge_costs_nothing(
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
    is_captured_first: bool,
    movements: list[tuple[str, str, int]],
) -> None:
    capture = EmbeddedGateway.capture

    def cancelled_meanwhile(gateway: EmbeddedGateway, charges: Any) -> Any:
        if is_captured_first:
            answers = capture(gateway, charges)
        runs.in_thread(lambda: cancel_order("o-1", 1, "")).result()
        return answers if is_captured_first else capture(gateway, charges)

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddedGateway, "capture", cancelled_meanwhile)
        # Prefect's server on SQLite stands still for a minute where an artifact meets other writes.
        patch.setattr(compensation, "report_orders", lambda _: None)
        ended = runs.check_out(an_order("o-1", 50, redeem=True)).exception()
    assert ended is None or isinstance(ended, RunTakenAway)
    assert (status("o-1"), ledger("o-1")) == ("compensated", movements)
    assert (stock(), points(), kept_cents()) == (500, 300, 0)
    assert runs.run_of("o-1").state_type in (StateType.CANCELLING, StateType.CANCELLED)


SUSPENDED: State[Any] = State(
    type=StateType.PAUSED, name="Suspended", state_details=StateDetails(pause_reschedule=True)
)
ENDS_AS: list[tuple[State[Any], StateType]] = [
    (Scheduled(), StateType.CANCELLED),
    (Late(), StateType.CANCELLED),
    (SUSPENDED, StateType.CANCELLED),
    (Running(), StateType.CANCELLING),
    (Paused(timeout_seconds=60), StateType.CANCELLING),
    (Failed(), StateType.FAILED),
]
"""A run without a process ends at once; one with a process is for its worker to end."""


def test_no_process_goes_on_with_a_cancelled_order(runs: Runs) -> None:
    ended = []
    for number, (state, _) in enumerate(ENDS_AS):
        order = an_order(f"o-{number}")
        run = runs.client.create_flow_run(
            store_checkout, parameters={"order": order}, state=Scheduled()
        )
        runs.client.set_flow_run_state(run.id, state.fresh_copy(), force=True)
        place(f"o-{number}", run_id=str(run.id))
        cancel_order(f"o-{number}", 1, "")
        ended.append((state, runs.client.read_flow_run(run.id).state_type))
    assert ended == ENDS_AS


def test_an_order_whose_run_is_gone_or_was_never_started_is_cancelled_all_the_same(
    runs: Runs,
) -> None:
    placed("o-1", "prepare_order", run_id=str(uuid4()))
    assert cancel_order("o-1", 1, "").status == "compensated"


def test_what_cannot_be_given_back_is_loud_and_its_run_is_ended(
    runs: Runs, checkout: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.client.create_flow_run(store_checkout, parameters={"order": an_order("o-1")})
    runs.client.set_flow_run_state(run.id, Running(), force=True)
    placed("o-1", "prepare_order", 50, redeem=True, run_id=str(run.id))
    with monkeypatch.context() as patch:
        patch.setattr(EmbeddedGateway, "refund", lambda *_: 1 / 0)
        said = checkout("cancel", "o-1", "--yes")
    assert said.status == 1
    assert "not everything could be given back for o-1" in said.err
    assert "Traceback" not in said.err
    assert (status("o-1"), order_row("o-1").error) == ("compensation_failed", "OrderCancelled")
    assert runs.client.read_flow_run(UUID(str(run.id))).state_type == StateType.CANCELLING
    assert checkout("compensations", "retry", "o-1").status == 0
