"""An order as a request brings it."""

import asyncio
import json

from fastapi import HTTPException, Request
from pydantic import TypeAdapter, ValidationError

from orders.rows import NamedTwice, once_each
from store.errors import OrderNotFound
from store.messages import CheckoutOrder, Id
from store.wrong_input import Problem, problems

BODY_BYTES = 64 * 1024
"""A cart of 100 titles has about 10 KB."""
BODY_SECONDS = 20.0
"""A client that sends an order a byte at a time holds a connection for no longer."""
_ID: TypeAdapter[str] = TypeAdapter(Id)
OPENAPI = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "example": {"orderId": "W-1", "userId": "…", "bookId": "…", "quantity": 1},
                    "description": "An order, as docs/reference.md describes it.",
                }
            }
        },
    }
}
"""What FastAPI cannot read from a body that it does not parse."""


async def order_of(request: Request, key: str | None) -> CheckoutOrder:
    """Return the order of a request.

    The key is its id where it has none.

    Raises:
        ValidationError: the order is wrong.
        HTTPException: it is too large or too slow, has no id, two of them, or a field twice.
    """
    body = await _body(request)
    order = CheckoutOrder.model_validate_json(body)
    try:
        json.loads(body, object_pairs_hook=once_each)
    except NamedTwice as error:
        raise HTTPException(422, [Problem("", f"the order {error}")]) from error
    if key is None:
        if order.order_id is None:
            raise HTTPException(
                422, [Problem("orderId", "is missing; give it, or the header Idempotency-Key")]
            )
        return order
    if order.order_id not in (None, key):
        raise HTTPException(
            422, [Problem("Idempotency-Key", "is another one than orderId; give one of the two")]
        )
    try:
        return order.model_copy(update={"order_id": _ID.validate_python(key)})
    except ValidationError as error:
        found = [Problem("Idempotency-Key", each.reason) for each in problems(error)]
        raise HTTPException(422, found) from error


def known_id(order_id: str) -> str:
    """Return the id of an order that may exist.

    Raises:
        OrderNotFound: no order can have it; PostgreSQL takes no text with a NUL.
    """
    try:
        return _ID.validate_python(order_id)
    except ValidationError:
        raise OrderNotFound("no order has this id") from None


async def _body(request: Request) -> bytes:
    """Return the request's body, unless it is too large or slow."""
    body = b""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > BODY_BYTES:
                    raise HTTPException(
                        413, [Problem("", f"an order has at most {BODY_BYTES} bytes")]
                    )
    except TimeoutError as error:
        late = f"the order did not come within {BODY_SECONDS:.0f} s; send it again"
        raise HTTPException(408, [Problem("", late)], {"Connection": "close"}) from error
    return body
