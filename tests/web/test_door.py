"""A front end submits orders, follows and cancels them, and loses none that was accepted."""

import asyncio
import json
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from orders.archive import archive_orders
from orders.batches import begin_batch
from orders.intake import claim_orders
from orders.lookup import count_orders
from seed.catalogue import EDUARDO_SANTANA, TEN_X_RULE
from store.errors import BookOutOfStock, NothingToCancel
from store.models import OrderStatus
from store.saga import fail_orders
from tests.polling import wait_until
from tests.shop import (
    LONG_AGO,
    at_once,
    carry_on,
    end_at,
    end_run,
    order_row,
    placed,
    status,
    statuses,
    stock,
)
from tests.web.front_door import TOKEN, FrontDoor
from web import cancellation, order_input
from web.app import create_app

pytestmark = pytest.mark.timeout(180)

RUN_ID = "00000000-0000-0000-0000-000000000001"


@pytest.fixture(scope="module")
def served(store_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontDoor]:
    with FrontDoor(store_url, tmp_path_factory.mktemp("door") / "log") as door:
        yield door


@pytest.fixture
def door(served: FrontDoor, database: str) -> httpx.Client:
    served.start_unless_up()
    return served.client


def order(order_id: str | None = "W-1", **changes: Any) -> dict[str, Any]:
    given = {"userId": EDUARDO_SANTANA, "bookId": TEN_X_RULE, "quantity": 2, "orderId": order_id}
    return {name: value for name, value in {**given, **changes}.items() if value is not None}


def errors(answer: httpx.Response) -> list[tuple[str, str]]:
    return [(each["field"], each["reason"]) for each in answer.json()["errors"]]


def test_an_order_that_was_archived_is_gone(door: httpx.Client, tmp_path: Path) -> None:
    placed("W-1", "dispatch_order", 2)
    end_at(LONG_AGO, "W-1")
    list(archive_orders(str(tmp_path), timedelta(days=365)))
    for answer in (
        door.post("/orders", json=order()),
        door.get("/orders/W-1", params={"wait": 30}),
        door.post("/orders/W-1/cancel"),
    ):
        assert answer.status_code == 410
        ((field, reason),) = errors(answer)
        assert (field, "is archived" in reason) == ("orderId", True)


def test_an_order_is_accepted_once_with_the_name_of_its_front_end(door: httpx.Client) -> None:
    first = door.post("/orders", json=order())
    assert (first.status_code, first.json()) == (201, {"orderId": "W-1", "status": "submitted"})
    again = door.post(first.headers["Location"].removesuffix("/W-1"), json=order())
    assert (again.status_code, again.json()["next"]) == (
        200,
        "It is recorded and waits for a batch that carries it.",
    )
    other = door.post("/orders", json=order(quantity=3))
    assert (other.status_code, errors(other)[0][0]) == (409, "orderId")
    app = {"Authorization": f"Bearer {TOKEN[::-1]}", "Idempotency-Key": "A-1"}
    assert door.post("/orders", json=order(None), headers=app).status_code == 201
    assert (order_row("W-1").submitted_by, order_row("A-1").submitted_by) == ("web", "app")


def test_equal_orders_at_the_same_moment_are_one(door: httpx.Client) -> None:
    answers = at_once([lambda: door.post("/orders", json=order()).status_code] * 6)
    assert sorted(map(str, answers)) == ["200"] * 5 + ["201"]
    assert count_orders(OrderStatus.SUBMITTED) == 1


@pytest.mark.parametrize(
    ("body", "headers", "code", "field", "reason"),
    [
        (order(None), {}, 422, "orderId", "is missing; give it, or the header Idempotency-Key"),
        (order(), {"Idempotency-Key": "W-2"}, 422, "Idempotency-Key", "is another one than"),
        (order(None), {"Idempotency-Key": "-"}, 422, "Idempotency-Key", "must be text of 1 to 64"),
        (order(userId="SECRET"), {}, 422, "userId", "no customer has the id"),
        (order(bookId="gone"), {}, 422, "bookId", "no book has the id gone"),
        (order(quantity="SECRET"), {}, 422, "quantity", "valid integer"),
        (order(SECRETIVE="SECRET"), {}, 422, "SECRETIVE", "is not a known field"),
        (order(paymentMethod="pm_ledger_x"), {}, 422, "paymentMethod", ""),
        ('{"orderId": "W-1", "orderId": "W-2"', {}, 422, "", "Invalid JSON"),
        (json.dumps(order())[:-1] + ', "quantity": 2}', {}, 422, "", "names a field twice"),
        ('"' + 70_000 * "x" + '"', {}, 413, "", "65536 bytes"),
        (order(), {"Authorization": "Bearer wrong"}, 401, "Authorization", "needs `Bearer`"),
    ],
)
def test_what_is_refused_names_its_field_and_changes_nothing(
    door: httpx.Client,
    body: Any,
    headers: dict[str, str],
    code: int,
    field: str,
    reason: str,
) -> None:
    content = body if isinstance(body, str) else json.dumps(body)
    answer = door.post("/orders", content=content, headers=headers)
    assert answer.status_code == code
    ((named, why),) = errors(answer)
    assert named == field
    assert reason in why
    assert count_orders(OrderStatus.SUBMITTED) == 0


def test_one_that_follows_an_order_is_told_as_soon_as_it_changes(door: httpx.Client) -> None:
    door.post("/orders", json=order())
    with ThreadPoolExecutor() as pool:
        # The client gives up before the door would answer without a change.
        following = pool.submit(door.get, "/orders/W-1?wait=60&seen=submitted", timeout=40)
        claim_orders(RUN_ID, 10)
        carry_on(["W-1"], "prepare_order")
        assert following.result().json()["status"] in ("started", "waiting")
        following = pool.submit(door.get, "/orders/W-1?wait=60&seen=waiting", timeout=40)
        carry_on(["W-1"], after="prepare_order")
        wait_until(following.done, "the news")
        assert following.result().json()["status"] in ("dispatching", "dispatched")
    ended = door.get("/orders/W-1?wait=50").json()
    assert ended["receipt"]["lines"][0]["quantity"] == 2
    assert (ended["receipt"]["total_cents"], ended["status"]) == (40_00, "dispatched")


def test_an_order_that_failed_has_its_error(door: httpx.Client) -> None:
    door.post("/orders", json=order())
    fail_orders(["W-1"], BookOutOfStock("sold out"))
    found = door.get("/orders/W-1?wait=50").json()
    assert found["error"] == {"name": "BookOutOfStock", "message": "sold out"}
    assert (found["receipt"], found["status"]) == (None, "rejected")


def test_a_cancellation_is_previewed_and_done_before_a_courier_has_accepted(
    door: httpx.Client,
) -> None:
    begin_batch(RUN_ID, None, listen_seconds=60)
    placed("waits", "prepare_order", run_id=RUN_ID)
    gives_back = door.get("/orders/waits/cancel").json()["givesBack"]
    assert [each["undo"] for each in gives_back] == ["refund_customer", "restore_quantity"]
    assert status("waits") == "waiting"
    for _ in range(2):
        cancelled = door.post("/orders/waits/cancel?reason=too+late").json()
        assert cancelled["status"] == "compensating"
        assert cancelled["error"]["message"] == "cancelled by the customer: too late"
    door.post("/orders", json=order())
    assert door.post("/orders/W-1/cancel").json()["status"] == "rejected"


@pytest.mark.parametrize(
    ("up_to", "code", "reason"),
    [
        ("find_couriers", 409, "has accepted it"),
        ("dispatch_order", 409, "only goes forward"),
        ("prepare_order", 409, "the shop cancels it with `checkout cancel o-1`"),
    ],
)
def test_a_cancellation_that_comes_too_late_or_to_the_wrong_door_changes_nothing(
    door: httpx.Client, up_to: str, code: int, reason: str
) -> None:
    placed("o-1", up_to)
    before = (status("o-1"), stock())
    answer = door.post("/orders/o-1/cancel")
    assert answer.status_code == code
    assert reason in errors(answer)[0][1]
    assert (status("o-1"), stock()) == before


def test_a_cancellation_that_meets_another_attempt_leaves_it_alone(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed("o-1", "bill_customer")

    def overtaken(*meant: Any, **of: Any) -> None:
        end_run("o-1")
        placed("o-1", "bill_customer")
        fail_orders(*meant, **of)

    monkeypatch.setattr(cancellation, "fail_orders", overtaken)
    with pytest.raises(NothingToCancel, match="somebody has begun another one, which is started"):
        cancellation.cancel("o-1", "")
    assert (status("o-1"), order_row("o-1").attempt) == ("started", 2)


@pytest.mark.parametrize("path", ["/orders/gone", "/orders/gone%00", "/orders/gone/cancel"])
def test_an_order_that_is_not_there_is_not_found(door: httpx.Client, path: str) -> None:
    assert door.get(path).status_code == 404


def test_what_needs_no_token_says_nothing_of_orders(door: httpx.Client) -> None:
    bare = {"Authorization": ""}
    assert door.get("/health", headers=bare).json() == {"status": "ok"}
    described = door.get("/openapi.json", headers=bare).json()
    assert set(described["paths"]) == {
        "/orders",
        "/orders/{order_id}",
        "/orders/{order_id}/cancel",
        "/health",
    }
    assert door.get("/orders/W-1", headers=bare).status_code == 401


async def sent_to_another_door(content: dict[str, Any]) -> int:
    """Send an order to a door of this process and return the status of its answer."""
    app = create_app({"web": TOKEN})
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://door") as client,
    ):
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return (await client.post("/orders", json=content, headers=headers)).status_code


def test_no_accepted_order_is_lost_when_the_door_is_killed(
    served: FrontDoor, door: httpx.Client
) -> None:
    accepted: list[str] = []
    enough, is_over = threading.Event(), threading.Event()

    def send(sender: int) -> None:
        for number in range(1_000):
            order_id = f"k-{sender}-{number}"
            try:
                answer = door.post("/orders", json=order(order_id, quantity=1))
            except httpx.TransportError:
                return
            if answer.status_code == 201:
                accepted.append(order_id)
            if len(accepted) > 20:
                enough.set()
            if is_over.is_set():
                return

    with ThreadPoolExecutor() as pool:
        sending = [pool.submit(send, sender) for sender in range(4)]
        assert enough.wait(60)
        served.end(signal.SIGKILL)
        is_over.set()
        for each in sending:
            each.result()
    assert statuses(accepted) == {"submitted"}
    assert asyncio.run(sent_to_another_door(order(accepted[0], quantity=1))) == 200


def test_an_outage_of_the_database_is_an_answer_and_no_defect_of_the_door(
    setting: Callable[[str, object], None],
) -> None:
    setting("database_url", "postgresql+psycopg://postgres@127.0.0.1:1/store")

    async def ask() -> httpx.Response:
        # The transport raises what the application has not answered for good.
        door = httpx.ASGITransport(create_app({"web": TOKEN}))
        async with httpx.AsyncClient(transport=door, base_url="http://door") as client:
            return await client.get("/health")

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


def posted(receive: Callable[[], Awaitable[dict[str, Any]]]) -> list[Any]:
    """What the door sends for an order whose body comes from ``receive``."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    request = {
        "type": "http",
        "method": "POST",
        "path": "/orders",
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {TOKEN}".encode())],
    }
    asyncio.run(create_app({"web": TOKEN})(request, receive, send))
    return sent


def test_a_client_that_goes_away_in_its_request_is_no_defect() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    assert posted(receive)[0]["status"] == 400


def test_an_order_that_comes_a_byte_at_a_time_is_answered_before_it_is_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(order_input, "BODY_SECONDS", 0.05)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b" ", "more_body": True}

    begun, body = posted(receive)
    assert (begun["status"], (b"connection", b"close") in begun["headers"]) == (408, True)
    assert b"send it again" in body["body"]


@pytest.mark.parametrize(
    ("method", "path", "code"), [("GET", "/nowhere", 404), ("DELETE", "/orders", 405)]
)
def test_what_the_door_does_not_have_is_answered_as_any_error(
    door: httpx.Client, method: str, path: str, code: int
) -> None:
    answer = door.request(method, path)
    assert (answer.status_code, errors(answer)[0][0]) == (code, "")


def test_the_log_holds_no_customer_and_no_token(served: FrontDoor, database: str) -> None:
    log = served.log.read_text()
    assert "http://127.0.0.1" in log
    assert not [word for word in (EDUARDO_SANTANA, TOKEN, "SECRET") if word in log]
