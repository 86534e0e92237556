"""An answer is taken once, whether the run heard it or it was left among the run's inputs."""

from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import httpx
import pytest
from prefect.input import keyset_from_base_key

from flows.batches import wait as batch_wait
from flows.order import courier_wait
from flows.runs import pause
from flows.runs.pause import Remark
from orders.batches import begin_batch
from orders.lookup import read_order
from reports.timeline import form_texts
from store.errors import CheckoutFailed
from store.messages import ASSIGNED, NO_COURIER, BatchAnswer, CourierAnswer
from store.saga import fail_orders
from tests.shop import end_run, give_back, placed, set_capacities, status
from texts.forms import HOW, why_batch_waits

RUN = str(uuid4())


class Inputs:
    """Prefect's client, with what it keeps among a run's inputs."""

    def __init__(self) -> None:
        self.left: dict[str, CourierAnswer | BatchAnswer] = {}
        self.ended_pauses = 0

    def __enter__(self) -> "Inputs":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def filter_flow_run_input(
        self, _: object, key_prefix: str, exclude_keys: set[str], **__: object
    ) -> list[Any]:
        return [
            SimpleNamespace(key=key, value=answer.model_dump_json(), created=None)
            for key, answer in self.left.items()
            if key.startswith(key_prefix) and key not in exclude_keys
        ]

    def delete_flow_run_input(self, _: object, key: str) -> None:
        del self.left[key]


@pytest.fixture
def inputs(monkeypatch: pytest.MonkeyPatch) -> Inputs:
    """The inputs of a run whose pause the server's outage interrupts."""
    kept = Inputs()

    def interrupted(*_: object, **__: object) -> None:
        raise httpx.ConnectError("the server is away")

    def end_pause(client: Inputs) -> None:
        client.ended_pauses += 1

    for module in (pause, courier_wait):
        monkeypatch.setattr(module, "get_client", lambda **_: kept)
    monkeypatch.setattr(pause, "pause_flow_run", interrupted)
    monkeypatch.setattr(pause, "pool_is_closed", lambda: False)
    monkeypatch.setattr(pause, "_end_pause", end_pause)
    monkeypatch.setattr(courier_wait, "emit_wait", lambda _: None)
    return kept


def test_what_was_answered_in_an_outage_counts_once_the_server_answers_again(
    database: str, inputs: Inputs
) -> None:
    placed("o-1", "prepare_order", run_id=RUN)
    key = "paused-courier-1-x-response"
    inputs.left[key] = CourierAnswer(outcome=ASSIGNED, courier="city-vans", answered_by="Ada")
    courier_wait.await_courier("o-1", "pause", started_over=False)
    assert (status("o-1"), inputs.ended_pauses, list(inputs.left)) == ("dispatching", 1, [key])


def test_what_a_batch_was_answered_in_an_outage_counts_and_is_not_read_again(
    database: str, inputs: Inputs
) -> None:
    begin_batch(RUN, None)
    placed("o-1", "prepare_order", run_id=RUN)
    inputs.left["paused-batch-x-response"] = BatchAnswer(outcome=NO_COURIER, answered_by="Ada")
    assert batch_wait.await_decisions(RUN, "pause", chunk_size=10) == ""
    assert (status("o-1"), inputs.ended_pauses, inputs.left) == ("compensating", 1, {})
    give_back("o-1")


def test_a_refused_answer_is_told_and_forgotten(database: str, inputs: Inputs) -> None:
    placed("o-1", "prepare_order", 5, run_id=RUN)
    set_capacities(city_vans=5)
    order = read_order("o-1")
    inputs.left["paused-courier-1-x-response"] = CourierAnswer(outcome=ASSIGNED, courier="nobody")
    remark = courier_wait.question(order).take_left(cast(Any, inputs))
    assert remark is not None
    assert "nobody has the id “nobody”" in remark.text
    assert (status("o-1"), inputs.left) == ("waiting", {})
    fail_orders(["o-1"], CheckoutFailed("the test is over"))
    give_back("o-1")


def test_a_form_offers_the_couriers_and_has_a_refused_answer_filled_in_but_by_no_default(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed("o-1", "prepare_order", 5)
    typed = CourierAnswer(outcome=ASSIGNED, courier="nobody", answered_by="Ada")
    form = courier_wait.form_for(form_texts(read_order("o-1"), "x"), Remark("x", typed))
    saved: dict[str, Any] = {}
    monkeypatch.setattr(
        "prefect.input.run_input.create_flow_run_input",
        lambda key, value, **_: saved.update({key: value}),
    )
    form.save(keyset_from_base_key("courier"))
    schema = saved["courier-schema"]
    fields = schema["properties"]
    assert fields["courier"]["enum"] == ["city-vans", "night-rail", "swift-bikes", ""]
    assert "default" not in fields["courier"]
    assert (fields["outcome"]["default"], schema["required"]) == (ASSIGNED, ["outcome"])
    assert (fields["answered_by"]["default"], fields["answered_by"]["title"]) == (
        "Ada",
        "Answered by",
    )
    emptied = form(outcome=NO_COURIER)
    assert (emptied.courier, emptied.reason, emptied.answered_by) == ("", "", "")
    end_run("o-1")


def test_the_state_message_of_a_wait_says_what_was_refused_who_has_room_and_how_to_answer(
    database: str,
) -> None:
    placed("o-1", "prepare_order", 5)
    set_capacities(city_vans=5, night_rail=4)
    why = form_texts(read_order("o-1"), "no such courier").state_message
    assert why.startswith("The last answer was refused: no such courier. Order o-1 waits for ")
    assert "Couriers with room for its 5 copies: city-vans (5 copies free). To answer, " in why
    assert why.endswith(HOW)
    assert form_texts(read_order("o-1"), "").state_message.startswith(
        "Order o-1 waits for a courier until "
    )
    batch = why_batch_waits({"waiting": 2}, None, "**Refused.** why")
    assert batch.startswith("Refused. why 2 orders of this batch wait for a courier.")
    assert batch.endswith(HOW)
    end_run("o-1")
