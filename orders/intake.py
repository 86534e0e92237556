"""Submission of orders before their run, and their claim by batches.

A submitted order is recorded and has no owner. A batch run claims a chunk of them at a time;
no two runs ever claim the same one. A line of a file that is wrong keeps no other order from being
taken.
"""

import csv
import io
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from sqlalchemy import delete
from sqlmodel import Session, col, select

from orders.acceptance import new_order, refused_method, require_same
from orders.batches import touch_batch
from orders.files import Reject, read_orders
from orders.sources import opened, put_beside
from store.archived_orders import archived, archived_among
from store.bulk import among, insert_missing, insert_rows, read_rows, update_rows
from store.database import transaction
from store.errors import OrderIdConflict, RefusedOrder, UnreadableSource, UserNotFound
from store.messages import CheckoutOrder
from store.models import Book, Customer, Order, OrderLine, OrderStatus, utc_now
from store.settings import settings
from store.wakeups import ORDERS_TO_CARRY, notify
from tasks.retries import retried, retried_task

ORDERS_AT_ONCE = 1_000
"""Orders of a file that are recorded in one transaction; they bound the memory that it takes."""
HEARTBEAT_SECONDS = 5
"""Well below STORE_STALLED_SECONDS, after which recovery takes a batch up."""
REJECTS_KEPT = 100
"""Rejected lines that a report shows; all of them are in the rejects file."""


@dataclass
class Intake:
    """The numbers of a file's orders and of its rejected lines.

    ``refused`` counts the orders of the rejected lines. ``rejects`` holds the first of these lines,
    ``rejects_file`` names where all are.
    """

    source: str
    new: int = 0
    known: int = 0
    rejected: int = 0
    refused: int = 0
    rejects: list[Reject] = field(default_factory=list)
    rejects_file: str | None = None


def submit_orders(
    orders: Sequence[CheckoutOrder], front_end: str | None = None
) -> list[bool | RefusedOrder]:
    """Record orders ahead of their run, leaving those already recorded unchanged.

    Args:
        orders: The orders, each with its orderId.
        front_end: The front end that submits them, for their records. It is told at once of a book
            that is not there, and a file by the orders' endings.

    Returns:
        For each order whether it is new, or why it was refused; a refused one changed nothing.
    """
    with transaction() as session:
        methods = _payment_methods(session, {order.user_id for order in orders})
        missing = _missing_books(session, orders) if front_end else set()
        refusals = [_refusal(order, methods, missing) for order in orders]
        sound: dict[str, CheckoutOrder] = {}
        for order, refusal in zip(orders, refusals, strict=True):
            if order.order_id and refusal is None:
                sound.setdefault(order.order_id, order)
        rows = [
            {
                **new_order(order, id_, methods[order.user_id], OrderStatus.SUBMITTED),
                "submitted_by": front_end,
            }
            for id_, order in sound.items()
        ]
        inserted = {id_ for (id_,) in insert_missing(session, Order, rows)}
        # Asked afterwards: the insert may have waited for an order's archival.
        if taken := archived_among(session, sorted(inserted)):
            session.execute(delete(Order).where(among(col(Order.id), taken)))
            inserted -= taken
        lines = [
            {"order_id": id_, "book_id": line.book_id, "quantity": line.quantity}
            for id_ in sorted(inserted)
            for line in sound[id_].lines()
        ]
        insert_rows(session, OrderLine, lines)
        if inserted:
            notify(session, ORDERS_TO_CARRY)
        others = {order.order_id for order in orders if order.order_id} - inserted
        known = _contents(session, sorted(others)) if others else {}
        unknown = others - known.keys()
        taken |= archived_among(session, sorted(unknown)) if unknown else set()
        contents = known | {id_: sound[id_].content() for id_ in inserted}
        return [
            # A known order goes on although its customer is gone.
            _answer(order, None if order.order_id in known else refusal, contents, inserted, taken)
            for order, refusal in zip(orders, refusals, strict=True)
        ]


def _refusal(
    order: CheckoutOrder, methods: dict[str, str], missing: set[str]
) -> RefusedOrder | None:
    """Return why an order cannot be recorded, if it is new."""
    if not order.order_id:
        return RefusedOrder(
            "orderId: missing; an order that is submitted needs its own id, so that submitting "
            "it twice changes nothing"
        )
    if order.user_id not in methods:
        return UserNotFound(f"userId: no customer has the id {order.user_id}")
    lacks = sorted(missing & {line.book_id for line in order.lines()})
    if lacks:
        return RefusedOrder(f"bookId: no book has the id {lacks[0]}")
    return refused_method(order, methods[order.user_id])


def _answer(
    order: CheckoutOrder,
    refusal: RefusedOrder | None,
    contents: dict[str, dict[str, Any]],
    unclaimed: set[str],
    taken: set[str],
) -> bool | RefusedOrder:
    order_id = order.order_id or ""
    if order_id in taken:
        return archived(order_id)
    if refusal is not None:
        return refusal
    try:
        require_same(order.content(), contents[order_id], order_id)
    except OrderIdConflict as conflict:
        return conflict
    # The same order twice in one group: the first one is the new one.
    is_new = order_id in unclaimed
    unclaimed.discard(order_id)
    return is_new


def _payment_methods(session: Session, user_ids: Iterable[str]) -> dict[str, str]:
    found = session.execute(
        select(col(Customer.id), col(Customer.payment_method)).where(
            among(col(Customer.id), user_ids)
        )
    )
    return dict(found.all())


def _missing_books(session: Session, orders: Sequence[CheckoutOrder]) -> set[str]:
    asked_for = {line.book_id for order in orders for line in order.lines()}
    found = session.scalars(select(Book.id).where(among(col(Book.id), asked_for)))
    return asked_for - set(found)


def _contents(session: Session, order_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    found = session.execute(
        select(col(Order.id), col(Order.request)).where(among(col(Order.id), order_ids))
    )
    return dict(found.all())


@retried
def claim_orders(run_id: str, limit: int) -> list[str]:
    """Claim submitted orders for the run, the oldest first.

    Orders that another run is claiming at this moment are passed over, so any number of runs
    share the work and never the same order. Claimed twice in an outage, more orders than ``limit``
    are the run's own.

    Args:
        run_id: The flow run that asks.
        limit: How many at most.

    Returns:
        The ids of the orders; none when nothing is submitted.
    """
    with transaction() as session:
        oldest = (
            select(Order.id)
            .where(col(Order.status) == OrderStatus.SUBMITTED)
            .order_by(col(Order.updated_at))
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        claimed = [id_ for (id_,) in read_rows(session, oldest)]
        if claimed:
            update_rows(
                session,
                Order,
                [{"id": id_} for id_ in claimed],
                status=OrderStatus.STARTED,
                run_id=run_id,
                # Prices are in the shop's present currency, which may be another one by now.
                currency=settings().currency,
                updated_at=utc_now(),
            )
        return claimed


@retried_task
def load_orders(source: str, run_id: str | None = None, *, line_items: bool = False) -> Intake:
    """Submit the orders of a file, which is safe to repeat.

    Lines that are wrong are written to a rejects file beside the source, and left out. An orderId
    that comes again in the file rejects all of its lines, so that half an order is never taken.

    Args:
        source: A local path or `s3://bucket/key` of a JSONL or CSV file, in UTF-8, or in UTF-16 or
            UTF-32 with a byte order mark.
        run_id: The batch's run that loads it, if one does; its heartbeat goes on.
        line_items: Whether lines that follow each other with one orderId are one order's.

    Returns:
        How many orders are new, known and rejected. The rejects file is named unless it could not
        be written, which is logged.

    Raises:
        UnreadableSource: the file is not there or must not be read, it has no known format or
            encoding, its header is wrong, or each of its lines is; nothing was recorded.
        SourceUnavailable: S3 did not answer, or broke off; nothing was recorded yet, and the task
            is tried again.
    """
    keep_alive = _heartbeat(run_id) if run_id is not None else lambda: None
    intake = Intake(source)
    with opened(source, keep_alive) as copy, _rejects_file(source, intake) as reject:
        entries = read_orders(copy, source, line_items=line_items, keep_alive=keep_alive)
        while group := list(islice(entries, ORDERS_AT_ONCE)):
            refused = [each for entry in group for each in entry.rejects]
            taken = [(entry, entry.order) for entry in group if entry.order]
            intake.refused += len(group) - len(taken)
            answers = submit_orders([order for _, order in taken])
            for (entry, _), answer in zip(taken, answers, strict=True):
                if isinstance(answer, RefusedOrder):
                    field_, _, reason = str(answer).partition(": ")
                    refused += [Reject(line, field_, reason) for line in entry.lines]
                    intake.refused += 1
                elif answer:
                    intake.new += 1
                else:
                    intake.known += 1
            for each in sorted(refused, key=lambda found: found.line):
                reject(each)
            keep_alive()
    if intake.rejected and not intake.new and not intake.known:
        raise UnreadableSource(_no_order(intake))
    return intake


def _no_order(intake: Intake) -> str:
    first = intake.rejects[0]
    why = f"{first.field}: {first.reason}" if first.field else first.reason
    rest = f"; all of them: {intake.rejects_file}" if intake.rejects_file else ""
    return (
        f"source: {intake.source} has no order that can be taken; lines that are wrong: "
        f"{intake.rejected}. Line {first.line}: {why}{rest}"
    )


def _heartbeat(run_id: str) -> Callable[[], None]:
    """Return a throttled callback for the batch's heartbeat."""
    next_at = 0.0

    def beat() -> None:
        nonlocal next_at
        if time.monotonic() >= next_at:
            touch_batch(run_id)
            next_at = time.monotonic() + HEARTBEAT_SECONDS

    return beat


@contextmanager
def _rejects_file(source: str, intake: Intake) -> Iterator[Callable[[Reject], None]]:
    """Yield a callback that records rejected lines, also beside the source."""
    # The file is sent as bytes: boto3 would take text into memory as a whole.
    with (
        tempfile.TemporaryFile() as file,
        io.TextIOWrapper(file, encoding="utf-8", newline="") as text,
    ):
        writer = csv.writer(text)
        writer.writerow(["line", "field", "reason"])

        def reject(found: Reject) -> None:
            intake.rejected += 1
            if intake.rejected <= REJECTS_KEPT:
                intake.rejects.append(found)
            writer.writerow([found.line, found.field, found.reason])

        yield reject
        if intake.rejected:
            text.seek(0)
            intake.rejects_file = put_beside(source, ".rejects.csv", file)
