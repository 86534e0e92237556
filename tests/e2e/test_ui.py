"""Orders in the Prefect UI, in a real browser: started, answered, cancelled and tried again.

One of them is started, cancelled and tried again by the command `checkout` instead.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect
from sqlmodel import select

from deployments.example_order import EXAMPLE_ORDER
from deployments.holdings import open_store
from deployments.local import CHECKOUT_DEPLOYMENT
from flows.batches.report import markdown
from flows.order.events import artifact_key
from orders.batches import FailedOrder
from seed.catalogue import JOHN_DOE, STRIPED_PAJAMAS
from store.database import engine
from store.messages import ASSIGNED, NO_COURIER, CheckoutOrder
from store.models import Decision, Notification, Order, OrderStatus
from store.settings import settings
from tests.books_balance import assert_books_balance
from tests.flows.test_batch_report import REPORT
from texts.words import shown_id

from .conftest import PASSWORD, USER, RunningSystem, checkout, status_of, wait_until
from .no_dispatcher import no_dispatcher
from .prefect_ui import WAIT_MS, PrefectUi, assert_fits, browser_page, see

pytestmark = pytest.mark.timeout(900)

# The example in another customer's name: the demo, on the same system, counts the points of its.
TYPED_ORDER = json.loads(EXAMPLE_ORDER) | {"userId": JOHN_DOE}

WITHOUT_A_COURIER = "0123456789abcdef" * 4
"""An order's id as long as ids may be, in which no line breaks."""
BY_COMMAND = (
    *("--order-id", "by-command", "--user", JOHN_DOE),
    *("--book", STRIPED_PAJAMAS, "--quantity", "2"),
)


@pytest.fixture(scope="module")
def people_answer(local_system: RunningSystem) -> Iterator[RunningSystem]:
    """The system while nobody but people answers its orders."""
    with no_dispatcher(local_system.local.api_url, (USER, PASSWORD)):
        yield local_system


@pytest.fixture(scope="module")
def waiting_runs(people_answer: RunningSystem) -> dict[str, str]:
    """The runs, by order id, that wait for a person; their processes start during other tests."""
    return {
        order_id: str(
            checkout(
                people_answer.api,
                {"orderId": order_id, "userId": JOHN_DOE, "bookId": STRIPED_PAJAMAS, "quantity": 2},
            ).id
        )
        for order_id in (WITHOUT_A_COURIER, "cancelled-by-a-person")
    } | {"by-command": command(people_answer, "submit", *BY_COMMAND)["run_id"]}


@pytest.fixture(scope="module")
def ui(people_answer: RunningSystem) -> Iterator[PrefectUi]:
    with browser_page() as page:
        ui = PrefectUi(page, people_answer.local.ui_url)
        ui.log_in(f"{USER}:{PASSWORD}")
        yield ui


@pytest.fixture(scope="module")
def typed_run(people_answer: RunningSystem, waiting_runs: dict[str, str], ui: PrefectUi) -> str:
    """The run of an order that was typed into the deployment's form."""
    deployment_id = str(people_answer.api.read_deployment_by_name(CHECKOUT_DEPLOYMENT).id)
    ui.fill_run_form(deployment_id, TYPED_ORDER)
    labels = ui.main.get_by_text(re.compile("^(Customer id|Copies|Cart|Payment method)\\b"))
    assert labels.all_inner_texts() == [
        *("Customer id", "Copies (Optional)", "Cart (Optional)", "Payment method (Optional)")
    ]
    assert_fits(ui.main)
    return ui.submit_run_form()


@pytest.fixture(scope="module")
def compensated_run(
    people_answer: RunningSystem, waiting_runs: dict[str, str], ui: PrefectUi
) -> str:
    """The run of an order for which a person, led by the shop's notice, found no courier."""
    order_id = WITHOUT_A_COURIER
    key = f"{order_id}:1:waiting"
    wait_until(lambda: notice(people_answer, key), "notice of the wait")
    found = notice(people_answer, key)
    assert found is not None
    ui.page.goto(found.data["formUrl"])
    ui.see_state("Paused")
    see(ui.open_tab("Details"), f"Order {shown_id(order_id)} waits for a courier until")
    assert_fits(ui.main)
    form = ui.open_answer_form()
    # The whole form does not fit: its first line, which is Prefect's, has the run's name.
    assert_fits(form.get_by_text("waits for a courier until"))
    ui.fill_answer_form(form, NO_COURIER, reason="the couriers are on strike", answered_by="Ann")
    ui.submit_answer_form(form)
    ui.see_state("Failed")
    wait_for_status(people_answer, order_id, OrderStatus.COMPENSATED)
    return waiting_runs[order_id]


def command(system: RunningSystem, *arguments: str) -> Any:
    """Call the command `checkout` as a person does; return what it printed as JSON."""
    said = subprocess.run(
        [str(Path(sys.executable).parent / "checkout"), *arguments, "--json"],
        env={**os.environ, **system.local.settings()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)


def read_order(system: RunningSystem, order_id: str) -> Order:
    with open_store(system.local.store_url) as session:
        order = session.get_one(Order, order_id)
        session.expunge(order)
        return order


def notice(system: RunningSystem, key: str) -> Notification | None:
    with open_store(system.local.store_url) as session:
        found = session.get(Notification, key)
        session.expunge_all()
        return found


def pauses(system: RunningSystem, run_id: str) -> int:
    """How often the run has paused. Its page may show the pause of before for a while."""
    states = httpx.get(
        f"{system.api.url}/flow_run_states/",
        params={"flow_run_id": run_id},
        auth=(USER, PASSWORD),
    )
    return sum(state["type"] == "PAUSED" for state in states.raise_for_status().json())


def wait_for_status(system: RunningSystem, order_id: str, status: OrderStatus) -> None:
    wait_until(
        lambda: status_of(system.local.store_url, order_id) == status, f"{status} {order_id}"
    )


def wait_for_timeline(system: RunningSystem, order_id: str, status: OrderStatus) -> None:
    """Wait until the newest timeline is that of the status: a hook writes it, after the run."""
    wanted = {"artifacts": {"key": {"any_": [artifact_key(order_id)]}}}

    def is_told() -> bool:
        answer = httpx.post(
            f"{system.local.api_url}/artifacts/latest/filter",
            json=wanted,
            auth=(USER, PASSWORD),
            timeout=60,
        )
        newest = answer.raise_for_status().json()
        return bool(newest) and f"# Order `{shown_id(order_id)}`: {status}" in newest[0]["data"]

    wait_until(is_told, f"timeline of {order_id}, {status}")


def test_an_order_typed_into_the_deployments_form_waits_for_its_courier(
    people_answer: RunningSystem, ui: PrefectUi, typed_run: str
) -> None:
    ui.open_run(typed_run)
    ui.see_state("Paused")
    see(ui.open_tab("Details"), f"Order {typed_run} waits for a courier until")
    assert_fits(ui.open_tab("Details"))
    form = ui.open_answer_form()
    see(form, f"Order {typed_run} waits for a courier until")
    assert_fits(form)
    order = read_order(people_answer, typed_run)
    # What was left empty in the form is left out, and not sent as an empty text.
    assert order.request == CheckoutOrder.model_validate(TYPED_ORDER).content()
    assert order.status == OrderStatus.WAITING


def test_the_deployments_page_leads_to_the_orders_that_wait_and_those_that_failed(
    people_answer: RunningSystem, typed_run: str, ui: PrefectUi
) -> None:
    deployment = people_answer.api.read_deployment_by_name(CHECKOUT_DEPLOYMENT)
    order = ui.main.get_by_role("link", name=people_answer.api.read_run(typed_run).name)
    for list_of, is_in_it in (("wait for an answer", True), ("failed today", False)):
        ui.open_deployment(deployment.id)
        ui.follow(list_of)
        count = ui.main.get_by_text(re.compile(r"^\d+ Flow runs?$"))
        expect(count).to_be_visible(timeout=WAIT_MS)
        expect(order).to_have_count(int(is_in_it), timeout=WAIT_MS)
        assert_fits(ui.main)


def test_an_answer_that_makes_no_sense_is_refused_in_the_form_and_the_order_waits_on(
    people_answer: RunningSystem, ui: PrefectUi, typed_run: str
) -> None:
    refusal = "courier: give the courier's id for “courier assigned”"
    ui.open_run(typed_run)
    ui.see_state("Paused")
    ui.answer(ASSIGNED, answered_by="Ann")
    wait_until(lambda: pauses(people_answer, typed_run) == 2, "second pause of the run")
    ui.open_run(typed_run)
    ui.see_state("Paused")
    see(ui.open_tab("Details"), f"The last answer was refused: {refusal}.")
    form = ui.open_answer_form()
    see(form, f"Your answer was refused. {refusal}")
    see(form.get_by_role("button", name="Select Outcome"), ASSIGNED)
    expect(form.get_by_label(re.compile("^Answered by"))).to_have_value("Ann")
    assert_fits(form)
    assert status_of(people_answer.local.store_url, typed_run) == OrderStatus.WAITING


def test_a_courier_typed_into_the_form_completes_the_run_and_its_timeline_tells_it(
    people_answer: RunningSystem, ui: PrefectUi, typed_run: str
) -> None:
    ui.open_run(typed_run)
    ui.see_state("Paused")
    # The outcome and who answers are filled in.
    form = ui.open_answer_form()
    ui.fill_answer_form(form, ASSIGNED, courier="city-vans")
    ui.submit_answer_form(form)
    ui.see_state("Completed")
    see(ui.open_tab("Task Runs"), "dispatch_order")
    wait_for_timeline(people_answer, typed_run, OrderStatus.DISPATCHED)
    timeline = ui.open_timeline(OrderStatus.DISPATCHED)
    see(timeline, f"Order {typed_run}: {OrderStatus.DISPATCHED}")
    see(timeline.get_by_role("row").filter(has_text=ASSIGNED), "city-vans, by Ann")
    assert_fits(timeline)
    order = read_order(people_answer, typed_run)
    assert (order.status, order.courier_id) == (OrderStatus.DISPATCHED, "city-vans")


def test_no_courier_fails_the_run_and_its_compensation_is_a_subflow_run_with_its_undos(
    people_answer: RunningSystem, ui: PrefectUi, compensated_run: str
) -> None:
    ui.open_run(compensated_run)
    ui.see_state("Failed")
    see(
        ui.open_tab("Details"),
        "NoCourierAvailable: the couriers are on strike. To be given back: 150.00 USD, 2 copies.",
    )
    wait_for_timeline(people_answer, WITHOUT_A_COURIER, OrderStatus.COMPENSATED)
    assert_fits(ui.open_tab("Artifacts"))
    timeline = ui.open_timeline(OrderStatus.COMPENSATED)
    see(timeline, f"Order {shown_id(WITHOUT_A_COURIER)}: {OrderStatus.COMPENSATED}")
    assert_fits(timeline)
    ui.open_run(compensated_run)
    ui.open_compensation()
    assert_fits(ui.main)
    undos = ui.open_tab("Task Runs")
    for undo in ("refund_customer", "restore_quantity"):
        see(undos.get_by_role("listitem").filter(has_text=undo).first, "Completed")
    with open_store(people_answer.local.store_url) as session:
        decision = session.exec(
            select(Decision).where(Decision.order_id == WITHOUT_A_COURIER, Decision.attempt == 1)
        ).one()
        assert (decision.outcome, decision.decided_by) == (NO_COURIER, "Ann")


def test_retry_of_a_compensated_run_is_a_second_attempt_that_can_be_finished(
    people_answer: RunningSystem, ui: PrefectUi, compensated_run: str
) -> None:
    ui.open_run(compensated_run)
    ui.see_state("Failed")
    ui.retry_run()
    ui.see_state("Paused")
    order = read_order(people_answer, WITHOUT_A_COURIER)
    assert (order.status, order.attempt) == (OrderStatus.WAITING, 2)
    ui.answer(ASSIGNED, courier="night-rail")
    ui.see_state("Completed")
    order = read_order(people_answer, WITHOUT_A_COURIER)
    assert (order.status, order.attempt) == (OrderStatus.DISPATCHED, 2)
    wait_for_timeline(people_answer, WITHOUT_A_COURIER, OrderStatus.DISPATCHED)
    timeline = ui.open_timeline(OrderStatus.DISPATCHED)
    see(timeline, f"Order {shown_id(WITHOUT_A_COURIER)}: {OrderStatus.DISPATCHED}")


def test_a_batchs_report_shows_its_pictures_and_fits(
    people_answer: RunningSystem, ui: PrefectUi, setting: Callable[[str, object], None]
) -> None:
    setting("database_url", people_answer.local.store_url)
    failed = FailedOrder(WITHOUT_A_COURIER, "compensated", "BillingError", "declined")
    # Prefect's client would start a server of its own for the event of it.
    report = httpx.post(
        f"{people_answer.local.api_url}/artifacts/",
        json={"type": "markdown", "key": "drawn", "data": markdown(REPORT, "run", [failed])},
        auth=(USER, PASSWORD),
    )
    ui.page.goto(f"{ui.url}/artifacts/artifact/{report.raise_for_status().json()['id']}")
    shown = ui.main.get_by_role("tabpanel", name="Artifact", exact=True)
    expect(shown.get_by_role("img")).to_have_count(4, timeout=WAIT_MS)
    for picture in shown.get_by_role("img").all():
        assert picture.evaluate("picture => picture.decode().then(() => picture.naturalWidth)") > 0
    assert_fits(shown)


def test_a_paused_run_cancelled_in_the_ui_is_compensated(
    people_answer: RunningSystem, ui: PrefectUi, waiting_runs: dict[str, str]
) -> None:
    order_id = "cancelled-by-a-person"
    ui.open_run(waiting_runs[order_id])
    ui.see_state("Paused")
    ui.cancel_run()
    ui.see_state("Cancelled")
    wait_for_status(people_answer, order_id, OrderStatus.COMPENSATED)
    assert read_order(people_answer, order_id).error == "OrderCancelled"
    wait_for_timeline(people_answer, order_id, OrderStatus.COMPENSATED)
    timeline = ui.open_timeline(OrderStatus.COMPENSATED)
    see(timeline, f"Order {order_id}: {OrderStatus.COMPENSATED}")


def test_an_order_of_the_command_line_is_cancelled_with_its_process_and_tried_again(
    people_answer: RunningSystem, waiting_runs: dict[str, str]
) -> None:
    order_id, run_id = "by-command", waiting_runs["by-command"]
    wait_until(
        lambda: people_answer.api.read_run(run_id).state_type == "PAUSED", "paused run of the order"
    )
    ended = command(people_answer, "cancel", order_id, "--yes")
    assert (ended["status"], ended["error"]) == ("compensated", "OrderCancelled")
    # Its worker has ended its process before the run is shown as cancelled.
    wait_until(
        lambda: people_answer.api.read_run(run_id).state_type == "CANCELLED", "end of its run"
    )
    again = command(people_answer, "retry", order_id)["run_id"]
    wait_until(
        lambda: people_answer.api.read_run(again).state_type == "PAUSED", "paused second attempt"
    )
    shown = command(people_answer, "show", order_id)
    assert (shown["status"], shown["attempt"], shown["run_id"]) == ("waiting", 2, again)
    assert {run_id: "Cancelled", again: "Paused"}.items() <= {
        each["id"]: each["state"] for each in shown["runs"]
    }.items()
    assert command(people_answer, "cancel", order_id, "--yes")["attempt"] == 2


def test_the_books_balance_after_what_people_did(
    people_answer: RunningSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = people_answer.local.store_url
    monkeypatch.setenv("STORE_DATABASE_URL", url)
    settings.cache_clear()
    try:
        assert_books_balance()
    finally:
        engine(url).dispose()
