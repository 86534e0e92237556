"""Orders on the command line: sent once, listed, tried again once; what is wrong is named."""

import json
import re
import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import State
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)
from prefect.states import Cancelling, Pending

from flows.runs import order_runs
from flows.runs.order_runs import retry
from orders.intake import submit_orders
from seed.catalogue import EDUARDO_SANTANA, JOHN_DOE, STRIPED_PAJAMAS, TEN_X_RULE
from store.errors import NoCourierAvailable
from store.messages import ASSIGNED
from store.models import utc_now
from store.settings import settings
from tests.flows.runs import Runs
from tests.polling import wait_until
from tests.shop import an_order, end_run, ledger, order_row, place, placed, set_order

from .conftest import DEPLOYMENT, Call

USER = ("--user", EDUARDO_SANTANA)
EXAMPLE = (*USER, "--book", TEN_X_RULE, "--quantity", "50", "--redeem")


def test_an_order_from_options_is_started_once_however_often_it_is_sent(
    deployment: Runs, checkout: Call
) -> None:
    first = checkout("submit", *EXAMPLE, "--order-id", "o-1", "--json").data
    assert first == {
        "order_id": "o-1",
        "run_id": first["run_id"],
        "run_url": first["run_url"],
        "run_state": "Scheduled",
        "known": False,
        "status": None,
    }
    assert first["run_url"].endswith(f"/runs/flow-run/{first['run_id']}")
    again = checkout("submit", *EXAMPLE, "--order-id", "o-1")
    assert f"Order o-1: its run is Scheduled.\n{first['run_url']}\n" in again.out
    (run,) = deployment.of_order("o-1")
    assert str(run.id) == first["run_id"]
    assert run.parameters["order"] == {
        "userId": EDUARDO_SANTANA,
        "bookId": TEN_X_RULE,
        "quantity": 50,
        "redeem": True,
        "orderId": "o-1",
    }
    other = checkout("submit", *USER, "--book", TEN_X_RULE, "--quantity", "1", "--order-id", "o-1")
    assert (other.status, other.out) == (1, "")
    assert "orderId: o-1 belongs to an order with other content" in other.err
    assert len(deployment.of_order("o-1")) == 1

    # Its run begins, waits, and is answered.
    executed = deployment.execute(run)
    deployment.assign("o-1")
    assert executed.result().is_completed()
    known = checkout("submit", *EXAMPLE, "--order-id", "o-1")
    assert "Order o-1 is known already, and dispatched; nothing was started." in known.out
    assert first["run_url"] in known.out
    other = checkout("submit", *USER, "--book", TEN_X_RULE, "--quantity", "1", "--order-id", "o-1")
    assert (other.status, len(deployment.of_order("o-1"))) == (1, 1)


def test_an_order_whose_run_ended_before_it_was_recorded_is_started_anew(
    deployment: Runs, checkout: Call
) -> None:
    example = ("submit", *EXAMPLE, "--order-id", "refused-once", "--json")
    first = checkout(*example).data
    deployment.end("refused-once")
    second = checkout(*example).data
    assert second["run_id"] != first["run_id"]
    assert checkout(*example).data == second


@pytest.mark.parametrize("state", [Pending(), Cancelling()])
def test_no_run_that_nobody_carries_out_is_given_back(
    deployment: Runs,
    checkout: Call,
    setting: Callable[[str, object], None],
    state: State[Any],
) -> None:
    setting("unbegun_seconds", 1)
    order_id = f"lost-{state.name}"
    example = ("submit", *EXAMPLE, "--order-id", order_id, "--json")
    run_id = checkout(*example).data["run_id"]
    deployment.client.set_flow_run_state(UUID(run_id), state.fresh_copy(), force=True)
    given = wait_until(
        lambda: (said := checkout(*example).data)["run_state"] != state.name and said,
        "a run that a worker takes",
    )
    assert given["run_state"] in ("AwaitingRetry", "Scheduled")
    deployment.end_all(order_id)


def test_an_order_comes_from_standard_input_or_a_file_as_well(
    deployment: Runs, checkout: Call, tmp_path: Path
) -> None:
    cart = {"userId": JOHN_DOE, "items": [{"bookId": STRIPED_PAJAMAS, "quantity": 2}]}
    typed = checkout("submit", "-", "--json", typed=json.dumps(cart))
    assert typed.data["order_id"] == typed.data["run_id"]
    file = tmp_path / "order.json"
    # As a Windows shell writes it.
    file.write_text(json.dumps({**cart, "orderId": "from-a-file"}), encoding="utf-16")
    assert checkout("submit", str(file), "--json").data["order_id"] == "from-a-file"
    marked = json.dumps({**cart, "orderId": "marked"}).encode("utf-8-sig")
    assert checkout("submit", "-", "--json", typed=marked).data["order_id"] == "marked"
    flags = checkout(
        *("submit", "--user", JOHN_DOE, "--item", f"{STRIPED_PAJAMAS}=2"),
        *("--item", f"{TEN_X_RULE}=1", "--order-id", "a-cart"),
    )
    assert flags.status == 0
    assert deployment.run_of("a-cart").parameters["order"]["items"] == [
        {"bookId": STRIPED_PAJAMAS, "quantity": 2},
        {"bookId": TEN_X_RULE, "quantity": 1},
    ]


def test_a_submitted_order_that_no_batch_has_taken_is_started(
    deployment: Runs, checkout: Call
) -> None:
    submit_orders([an_order("ahead", 50, redeem=True)])
    assert checkout("submit", *EXAMPLE, "--order-id", "ahead", "--json").data["known"] is False
    assert len(deployment.of_order("ahead")) == 1


WRONG: list[tuple[list[str], str, int, str]] = [
    # The arguments, what is typed, the exit status, and what is said.
    ([], "", 1, "userId (--user): is missing"),
    ([*USER, "--book", TEN_X_RULE], "", 1, "quantity missing: give bookId and quantity, or items"),
    (
        [*USER, "--book", TEN_X_RULE, "--quantity", "0"],
        "",
        1,
        "quantity (--quantity): Input should",
    ),
    ([*USER, "--item", "x=0"], "", 1, "items.0.quantity (--item): Input should be greater than"),
    ([*USER, "--item", "x"], "", 2, "--item x: give BOOK=COPIES"),
    (["--user", "nobody", *EXAMPLE[2:]], "", 1, "userId: no customer has the id nobody"),
    ([*USER, "--book", "none", "--quantity", "1"], "", 1, "bookId: no book has the id none"),
    (["-"], '{"userId": 5}', 1, "userId: Input should be a valid string"),
    (
        ["-"],
        '{"userId": "u", "bookId": "b", "quantity": 1, "qty": 1}',
        1,
        "qty: is not a known field",
    ),
    ([*USER, "--book", TEN_X_RULE, "--quantity", "2.7"], "", 2, "--quantity: '2.7' is no whole"),
    ([*USER, "--item", f"{TEN_X_RULE}=2.7"], "", 2, f"for example --item {TEN_X_RULE}=1"),
    ([*USER, "--item", "=3"], "", 2, "for example --item B-1=1."),
    (["-"], '{"userId": "u", "bookId": "b", "quantity": 1, "quantity": 5}', 1, "a field twice"),
    (["-"], "{", 1, "Invalid JSON"),
    (["-", *USER], "{}", 2, "Give the order as - or by options, not both"),
    (["no-such-file.json"], "", 1, "no-such-file.json cannot be read: No such file or directory"),
    (["not-utf-8.json"], "", 1, "not-utf-8.json cannot be read: it is not UTF-8"),
]


@pytest.mark.parametrize(("arguments", "typed", "status", "said"), WRONG)
def test_an_order_that_cannot_be_names_its_field_and_starts_nothing(
    deployment: Runs,
    checkout: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    typed: str,
    status: int,
    said: str,
) -> None:
    before = deployment.client.read_flow_runs()
    monkeypatch.chdir(tmp_path)
    Path("not-utf-8.json").write_bytes(b"\xff")
    answer = checkout("submit", *arguments, typed=typed)
    assert (answer.status, answer.out) == (status, "")
    assert said in answer.err
    assert len(deployment.client.read_flow_runs()) == len(before)


def test_a_deployment_that_is_not_there_is_named(
    deployment: Runs, checkout: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORE_CHECKOUT_DEPLOYMENT", "store-checkout/elsewhere")
    settings.cache_clear()
    said = checkout("submit", *EXAMPLE)
    assert said.status == 1
    assert "no deployment store-checkout/elsewhere" in said.err
    assert "python -m deployments.apply" in said.err


def test_what_needs_prefect_changes_nothing_where_no_server_is_named_or_answers(
    database: str, checkout: Call
) -> None:
    placed("o-1", "bill_customer")
    for address, command in (
        (None, ["submit", *EXAMPLE]),
        (None, ["cancel", "o-1", "--yes"]),
        ("http://127.0.0.1:9/api", ["cancel", "o-1", "--yes"]),
        # Prefect itself would start a server for them that nobody else knows of.
        (None, ["batch", "run"]),
        (None, ["drain"]),
        (None, ["reopen", "--pool", "local"]),
    ):
        with temporary_settings({PREFECT_API_URL: address}):
            said = checkout(*command)
        assert (said.status, "PREFECT_API_URL" in said.err) == (1, True)
    assert order_row("o-1").status == "started"


def _listed(checkout: Call, *options: str) -> list[str]:
    return [order["order_id"] for order in checkout("list", *options, "--json").data]


@pytest.fixture
def no_server() -> Iterator[None]:
    """No address of a server, whose runs of other tests have not begun."""
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        yield


def test_an_order_is_listed_and_shown_with_why_its_run_has_not_begun(
    deployment: Runs, checkout: Call
) -> None:
    pool = "night shift"
    deployment.client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
    made = deployment.client.read_deployment_by_name(DEPLOYMENT)
    deployment.client.update_deployment(made.id, DeploymentUpdate(work_pool_name=pool))
    run = deployment.client.create_flow_run_from_deployment(
        made.id, parameters={"order": an_order(None).model_dump(mode="json", by_alias=True)}
    )
    placed("o-1", "bill_customer")
    id_ = str(run.id)
    why = f"no worker of {pool} is online; `prefect worker start --pool '{pool}'` starts one"

    def listed() -> dict[str, Any]:
        return {order["order_id"]: order for order in checkout("list", "--json").data}

    assert set(listed()[id_]) == set(listed()["o-1"])
    assert (listed()[id_]["status"], listed()[id_]["message"]) == (None, why)
    assert re.search(f"{id_} +│ not begun +│", checkout("list").out)
    assert f"as soon as its run begins: {why}." in checkout("show", id_).out
    deployment.client.update_work_pool(pool, WorkPoolUpdate(is_paused=True))
    paused = f"its work pool {pool} is paused; `checkout reopen --pool '{pool}'` resumes it"
    assert listed()[id_]["message"] == paused
    assert id_ not in checkout("list", "--status", "started", "--json").out
    assert [each["order_id"] for each in checkout("list", "--id", id_[:9], "--json").data] == [id_]
    deployment.client.delete_flow_run(run.id)
    deployment.client.delete_work_pool(pool)


@pytest.mark.usefixtures("no_server")
def test_the_list_has_the_newest_first_and_takes_its_options_together(
    database: str, checkout: Call
) -> None:
    now = utc_now()
    placed("o-1", "prepare_order", 50, redeem=True)
    placed("o-2", "bill_customer", book_id=STRIPED_PAJAMAS, user_id=JOHN_DOE)
    placed("o-3", "bill_customer", items={TEN_X_RULE: 1, STRIPED_PAJAMAS: 1})
    end_run("o-3", NoCourierAvailable("snow"))
    set_order("o-1", created_at=now - timedelta(hours=3, minutes=5), wait_until=now)
    set_order("o-2", created_at=now - timedelta(days=2))

    assert _listed(checkout) == ["o-3", "o-1", "o-2"]
    assert _listed(checkout, "--limit", "2") == ["o-3", "o-1"]
    assert (
        checkout("list", "--limit", "2").err == "There are more than these 2; --limit N lists N.\n"
    )
    assert checkout("list", "--limit", "3").err == ""
    assert _listed(checkout, "--id", "O-1") == ["o-1"]
    assert _listed(checkout, "--id", "_") == _listed(checkout, "--id", "1", "--book", "x") == []
    assert _listed(checkout, "--status", "waiting") == ["o-1"]
    assert _listed(checkout, "--status", "compensation_failed") == []
    assert _listed(checkout, "--customer", EDUARDO_SANTANA) == ["o-3", "o-1"]
    assert _listed(checkout, "--book", STRIPED_PAJAMAS) == ["o-3", "o-2"]
    assert _listed(checkout, "--older-than", "2h") == ["o-1", "o-2"]
    assert _listed(checkout, "--younger-than", "1d", "--older-than", "90m") == ["o-1"]
    assert _listed(checkout, "--customer", JOHN_DOE, "--book", TEN_X_RULE) == []

    table = checkout("list", "-n", "9").out
    for shown in ("3 h 5 min", "2 d", "1000.00 USD", "700.00 USD", "NoCourierAvailable"):
        assert shown in " ".join(table.split())
    assert "Eduardo" not in table
    assert "no such order" in checkout("list", "--customer", "nobody").out


@pytest.mark.usefixtures("no_server")
def test_an_order_is_listed_with_its_figures_as_data(database: str, checkout: Call) -> None:
    placed("o-1", "prepare_order", 50, redeem=True)
    (order,) = checkout("list", "--json").data
    row = order_row("o-1")
    assert order["accepted_at"] == row.created_at.isoformat()
    assert order["wait_until"] == str(row.wait_until).replace(" ", "T")
    assert {
        name: order[name]
        for name in ("total_cents", "points_redeemed", "due_cents", "copies", "attempt", "user_id")
    } == {
        "total_cents": 1000_00,
        "points_redeemed": 300,
        "due_cents": 700_00,
        "copies": 50,
        "attempt": 1,
        "user_id": EDUARDO_SANTANA,
    }


def test_a_failed_order_is_tried_again_once_however_often_it_is_asked_for(
    deployment: Runs, checkout: Call
) -> None:
    placed("o-1", "bill_customer", 50)
    end_run("o-1", NoCourierAvailable("snow"))
    first = checkout("retry", "o-1", "--json").data
    assert first["run_state"] == "Scheduled"
    assert f"its run is Scheduled.\n{first['run_url']}" in checkout("retry", "o-1").out
    told = checkout("show", "o-1", "--json").data
    assert told["next"] == "A run is scheduled for it (below), which begins a new attempt."
    (run,) = deployment.of_order("o-1")
    executed = deployment.execute(run)
    deployment.paused("o-1")
    refused = checkout("retry", "o-1")
    assert (refused.status, refused.out) == (1, "")
    assert "order o-1 is waiting; only a rejected or compensated order is tried" in refused.err
    deployment.answer(run, outcome=ASSIGNED, courier="city-vans", answered_by="Ada")
    assert executed.result().is_completed()
    assert order_row("o-1").attempt == 2
    assert ledger("o-1") == [
        ("o-1:1", "captured", 1000_00),
        ("o-1:1:refund", "refunded", 1000_00),
        ("o-1:2", "captured", 1000_00),
    ]
    assert checkout("retry", "o-1").status == 1
    assert len(deployment.of_order("o-1")) == 1


def test_a_rejected_order_without_an_id_of_its_own_is_tried_again_as_itself(
    deployment: Runs,
) -> None:
    run_id = "0b5ab1c5-0000-4000-8000-000000000001"
    place(run_id, 501, run_id=run_id)
    end_run(run_id)
    run = retry(run_id)
    # The run that was started for it never got to it; the next one is for the same attempt.
    deployment.end(run_id)
    second = retry(run_id)
    assert (second.id != run.id, retry(run_id).id) == (True, second.id)
    assert deployment.execute(second).result().is_failed()
    assert (order_row(run_id).attempt, order_row(run_id).error) == (2, "BookOutOfStock")
    # That one is spent: to ask now is to ask for the third attempt.
    assert retry(run_id).id not in (run.id, second.id)


@pytest.mark.parametrize("command", ["show", "cancel", "retry"])
def test_an_order_that_is_not_there_is_refused(
    deployment: Runs, checkout: Call, command: str
) -> None:
    said = checkout(command, "nobodys")
    assert (said.status, said.out) == (1, "")
    assert "There is no order nobodys, or its run has not begun yet." in said.err


@pytest.mark.usefixtures("deployment")
@pytest.mark.parametrize("patient", [False, True])
def test_a_server_that_freezes_later_keeps_a_person_for_seconds_and_a_run_as_it_is_set(
    patient: bool,
) -> None:
    with (
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 10, PREFECT_API_REQUEST_TIMEOUT: 60}),
        order_runs.prefect_client(patient=patient),
        get_client(sync_client=True) as client,
    ):
        found = (client._client.timeout.read, PREFECT_CLIENT_MAX_RETRIES.value())
    assert found == ((60, 10) if patient else (order_runs.CALL_SECONDS, 1))


@pytest.mark.timeout(30)
def test_a_frozen_server_is_named_before_a_person_takes_the_command_for_hung(
    checkout: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_runs, "ANSWER_SECONDS", 0.1)
    # The kernel accepts connections for a program that reads nothing.
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        address = f"http://127.0.0.1:{frozen.getsockname()[1]}/api"
        with temporary_settings({PREFECT_API_URL: address}):
            found = checkout("dispatcher", "status")
    assert (found.status, found.out) == (1, "")
    assert f"Prefect's server at {address} does not answer (ReadTimeout" in found.err
