"""The demo says so, and fails, when an ending or the books are not as they must be."""

from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self
from uuid import uuid4

import httpx
import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.states import Completed

from deployments import demo
from deployments.demo import CASES, Ending, compare
from deployments.holdings import Holdings
from deployments.machine import SetupError
from seed.catalogue import BOOKS, COURIERS
from store.models import Order, OrderStatus

BEFORE = Holdings(
    stock={"The 10X Rule": 500, "The Boy in the Striped Pajamas": 400},
    points={"Eduardo Santana": 300, "John Doe": 100},
    captured_cents=0,
    refunded_cents=0,
)
AFTER = Holdings(
    stock={"The 10X Rule": 450, "The Boy in the Striped Pajamas": 400},
    points={"Eduardo Santana": 0, "John Doe": 100},
    captured_cents=8_200_00,
    refunded_cents=7_500_00,
)


class NoSystem:
    """Stands in for the local system: starts nothing."""

    def __init__(self, data_dir: Path, **_: object) -> None:
        self.data_dir = data_dir

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass


def ending(case_number: int, status: str, error: str | None) -> Ending:
    run = FlowRun(flow_id=uuid4(), state=Completed())
    order = Order(
        id="order",
        status=status,
        error=error,
        user_id="user",
        redeem=False,
        payment_method="card",
        currency="USD",
        request={},
        copies=1,
    )
    return Ending(CASES[case_number], run, order)


def test_books_that_balance_are_as_expected() -> None:
    assert compare(BEFORE, AFTER)[1] == []


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (replace(AFTER, refunded_cents=0), "captured minus refunded: 8200.00, not 700.00"),
        (
            replace(AFTER, points={"Eduardo Santana": 0, "John Doe": 0}),
            "points of John Doe: 0, not 100",
        ),
        (
            replace(AFTER, stock=AFTER.stock | {"The 10X Rule": 500}),
            "copies of The 10X Rule: 500, not 450",
        ),
    ],
)
def test_books_that_do_not_balance_are_named(after: Holdings, expected: str) -> None:
    assert compare(BEFORE, after)[1] == [expected]


def test_an_ending_is_as_expected_only_with_its_status_and_its_error() -> None:
    assert ending(0, OrderStatus.DISPATCHED, None).is_as_expected
    assert ending(1, OrderStatus.COMPENSATED, "NoCourierAvailable").is_as_expected
    assert not ending(1, OrderStatus.COMPENSATED, "CourierWaitExpired").is_as_expected
    assert not ending(1, OrderStatus.DISPATCHED, None).is_as_expected
    assert not replace(ending(0, OrderStatus.DISPATCHED, None), order=None).is_as_expected


def test_the_order_that_must_find_no_courier_could_have_one_and_is_charged_first() -> None:
    order = CASES[1].order
    (book,) = [book for book in BOOKS if book["id"] == order["bookId"]]
    assert order["quantity"] <= max(int(str(each["capacity_copies"])) for each in COURIERS)
    assert order["quantity"] * int(str(book["price_cents"])) == AFTER.refunded_cents


@pytest.mark.parametrize(("wrong", "status"), [([], 0), (["an order: not ended"], 1)])
def test_the_exit_status_tells_whether_all_was_as_expected(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    wrong: list[str],
    status: int,
) -> None:
    data_dir = tmp_path / "data"

    def make_folder(**_: object) -> str:
        data_dir.mkdir()
        return str(data_dir)

    monkeypatch.setattr(demo, "LocalSystem", NoSystem)
    monkeypatch.setattr(demo, "demonstrate", lambda *_: wrong)
    monkeypatch.setattr(demo, "mkdtemp", make_folder)
    assert demo.main([]) == status
    printed = capsys.readouterr().out
    for line in wrong:
        assert line in printed
    # What went wrong can be looked at; what went well leaves nothing.
    assert data_dir.exists() == bool(wrong)


@pytest.mark.parametrize(
    "error", [SetupError("The worker has ended"), httpx.ConnectError("no answer")]
)
def test_a_demo_that_breaks_off_says_why_and_keeps_its_logs(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    def break_off(*_: object) -> list[str]:
        raise error

    monkeypatch.setattr(demo, "LocalSystem", NoSystem)
    monkeypatch.setattr(demo, "demonstrate", break_off)
    monkeypatch.setattr(demo, "mkdtemp", lambda **_: str(tmp_path))
    assert demo.main([]) == 1
    printed = capsys.readouterr().out
    assert str(error) in printed
    assert str(tmp_path) in printed.replace("\n", "")
    assert tmp_path.exists()
