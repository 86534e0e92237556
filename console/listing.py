"""The list of orders, with those whose run has not begun."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Annotated, Any

from cyclopts import CoercionError, Parameter, Token, convert
from prefect.settings import PREFECT_API_URL

from flows.runs.order_runs import prefect_client
from flows.runs.unbegun import UnbegunOrder, unbegun_orders
from flows.runs.work_pool import SERVER_AWAY
from orders.lookup import find_orders
from store.errors import NoPrefectServer
from store.messages import money
from store.models import Order, OrderStatus, utc_now
from terminal.output import (
    AsJson,
    Columns,
    Limit,
    Wide,
    at_most,
    duration,
    print_json,
    print_table,
    terminal,
)

NOT_BEGUN = "not begun"
"""The status of an order that Prefect has and the store has not: it has taken nothing."""
FIELDS = {
    "order_id": "id",
    "status": "status",
    "attempt": "attempt",
    "error": "error",
    "message": "message",
    "user_id": "user_id",
    "copies": "copies",
    "currency": "currency",
    "total_cents": "total_cents",
    "points_redeemed": "points_redeemed",
    "due_cents": "due_cents",
    "courier": "courier_id",
    "wait_until": "wait_until",
    "continuations": "continuations",
    "accepted_at": "created_at",
    "submitted_by": "submitted_by",
    "updated_at": "updated_at",
    "run_id": "run_id",
}
"""What `--json` says of an order, each field with its column."""
AGE_AT_MOST = timedelta(days=36_500)
"""Far longer ago the calendar has no date."""


def _age(_: Any, tokens: Sequence[Token]) -> timedelta:
    # The latter for more than the calendar has, with cyclopts 5.4.
    with suppress(CoercionError, OverflowError):
        age: timedelta = convert(timedelta, tokens)
        if timedelta(0) <= age <= AGE_AT_MOST:
            return age
    raise ValueError(
        f"{tokens[0].value!r} is no length of time from 0s to {AGE_AT_MOST.days}d; give one such "
        "as 90m, 12h or 400d"
    )


Age = Annotated[timedelta, Parameter(converter=_age)]
Status = Annotated[
    OrderStatus, Parameter(name_transform=lambda name: name.lower().replace("-", "_"))
]
"""As tables, documents and `--json` write it; with dashes it is taken too."""


def list_orders(
    *,
    id_: Annotated[str | None, Parameter(name="--id")] = None,
    status: Status | None = None,
    customer: str | None = None,
    book: str | None = None,
    older_than: Age | None = None,
    younger_than: Age | None = None,
    limit: Limit = 20,
    columns: Columns = None,
    wide: Wide = False,
    as_json: AsJson = False,
) -> int:
    """List orders, newest first, that match all options.

    Args:
        id_: Orders with this text in their id, in small or capital letters.
        status: Orders in this status.
        customer: Orders of the customer with this id.
        book: Orders with copies of the book with this id.
        older_than: Orders accepted longer ago than this: 90s, 15m, 2h, 3d, 1d12h.
        younger_than: Orders accepted within this time.
        limit: The most orders to list.
    """
    now = utc_now()
    is_narrowed = any(x is not None for x in (status, customer, book, older_than, younger_than))
    unbegun = [] if is_narrowed else _unbegun(now, limit)
    unbegun = [each for each in unbegun if (id_ or "").lower() in each.id.lower()]
    found = find_orders(
        id_part=id_,
        status=status,
        user_id=customer,
        book_id=book,
        accepted_from=now - younger_than if younger_than else None,
        accepted_until=now - older_than if older_than else None,
        limit=limit + 1,
    )
    found = at_most(limit, found)
    if as_json:
        print_json(
            [
                *(_unbegun_as_data(order, now) for order in unbegun),
                *(_as_data(order, now) for order in found),
            ]
        )
        return 0
    print_table(
        "Orders",
        [
            *("order", "status", "attempt", "age", "time left", "customer", "copies"),
            *("total", "points", "charge", "why"),
        ],
        [*(_unbegun_row(order, now) for order in unbegun), *(_row(order, now) for order in found)],
        empty="There is no such order.",
        text="why",
        expendable=["points", "attempt", "total", "customer", "copies", "time left", "charge"],
        only=columns,
        wide=wide,
    )
    return 0


def _unbegun(now: datetime, limit: int) -> list[UnbegunOrder]:
    """Return the orders that have not begun, none without a server."""
    if not PREFECT_API_URL.value():
        return []
    try:
        with prefect_client() as client:
            return unbegun_orders(client, now, limit)
    except (NoPrefectServer, *SERVER_AWAY) as error:
        terminal(stderr=True).print(f"Orders that have not begun are not shown: {error}")
        return []


def _row(order: Order, now: datetime) -> list[object]:
    return [
        order.id,
        order.status,
        order.attempt,
        duration((now - order.created_at).total_seconds()),
        _time_left(order, now),
        order.user_id,
        order.copies,
        _amount(order.total_cents, order),
        order.points_redeemed,
        _amount(order.due_cents, order),
        f"{order.error}: {order.message}" if order.error else "",
    ]


def _unbegun_row(order: UnbegunOrder, now: datetime) -> list[object]:
    age = duration((now - order.sent_at).total_seconds())
    return [order.id, NOT_BEGUN, None, age, "", "", None, "", None, "", order.why]


def _amount(cents: int | None, order: Order) -> str:
    return "" if cents is None else money(cents, order.currency)


def _time_left(order: Order, now: datetime) -> str:
    if order.status != OrderStatus.WAITING or order.wait_until is None:
        return ""
    return duration((order.wait_until - now).total_seconds())


def order_as_data(order: Order) -> dict[str, Any]:
    """Return an order for programs."""
    data = {name: getattr(order, column) for name, column in FIELDS.items()}
    return data if order.status == OrderStatus.WAITING else {**data, "wait_until": None}


def _as_data(order: Order, now: datetime) -> dict[str, Any]:
    return {**order_as_data(order), "age_seconds": int((now - order.created_at).total_seconds())}


def _unbegun_as_data(order: UnbegunOrder, now: datetime) -> dict[str, Any]:
    """Return an order without a record, in the same shape."""
    return dict.fromkeys(FIELDS) | {
        "order_id": order.id,
        "accepted_at": order.sent_at,
        "age_seconds": int((now - order.sent_at).total_seconds()),
        "message": order.why,
        "run_id": order.run_id,
    }
