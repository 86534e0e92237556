"""A defect is narrowed down to the order that has it; an outage is nobody's."""

from collections.abc import Callable

import httpx
import pytest

from flows import compensation
from flows.batches import chunk
from flows.runs.defects import narrow_down
from store.embedded_gateway import EmbeddedGateway
from store.errors import (
    CheckoutFailed,
    PaymentGatewayUnavailable,
    PaymentRefused,
    TopicRefused,
    TopicUnavailable,
)
from store.saga import fail_orders
from tests.shop import (
    STEPS,
    Bare,
    give_back,
    place,
    placed,
    saga_records,
    status,
    statuses,
    unquoted,
)

GROUP = ["o-1", "o-2", "o-3", "o-4", "o-5"]
AWAY = httpx.ConnectError("Prefect's server is away")
REFUSED = PaymentRefused("the gateway refuses our key")


class Step:
    """A step of a batch that fails for one order, or for all."""

    name = "calculate_total"

    def __init__(self, error: Exception, order_id: str = "") -> None:
        self.error, self.order_id = error, order_id

    def __call__(self, as_one: object) -> object:
        return self.fn(unquoted(as_one))

    def fn(self, order_ids: list[str]) -> list[str]:
        if not self.order_id or self.order_id in order_ids:
            raise self.error
        return STEPS[self.name](order_ids)


@pytest.fixture
def carry(monkeypatch: pytest.MonkeyPatch) -> Callable[[Step], None]:
    """Carries a chunk of the group up to the wait, with one step replaced."""

    def call(step: Step) -> None:
        for order_id in GROUP:
            place(order_id)
        steps = [Bare(task) for task in chunk.STEPS]
        monkeypatch.setattr(chunk, "STEPS", (steps[0], step, *steps[2:]))
        monkeypatch.setattr(chunk, "run_undos", lambda ids, **_: give_back(*ids))
        chunk.check_out_chunk.fn(GROUP)

    return call


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (ZeroDivisionError(), [["b"], ["d"]]),
        (AWAY, [["a", "b", "c", "d"]]),
        (PaymentGatewayUnavailable("no answer"), [["a", "b", "c", "d"]]),
        (REFUSED, [["a", "b", "c", "d"]]),
        (TopicRefused("no right to publish"), [["a", "b", "c", "d"]]),
        (TopicUnavailable("no answer"), [["a", "b", "c", "d"]]),
    ],
)
def test_what_fails_is_given_up_for_one_order_or_as_a_whole(
    error: Exception, parts: list[list[str]]
) -> None:
    done: list[str] = []
    given_up = []

    def work(group: list[str]) -> None:
        if {"b", "d"} & set(group):
            raise error
        done.extend(group)

    def on_failure(part: list[str], found: Exception) -> None:
        assert found is error
        given_up.append(part)

    narrow_down(work, ["a", "b", "c", "d"], on_failure)
    assert given_up == parts
    assert sorted([*done, *(order for part in parts for order in part)]) == ["a", "b", "c", "d"]


def test_a_chunk_in_which_prefects_server_goes_away_ends_no_order(
    database: str, carry: Callable[[Step], None]
) -> None:
    with pytest.raises(httpx.ConnectError):
        carry(Step(AWAY))
    assert statuses(GROUP) == {"started"}
    fail_orders(GROUP, CheckoutFailed("the test is over"))
    give_back(*GROUP)


def test_the_defect_of_one_order_is_logged_once(
    database: str, carry: Callable[[Step], None], caplog: pytest.LogCaptureFixture
) -> None:
    carry(Step(ZeroDivisionError("a defect"), "o-4"))
    assert [status(id_) for id_ in GROUP] == [
        "compensated" if id_ == "o-4" else "waiting" for id_ in GROUP
    ]
    assert [record.order_ids for record in caplog.records if record.exc_info] == [  # type: ignore[attr-defined]
        ["o-4"]
    ]


def test_a_refusal_that_names_no_order_is_asked_about_once_for_the_group(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for order_id in GROUP:
        placed(order_id, "bill_customer")
    fail_orders(GROUP, CheckoutFailed("all of them"))
    asked = []

    def refuse(_: EmbeddedGateway, charges: list[object]) -> None:
        asked.append(len(charges))
        raise REFUSED

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddedGateway, "refund", refuse)
        patch.setattr(
            compensation, "UNDO", {step: Bare(undo) for step, undo in compensation.UNDO.items()}
        )
        compensation.run_undos(GROUP)
    assert asked == [len(GROUP)]
    assert {saga_records(id_)["bill_customer"].undo_error for id_ in GROUP} == {
        "PaymentRefused: the gateway refuses our key"
    }
    give_back(*GROUP)
