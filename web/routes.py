"""What a front end can ask."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from sqlalchemy import text

from orders.lookup import read_order
from store.database import reading
from store.errors import RefusedOrder
from store.messages import NO_NUL
from store.models import ENDED, OrderStatus
from web import cancellation
from web.order_input import OPENAPI, known_id, order_of
from web.texts import order_as_data
from web.tokens import FrontEnd

WAIT_SECONDS_AT_MOST = 60.0
REASON_LENGTH = 200

router = APIRouter()


@router.post("/orders", status_code=201, openapi_extra=OPENAPI)
async def submit(
    request: Request, front_end: FrontEnd, idempotency_key: Annotated[str | None, Header()] = None
) -> JSONResponse:
    """Submit an order.

    It is answered with 201 if it is new, 200 if it is known, and 409 if its id belongs to an order
    with other content. It is accepted once, however often it is sent with its `orderId` or
    `Idempotency-Key`.
    """
    order = await order_of(request, idempotency_key)
    answer = await request.app.state.intake.submit(order, front_end)
    if isinstance(answer, RefusedOrder):
        raise answer
    location = {"Location": f"/orders/{order.order_id}"}
    if answer:
        accepted = {"orderId": order.order_id, "status": OrderStatus.SUBMITTED}
        return JSONResponse(accepted, 201, location)
    known = await run_in_threadpool(_read, order.order_id or "")
    return JSONResponse(known, 200, location)


@router.get("/orders/{order_id}")
async def follow(
    request: Request,
    order_id: str,
    _: FrontEnd,
    wait: Annotated[float, Query(ge=0, le=WAIT_SECONDS_AT_MOST)] = 0,
    seen: Annotated[str | None, Query(max_length=32)] = None,
) -> dict[str, Any]:
    """Return an order's status, next step, and receipt or error.

    With `wait` it is returned as soon as its status is another one than `seen` (left out, than
    now), or after so many seconds. An order that has ended is returned at once.
    """
    found = await run_in_threadpool(_read, order_id)
    if wait and found["status"] not in ENDED and seen in (None, found["status"]):
        await request.app.state.changes.wait(order_id, found["status"], wait)
        found = await run_in_threadpool(_read, order_id)
    return found


@router.get("/orders/{order_id}/cancel")
def preview_cancellation(order_id: str, _: FrontEnd) -> dict[str, Any]:
    """Return the undos that a cancellation would run."""
    return cancellation.preview(known_id(order_id))


@router.post("/orders/{order_id}/cancel")
def cancel(
    order_id: str,
    _: FrontEnd,
    reason: Annotated[str, Query(max_length=REASON_LENGTH, pattern=NO_NUL)] = "",
) -> dict[str, Any]:
    """Cancel an order that no courier has accepted."""
    cancellation.cancel(known_id(order_id), reason)
    return _read(order_id)


@router.get("/health")
def health() -> dict[str, str]:
    """Return whether orders can be accepted."""
    with reading() as session:
        session.execute(text("SELECT 1 FROM orders LIMIT 1"))
    return {"status": "ok"}


def _read(order_id: str) -> dict[str, Any]:
    return order_as_data(read_order(known_id(order_id)))
