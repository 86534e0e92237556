"""Orders that come in ahead of their run: submitted one by one or from a file, then claimed.

A submitted order is recorded and owned by nobody. A batch run claims a chunk of them at a time;
no two runs ever claim the same one. A file is read as a stream, line by line, and a line that is
wrong keeps no other from being taken.
"""

import csv
import io
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from pydantic import TypeAdapter, ValidationError
from sqlmodel import Session, col, select

from store.bulk import among, insert_missing, insert_rows, update_rows
from store.database import transaction
from store.errors import (
    OrderIdConflict,
    RefusedOrder,
    SourceUnavailable,
    UnreadableSource,
    UserNotFound,
)
from store.messages import CheckoutOrder
from store.models import Customer, Order, OrderLine, OrderStatus, utc_now
from store.settings import settings
from tasks.batches import touch_batch
from tasks.orders import new_order, refused_method, require_same
from tasks.retries import RETRIES, RETRY_DELAYS_SECONDS, RETRY_JITTER, if_transient

logger = logging.getLogger("store.intake")

LINES_AT_ONCE = 1_000
"""Lines of a file that are recorded in one transaction; they bound the memory that it takes."""
LINE_BYTES = 64 * 1024
"""A longer line is no order: a cart of 100 titles has about 10 KB."""
REJECTS_KEPT = 100
"""Rejected lines that a report shows; all of them are in the rejects file."""
FIELD_LENGTH = 100
"""What a report quotes of a field's name; one that nobody knows may be as long as its line."""

_HEADER = {"userid": "userId", "bookid": "bookId", "quantity": "quantity", "items": "items"} | {
    "redeem": "redeem",
    "orderid": "orderId",
    "paymentmethod": "paymentMethod",
}
_BOOLEANS = {"true": True, "false": False}
_S3 = re.compile(r"^s3://([^/]+)/(.+)$")


@dataclass(frozen=True, slots=True)
class Reject:
    """A line of a file that is no order that can be taken: where, which field, and why."""

    line: int
    field: str
    reason: str


@dataclass
class Intake:
    """What became of a file: lines that are new orders, known ones, and rejected ones.

    ``rejects`` holds the first of the rejected lines, ``rejects_file`` names where all are.
    """

    source: str
    new: int = 0
    known: int = 0
    rejected: int = 0
    rejects: list[Reject] = field(default_factory=list)
    rejects_file: str | None = None


def submit_orders(orders: Sequence[CheckoutOrder]) -> list[bool | RefusedOrder]:
    """Record orders ahead of their run; one that is recorded already is left as it is.

    Args:
        orders: The orders, each with its orderId.

    Returns:
        For each order whether it is new, or why it was refused; a refused one changed nothing.
    """
    with transaction() as session:
        methods = _payment_methods(session, {order.user_id for order in orders})
        sound: dict[str, CheckoutOrder] = {}
        for order in orders:
            method = methods.get(order.user_id)
            if order.order_id and method is not None and refused_method(order, method) is None:
                sound.setdefault(order.order_id, order)
        rows = [
            new_order(order, id_, methods[order.user_id], OrderStatus.SUBMITTED)
            for id_, order in sound.items()
        ]
        inserted = {id_ for (id_,) in insert_missing(session, Order, rows)}
        lines = [
            {"order_id": id_, "book_id": line.book_id, "quantity": line.quantity}
            for id_ in sorted(inserted)
            for line in sound[id_].lines()
        ]
        insert_rows(session, OrderLine, lines)
        known = _contents(session, [id_ for id_ in sound if id_ not in inserted])
        known |= {id_: sound[id_].content() for id_ in inserted}
        return [_answer(order, methods, known, inserted) for order in orders]


def _answer(
    order: CheckoutOrder,
    methods: dict[str, str],
    known: dict[str, dict[str, Any]],
    unclaimed: set[str],
) -> bool | RefusedOrder:
    if not order.order_id:
        return RefusedOrder(
            "orderId: missing; an order that is submitted needs its own id, so that submitting "
            "it twice changes nothing"
        )
    if order.user_id not in methods:
        return UserNotFound(f"userId: no customer has the id {order.user_id}")
    refused = refused_method(order, methods[order.user_id])
    if refused is not None:
        return refused
    try:
        require_same(order.content(), known[order.order_id], order.order_id)
    except OrderIdConflict as conflict:
        return conflict
    # The same order twice in one group: the first one is the new one.
    is_new = order.order_id in unclaimed
    unclaimed.discard(order.order_id)
    return is_new


def _payment_methods(session: Session, user_ids: Iterable[str]) -> dict[str, str]:
    found = session.execute(
        select(col(Customer.id), col(Customer.payment_method)).where(
            among(session, col(Customer.id), user_ids)
        )
    )
    return dict(found.tuples().all())


def _contents(session: Session, order_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    found = session.execute(
        select(col(Order.id), col(Order.request)).where(among(session, col(Order.id), order_ids))
    )
    return dict(found.tuples().all())


def claim_orders(run_id: str, limit: int) -> list[str]:
    """Make submitted orders the run's own, the oldest first.

    Orders that another run is claiming at this moment are passed over, so any number of runs
    share the work and never the same order.

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
        claimed = session.scalars(oldest).all()
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
        return list(claimed)


@task(
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS_SECONDS,
    retry_jitter_factor=RETRY_JITTER,
    retry_condition_fn=if_transient,
    cache_policy=NO_CACHE,
)
def load_orders(source: str, run_id: str | None = None) -> Intake:
    """Submit the orders of a file; a second time changes nothing.

    Lines that are wrong are written to a rejects file beside the source, and left out.

    Args:
        source: A local path or `s3://bucket/key` of a JSONL or CSV file, in UTF-8.
        run_id: The batch's run that loads it, if one does; it gives signs of life meanwhile.

    Returns:
        How many orders are new, known and rejected. The rejects file is named unless it could not
        be written, which is logged.

    Raises:
        UnreadableSource: the file is not there or must not be read, it has no known format, or its
            header is wrong.
        SourceUnavailable: S3 did not answer, or broke off; the task is tried again, and what was
            submitted already is known then.
    """
    intake = Intake(source)
    with _opened(source) as stream, _rejects_file(source, intake) as reject:
        lines = _parsed(source, stream)
        while group := list(islice(lines, LINES_AT_ONCE)):
            orders = [(number, found) for number, found in group if not isinstance(found, Reject)]
            refused = [found for _, found in group if isinstance(found, Reject)]
            answers = submit_orders([order for _, order in orders])
            for (number, _), answer in zip(orders, answers, strict=True):
                if isinstance(answer, RefusedOrder):
                    field_, _, reason = str(answer).partition(": ")
                    refused.append(Reject(number, field_, reason))
                elif answer:
                    intake.new += 1
                else:
                    intake.known += 1
            for each in sorted(refused, key=lambda found: found.line):
                reject(each)
            if run_id is not None:
                touch_batch(run_id)
    return intake


def _parsed(source: str, stream: IO[bytes]) -> Iterator[tuple[int, CheckoutOrder | Reject]]:
    """Give each line's number with its order, or with what is wrong with it."""
    lines = _lines(stream)
    parse: Callable[[str], CheckoutOrder] = _from_json
    if _format(source) == "csv":
        number, header = next(lines, (1, b""))
        parse = _csv_parser(header)
    for number, line in lines:
        if line is None:
            yield number, Reject(number, "", f"longer than {LINE_BYTES} bytes")
        elif line.strip():
            try:
                yield number, parse(line.decode())
            except ValidationError as error:
                yield number, Reject(number, *_first_problem(error))
            except (UnicodeDecodeError, csv.Error) as error:
                yield number, Reject(number, "", f"cannot be read: {error}")
            except _BadCell as error:
                yield number, Reject(number, error.column, error.reason)


class _BadCell(ValueError):
    """A cell of a CSV file is not what its column takes."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(reason)
        self.column = column
        self.reason = reason


def _lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes | None]]:
    """Give the numbered lines; none stands for one that is too long, whose rest is passed over."""
    number = 0
    while line := stream.readline(LINE_BYTES):
        number += 1
        if len(line) == LINE_BYTES and not line.endswith(b"\n"):
            while (rest := stream.readline(LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield number, None
        else:
            yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def _from_json(line: str) -> CheckoutOrder:
    return CheckoutOrder.model_validate_json(line)


def _csv_parser(header: bytes | None) -> Callable[[str], CheckoutOrder]:
    """Return what makes an order of a CSV line, as the file's header says."""
    try:
        names = next(csv.reader([(header or b"").decode().strip()], strict=True), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise UnreadableSource(f"line 1: the header cannot be read: {error}") from error
    columns = [_HEADER.get(name.strip().replace("_", "").lower()) for name in names]
    unknown = [name for name, column in zip(names, columns, strict=True) if column is None]
    known = [column for column in columns if column is not None]
    if unknown or not known or len(set(known)) < len(known):
        raise UnreadableSource(
            f"line 1: the header must name columns among {', '.join(_HEADER.values())}, each once "
            f"and separated by commas; it is {', '.join(names)[:200]!r}"
        )

    def parse(line: str) -> CheckoutOrder:
        # Line by line: no value of an order holds a line break, and an open quote spoils one line.
        cells = next(csv.reader([line.rstrip("\r\n")], strict=True))
        if len(cells) != len(known):
            raise _BadCell("", f"{len(cells)} cells; the header has {len(known)}")
        return CheckoutOrder.model_validate(
            {
                column: _value(column, cell.strip())
                for column, cell in zip(known, cells, strict=True)
                if cell.strip()
            }
        )

    return parse


def _value(column: str, cell: str) -> object:
    match column:
        case "quantity":
            if not re.fullmatch(r"[0-9]{1,9}", cell):
                raise _BadCell(column, "is no whole number")
            return int(cell)
        case "redeem":
            if cell.lower() not in _BOOLEANS:
                raise _BadCell(column, "must be true or false")
            return _BOOLEANS[cell.lower()]
        case "items":
            try:
                return _ITEMS.validate_json(cell)
            except ValidationError as error:
                raise _BadCell(column, "must be JSON: a list of bookId and quantity") from error
        case _:
            return cell


_ITEMS: TypeAdapter[list[dict[str, Any]]] = TypeAdapter(list[dict[str, Any]])


def _first_problem(error: ValidationError) -> tuple[str, str]:
    """Return the field and the reason of the first problem, and how many more there are."""
    first, *others = error.errors(include_url=False, include_input=False)
    more = f" (and {len(others)} more)" if others else ""
    # Pydantic puts the kinds of types that it tried between the names.
    where = [
        str(part)
        for depth, part in enumerate(first["loc"])
        if depth == 0 or isinstance(part, int) or part in _HEADER.values()
    ]
    return ".".join(where)[:FIELD_LENGTH], first["msg"] + more


def _format(source: str) -> str:
    suffix = source.rpartition(".")[2].lower()
    if suffix not in ("csv", "jsonl", "ndjson"):
        raise UnreadableSource(
            f"source: {source} is no file of a known format; give .jsonl or .csv"
        )
    return suffix


@contextmanager
def _opened(source: str) -> Iterator[IO[bytes]]:
    """Open a source for reading, as a stream."""
    _format(source)
    if on_s3 := _S3.match(source):
        # boto3 takes a good part of a second to import; only who uses it pays for it.
        from store import aws

        try:
            found = aws.s3(settings().aws_endpoint_url).get_object(Bucket=on_s3[1], Key=on_s3[2])
            with io.BufferedReader(found["Body"]) as stream:  # type: ignore[type-var]
                yield stream
        except aws.FAILURES as error:
            wrong = SourceUnavailable if aws.is_retryable(error) else UnreadableSource
            raise wrong(f"source: {source}: {aws.describe(error)}") from error
        return
    path = local_path(source)
    try:
        file = path.open("rb")
    except OSError as error:
        raise UnreadableSource(f"source: {path} cannot be read: {error.strerror}") from error
    with file:
        yield file


def local_path(source: str) -> Path:
    """Return the path of a local source, which need not be there.

    Args:
        source: A path; a relative one begins at `STORE_ORDERS_FOLDER`, or at the folder in which
            the process runs where that is not set.

    Raises:
        UnreadableSource: it lies outside of `STORE_ORDERS_FOLDER`.
    """
    folder = settings().orders_folder
    if not folder:
        return Path(source).absolute()
    path = (Path(folder) / source).resolve()
    if not path.is_relative_to(Path(folder).resolve()):
        raise UnreadableSource(
            f"source: {source} lies outside of STORE_ORDERS_FOLDER, the folder of orders"
        )
    return path


@contextmanager
def _rejects_file(source: str, intake: Intake) -> Iterator[Callable[[Reject], None]]:
    """Give what records a rejected line: in the intake, and in a file beside the source."""
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
            intake.rejects_file = _put_beside(source, ".rejects.csv", file)


def _put_beside(source: str, suffix: str, content: IO[bytes]) -> str | None:
    """Write a file beside the source; return its name, or none if that is not allowed there."""
    name = f"{source}{suffix}"
    if on_s3 := _S3.match(name):
        from store import aws

        client = aws.s3(settings().aws_endpoint_url)
        try:
            client.put_object(Bucket=on_s3[1], Key=on_s3[2], Body=content)
        except aws.FAILURES as error:
            logger.warning("%s could not be written: %s", name, aws.describe(error))
            return None
        return name
    try:
        with local_path(name).open("wb") as file:
            shutil.copyfileobj(content, file)
    except OSError as error:
        logger.warning("%s could not be written: %s", name, error.strerror)
        return None
    return name
