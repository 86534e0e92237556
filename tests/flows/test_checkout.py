"""A checkout's run from its input to each of its endings."""

from collections.abc import Callable, Sequence
from threading import Event
from uuid import UUID

import httpx
import pytest
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import State
from prefect.states import Cancelling, Failed, Scheduled
from sqlalchemy.exc import OperationalError

from flows import checkout, compensation
from flows.checkout import is_taken_over, store_checkout
from flows.order import courier_wait
from flows.runs.continuation import CONTINUATION
from orders.ownership import change_owner
from orders.waits import expire_waits
from store.errors import (
    BillingError,
    BookOutOfStock,
    CourierWaitExpired,
    NoCourierAvailable,
    OrderIdConflict,
    OrderInProgress,
    QueueRefused,
    QueueUnavailable,
    UserNotFound,
)
from store.messages import ASSIGNED, NO_COURIER, Receipt
from store.table_queue import TableQueue
from tasks.billing import bill_customer
from tasks.dispatch import prepare_order
from tasks.inventory import check_inventory
from tests.flows.runs import Runs
from tests.polling import PATIENCE_SECONDS
from tests.shop import (
    an_order,
    assign,
    decisions,
    ledger,
    notices,
    order_row,
    place,
    points,
    saga,
    shop,
    status,
    stock,
)

SIX_STEPS = [
    "check_inventory",
    "calculate_total",
    "redeem_points",
    "bill_customer",
    "prepare_order",
    "dispatch_order",
]
EXAMPLE = an_order("example", 50, redeem=True)
AS_BEFORE = (500, 300)


def books() -> tuple[int, int]:
    return stock(), points()


def test_the_originals_example_is_dispatched(runs: Runs) -> None:
    running = runs.check_out(EXAMPLE)
    run = runs.paused("example")
    (form,) = runs.forms(run)
    assert "| The 10X Rule | 50 | 20.00 USD |" in form
    assert "Total 1000.00 USD, paid with 300 points and 700.00 USD." in form
    assert "`city-vans` (200 copies free)" in form
    runs.assign("example")

    state = running.result()
    assert state.is_completed()
    slip: Receipt = state.result()
    assert (slip.order_id, slip.status, slip.courier) == ("example", "dispatched", "city-vans")
    assert (slip.total_cents, slip.points_redeemed, slip.billed_cents) == (1000_00, 300, 700_00)
    assert books() == (450, 0)
    assert ledger() == [("example:1", "captured", 700_00)]

    run = runs.run_of("example")
    assert run.name == "example"
    assert order_row("example").run_id == str(run.id)
    timelines = runs.client.read_artifacts(
        artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
    )
    # A slow machine's has one of its wait as well.
    (last,) = (str(each.data) for each in timelines if "dispatched" in str(each.description))
    assert "### Order `example`: dispatched" in last
    assert "dispatch_order: courier city-vans" in last
    assert runs.tasks_of(run, at_least=6) == SIX_STEPS
    assert runs.compensations("example") == []


def test_a_run_without_an_order_id_is_named_by_the_order_that_it_is(runs: Runs) -> None:
    state = runs.check_out(an_order(None, 501)).result()
    assert state.is_failed()
    run_id = state.state_details.flow_run_id
    assert isinstance(run_id, UUID)
    run = runs.client.read_flow_run(run_id)
    assert run.name == f"501 of “The 10X Rule”, 10020.00 USD, {run.id}"
    assert status(str(run.id)) == "rejected"


def test_points_are_not_touched_by_an_order_that_does_not_redeem(runs: Runs) -> None:
    running = runs.check_out(an_order("plain", 50))
    run = runs.assign("plain")
    assert running.result().is_completed()
    assert books() == (450, 300)
    assert runs.tasks_of(run, at_least=5) == [s for s in SIX_STEPS if s != "redeem_points"]


@pytest.mark.parametrize(
    ("refusal", "calls"), [(QueueRefused("ExpiredToken"), 1), (QueueUnavailable("away"), 4)]
)
def test_a_run_whose_message_the_queue_does_not_take_waits_and_can_be_answered(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, refusal: Exception, calls: int
) -> None:
    sent = []

    def refuse(_: TableQueue, bodies: Sequence[str]) -> None:
        sent.append(bodies)
        raise refusal

    monkeypatch.setattr(TableQueue, "send", refuse)
    monkeypatch.setattr(prepare_order, "retry_delay_seconds", [0.0, 0.0, 0.0])
    running = runs.check_out(an_order("o-1", 2))
    runs.assign("o-1")
    assert running.result().is_completed()
    assert len(sent) == calls
    assert (status("o-1"), saga("o-1")["prepare_order"]) == ("dispatched", "intended")
    assert any(":queue-refuses:" in key for key in notices())


def test_an_order_that_no_courier_takes_is_given_back_under_its_run(runs: Runs) -> None:
    running = runs.check_out(EXAMPLE)
    run = runs.paused("example")
    assert runs.answer(run, outcome=NO_COURIER, reason="snow", answered_by="Ada") == "ACCEPT"
    state = running.result()
    assert state.is_failed()
    with pytest.raises(NoCourierAvailable, match=r"^snow\. To be given back: 700\.00 USD, 50 "):
        state.result()
    assert state.message is not None
    assert state.message.endswith(
        "NoCourierAvailable: snow. To be given back: 700.00 USD, 50 copies, 300 points."
    )
    assert "\n" not in state.message
    assert status("example") == "compensated"
    assert books() == AS_BEFORE
    assert saga("example") == {
        "check_inventory": "undone",
        "calculate_total": "done",
        "redeem_points": "undone",
        "bill_customer": "undone",
        "prepare_order": "done",
    }

    (undoing,) = runs.compensations("example")
    assert undoing.state is not None
    assert undoing.state.is_completed()
    assert runs.parent_of(undoing) == run.id
    assert runs.tasks_of(undoing, at_least=3) == [
        "refund_customer",
        "restore_quantity",
        "restore_points",
    ]


def test_only_what_was_done_is_undone(runs: Runs) -> None:
    state = runs.check_out(
        an_order("o-1", 50, redeem=True, payment_method="pm_card_chargeDeclined")
    ).result()
    with pytest.raises(BillingError, match=r"declined\. To be given back: 50 copies, 300 points"):
        state.result()
    (undoing,) = runs.compensations("o-1")
    assert runs.tasks_of(undoing, at_least=2) == ["restore_quantity", "restore_points"]
    assert (status("o-1"), books()) == ("compensated", AS_BEFORE)
    assert ledger() == [("o-1:1", "declined", 700_00)]
    assert runs.tasks_of(runs.run_of("o-1"), at_least=5) == [*SIX_STEPS[:4], "compensate"]


def test_a_rejected_order_undoes_nothing(runs: Runs) -> None:
    before = shop()
    state = runs.check_out(an_order("o-1", 501, redeem=True)).result()
    with pytest.raises(BookOutOfStock, match=r"501 asked for, 500 in stock\. Nothing was taken\."):
        state.result()
    assert (status("o-1"), shop(), saga("o-1")) == ("rejected", before, {})
    assert runs.compensations("o-1") == []
    assert runs.tasks_of(runs.run_of("o-1"), at_least=1) == ["check_inventory"]


def test_an_unknown_user_is_refused_and_nothing_is_recorded(runs: Runs) -> None:
    before = shop()
    state = runs.check_out(an_order("o-1", user_id="nobody", redeem=True)).result()
    with pytest.raises(UserNotFound, match="userId: no customer has the id nobody"):
        state.result()
    assert shop() == before
    assert runs.tasks_of(runs.run_of("o-1")) == []


def test_a_gateway_that_fails_twice_is_asked_again(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        checkout, "bill_customer", bill_customer.with_options(retry_delay_seconds=0)
    )
    running = runs.check_out(an_order("o-1", payment_method="pm_ledger_fail_2"))
    runs.assign("o-1")
    assert running.result().is_completed()
    assert ledger() == [("o-1:1", "captured", 20_00)]


def test_a_charge_that_stays_unknown_ends_the_order_after_four_tries(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        checkout, "bill_customer", bill_customer.with_options(retry_delay_seconds=0)
    )
    state = runs.check_out(an_order("o-1", payment_method="pm_ledger_fail_9")).result()
    with pytest.raises(
        BillingError, match=r"To be given back: 20\.00 USD, if it was captured, 1 copies\.$"
    ):
        state.result()
    assert (status("o-1"), ledger()) == ("compensated", [("o-1:1", "void", 20_00)])


def test_a_wait_that_nobody_answers_expires(
    runs: Runs, setting: Callable[[str, object], None]
) -> None:
    setting("courier_timeout_seconds", 2)
    state = runs.check_out(EXAMPLE).result()
    with pytest.raises(CourierWaitExpired, match=r"no courier answered until .* UTC\. To be "):
        state.result()
    assert (status("example"), books()) == ("compensated", AS_BEFORE)
    (undoing,) = runs.compensations("example")
    assert undoing.state is not None
    assert undoing.state.is_completed()


def test_a_decision_of_the_last_moment_beats_the_time_out(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, setting: Callable[[str, object], None]
) -> None:
    setting("courier_timeout_seconds", 2)

    def decide_first(order_ids: list[str]) -> None:
        assign(order_ids[0])
        expire_waits(order_ids)

    monkeypatch.setattr(courier_wait, "expire_waits", decide_first)
    state = runs.check_out(EXAMPLE).result()
    assert state.is_completed()
    assert status("example") == "dispatched"
    assert runs.run_of("example").state_type == state.type


def test_an_answer_without_sense_is_refused_and_the_run_waits_on(runs: Runs) -> None:
    running = runs.check_out(EXAMPLE)
    run = runs.paused("example")
    assert runs.answer(run, outcome=ASSIGNED) == "ACCEPT"
    run = runs.paused("example", after=1)
    told = runs.client.read_flow_run(run.id).state
    assert told is not None
    assert (told.message or "").startswith(
        "The last answer was refused: courier: give the courier's id for “courier assigned”. "
        "Order example waits for a courier until "
    )
    refused = [form for form in runs.forms(run) if "Your answer was refused" in form]
    assert len(refused) == 1
    assert "courier: give the courier's id for “courier assigned”" in refused[0]
    assert (status("example"), decisions("example")) == ("waiting", [])
    assert runs.answer(run, outcome=ASSIGNED, courier="night-rail") == "ACCEPT"
    assert running.result().result().courier == "night-rail"


def test_a_form_that_is_not_filled_in_is_rejected_by_prefect(runs: Runs) -> None:
    running = runs.check_out(EXAMPLE)
    run = runs.paused("example")
    assert runs.answer(run) == "REJECT"
    assert runs.answer(run, courier="city-vans") == "REJECT"
    assert runs.answer(run, outcome="maybe") == "REJECT"
    assert runs.answer(run, outcome=ASSIGNED, tip=5) == "REJECT"
    assert runs.paused("example").id == run.id
    runs.assign("example")
    assert running.result().is_completed()


def test_an_order_decided_before_the_pause_is_never_paused(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decided_at_once(order_ids: list[str]) -> list[str]:
        waiting = prepare_order(order_ids)
        assign(order_ids[0], "swift-bikes")
        return waiting

    monkeypatch.setattr(checkout, "prepare_order", decided_at_once)
    state = runs.check_out(EXAMPLE).result()
    assert state.result().courier == "swift-bikes"
    assert "PAUSED" not in runs.state_types(runs.run_of("example").id)


def test_a_second_run_of_an_order_ends_at_once_and_says_where_the_order_is(runs: Runs) -> None:
    first = runs.check_out(EXAMPLE)
    owner = runs.paused("example")
    second = runs.check_out(EXAMPLE).result()
    assert second.is_completed()
    assert "order example was sent before and is waiting" in (second.message or "")
    assert str(owner.id) in (second.message or "")
    assert (status("example"), order_row("example").run_id) == ("waiting", str(owner.id))
    runs.assign("example")
    receipt = first.result().result()
    assert runs.check_out(EXAMPLE).result().result() == receipt
    assert ledger() == [("example:1", "captured", 700_00)]
    assert books() == (450, 0)


def test_a_second_run_undoes_nothing_of_the_first_ones_order(runs: Runs) -> None:
    first = runs.check_out(EXAMPLE)
    run = runs.paused("example")
    assert runs.check_out(EXAMPLE).result().is_completed()
    assert runs.answer(run, outcome=NO_COURIER, reason="snow") == "ACCEPT"
    with pytest.raises(NoCourierAvailable, match="snow"):
        first.result().result()
    assert len(runs.compensations("example")) == 1
    assert (status("example"), books()) == ("compensated", AS_BEFORE)


def test_a_run_that_takes_an_order_over_may_begin_before_it_is_the_owner(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    place("example", 50, redeem=True, run_id="dead")
    heir = runs.client.create_flow_run(
        store_checkout, parameters={"order": EXAMPLE}, tags=[CONTINUATION], state=Scheduled()
    )
    begun = Event()

    def seen(order_id: str, run_id: str) -> bool:
        begun.set()
        return is_taken_over(order_id, run_id)

    monkeypatch.setattr(checkout, "is_taken_over", seen)
    running = runs.execute(heir)
    assert begun.wait(PATIENCE_SECONDS)
    change_owner("example", from_run="dead", to_run=str(heir.id))
    runs.assign("example")
    assert running.result().is_completed()
    assert status("example") == "dispatched"


def test_a_run_whose_order_cannot_be_recorded_for_an_outage_is_crashed(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise QueueUnavailable("the database is away")

    with monkeypatch.context() as patch:
        patch.setattr(checkout, "accept_order", away)
        state = runs.check_out(EXAMPLE).result(timeout=PATIENCE_SECONDS)
    assert (state.is_crashed(), state.message) == (
        True,
        "the order could not be recorded: QueueUnavailable",
    )


def test_a_run_with_the_same_order_id_and_other_content_does_the_first_no_harm(runs: Runs) -> None:
    first = runs.check_out(EXAMPLE)
    runs.paused("example")
    state = runs.check_out(an_order("example", 49, redeem=True)).result()
    with pytest.raises(OrderIdConflict, match="orderId: example belongs to an order with other"):
        state.result()
    assert (status("example"), books()) == ("waiting", (450, 0))
    assert runs.compensations("example") == []
    runs.assign("example")
    assert first.result().is_completed()


def test_a_retry_of_a_compensated_order_is_a_new_attempt_and_charges_once(runs: Runs) -> None:
    running = runs.check_out(EXAMPLE)
    run = runs.paused("example")
    runs.answer(run, outcome=NO_COURIER, reason="snow")
    assert running.result().is_failed()
    again = runs.retry(run, EXAMPLE)
    assert runs.assign("example").id == run.id
    assert again.result().is_completed()
    assert order_row("example").attempt == 2
    assert ledger() == [
        ("example:1", "captured", 700_00),
        ("example:1:refund", "refunded", 700_00),
        ("example:2", "captured", 700_00),
    ]
    assert books() == (450, 0)


def test_a_retry_of_a_rejected_order_tries_anew(runs: Runs) -> None:
    order = an_order("o-1", 501)
    assert runs.check_out(order).result().is_failed()
    assert runs.retry(runs.run_of("o-1"), order).result().is_failed()
    assert (status("o-1"), order_row("o-1").attempt, ledger()) == ("rejected", 2, [])


def test_a_retry_of_a_dispatched_order_gives_its_receipt_and_does_nothing(runs: Runs) -> None:
    running = runs.check_out(EXAMPLE)
    run = runs.assign("example")
    slip = running.result().result()
    before = shop()
    # The server retries no completed run, so it is made to have failed at the very end.
    runs.client.set_flow_run_state(run.id, Failed(), force=True)
    assert runs.retry(run, EXAMPLE).result().result() == slip
    assert (shop(), order_row("example").attempt) == (before, 1)


def test_a_run_that_starts_over_in_the_middle_does_only_the_rest(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def power_cut(_order_ids: list[str]) -> None:
        raise ConnectionResetError("the power is gone")

    with monkeypatch.context() as patch:
        patch.setattr(checkout, "prepare_order", power_cut)
        # The machine goes with the process: no hook runs.
        patch.setattr(checkout.store_checkout, "on_failure_hooks", [])
        assert runs.check_out(EXAMPLE).result().is_failed()
    assert (status("example"), books()) == ("started", (450, 0))
    again = runs.retry(runs.run_of("example"), EXAMPLE)
    runs.assign("example")
    assert again.result().is_completed()
    assert ledger() == [("example:1", "captured", 700_00)]
    assert (order_row("example").attempt, books()) == (1, (450, 0))


def test_a_defect_after_the_charge_gives_everything_back(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(_order_ids: list[str]) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(checkout, "prepare_order", defect)
    state = runs.check_out(EXAMPLE).result()
    assert state.is_failed()
    order = order_row("example")
    assert (order.status, order.error) == ("compensated", "CheckoutFailed")
    assert order.message is not None
    assert "ZeroDivisionError: division by zero" in order.message
    assert books() == AS_BEFORE


@pytest.mark.parametrize(
    "interruption",
    [
        httpx.ConnectError("Prefect's server"),
        OperationalError("SELECT 1", {}, OSError()),
        OrderInProgress("another process of this run has begun the order's next attempt"),
    ],
    ids=["Prefect's server is away", "the database is away", "another process is at it"],
)
def test_a_run_that_fails_for_no_reason_of_its_order_is_started_again_and_refunds_nothing(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, interruption: Exception
) -> None:
    def be_interrupted(_order_ids: list[str]) -> None:
        raise interruption

    started_again = []
    monkeypatch.setattr(checkout, "prepare_order", be_interrupted)
    monkeypatch.setattr(
        compensation, "continue_run", lambda _client, *run: started_again.append(run)
    )
    assert runs.check_out(EXAMPLE).result().is_failed()
    assert started_again == [(str(runs.run_of("example").id), ["example"])]
    assert (status("example"), books()) == ("started", (450, 0))


def test_a_failing_notification_after_the_pivot_refunds_nothing(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(_order_ids: list[str]) -> None:
        raise ZeroDivisionError("division by zero")

    with monkeypatch.context() as patch:
        patch.setattr(checkout, "dispatch_order", defect)
        running = runs.check_out(EXAMPLE)
        run = runs.assign("example")
        assert running.result().is_failed()
    assert status("example") == "dispatching"
    assert (books(), ledger()) == ((450, 0), [("example:1", "captured", 700_00)])
    assert runs.compensations("example") == []
    assert runs.retry(run, EXAMPLE).result().is_completed()
    assert (status("example"), ledger()) == ("dispatched", [("example:1", "captured", 700_00)])


def test_a_cancelled_run_gives_its_order_back(runs: Runs) -> None:
    place("o-1", 50, redeem=True, run_id=str(UUID(int=7)))
    check_inventory.fn(["o-1"])
    run = runs.client.create_flow_run(checkout.store_checkout, parameters={"order": {}})
    run.id = UUID(int=7)
    compensation.compensate_run(checkout.store_checkout, run, Cancelling())
    order = order_row("o-1")
    assert (order.status, order.error) == ("compensated", "OrderCancelled")
    assert books() == AS_BEFORE


def test_a_server_that_was_away_is_no_failure_of_the_order(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    continued: list[list[str]] = []
    monkeypatch.setattr(compensation, "continue_run", lambda *call: continued.append(call[2]))
    place("o-1", 50, redeem=True, run_id=str(UUID(int=7)))
    check_inventory.fn(["o-1"])
    run = runs.client.create_flow_run(checkout.store_checkout, parameters={"order": {}})
    run.id = UUID(int=7)
    away: State[object] = Failed(data=httpx.ConnectError("the server is away"))
    compensation.compensate_run(checkout.store_checkout, run, away)
    assert (status("o-1"), stock(), continued) == ("started", 450, [["o-1"]])
