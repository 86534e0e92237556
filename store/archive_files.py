"""The files of archived orders, JSON lines in gzip.

The first line is a header that describes the file, the last a trailer with its sums, and each in
between an order with all its rows. JSON lines are read by `zcat` and `jq`, by any spreadsheet's
importer and any language, now and in decades, without a package of this project.
"""
# ruff: noqa: S608  (the query is put together from the code's own constants alone)

import gzip
import hashlib
import inspect
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import islice
from typing import IO, Any, NamedTuple

import orjson
from sqlalchemy import literal_column
from sqlmodel import Session, SQLModel, col, select

from store.archive_places import opened
from store.archived_orders import Archive, archived_among
from store.bulk import among, read_rows
from store.errors import ArchiveDamaged
from store.models import (
    HOLDING,
    Attempt,
    Decision,
    LedgerEntry,
    Notification,
    Order,
    OrderLine,
    OrderStatus,
    SagaRecord,
    StepState,
    UtcDateTime,
)

FORMAT = "store-checkout archive of orders"
VERSION = 1
ORDERS_AT_ONCE = 1_000
"""Orders that are written, read or deleted together; they bound the memory that it takes."""
LONGEST_HEADER = 64 * 1024
"""Bytes in which the first line of a file is, packed."""
PARTS: dict[str, tuple[type[SQLModel], str]] = {
    "lines": (OrderLine, "book_id"),
    "attempts": (Attempt, "attempt, asked_by"),
    "saga_log": (SagaRecord, "attempt, at, step"),
    "decisions": (Decision, "id"),
    "ledger": (LedgerEntry, "at, key"),
    "notifications": (Notification, "published_at, key"),
}
"""The rows of an order besides its own, by their name in the file, with their order there."""
READING = (
    "zcat FILE | jq -c 'select(.order)'",
    'zcat FILE | grep -F \'"id":"ORDER"\'',
    "DuckDB: SELECT \"order\".* FROM read_json('FILE', format='newline_delimited', "
    'sample_size=-1) WHERE "order" IS NOT NULL',
    "pandas: pandas.read_json('FILE', lines=True).dropna(subset='order')",
)


_UNREADABLE = (
    *(OSError, EOFError, zlib.error, json.JSONDecodeError),
    *(LookupError, TypeError, AttributeError),
)
"""What unpacking and parsing raise for a file of another kind, or a damaged one."""


class OrderText(NamedTuple):
    """An order with all its rows, as a file has it."""

    id: str
    text: str
    rows: dict[str, Any]


@dataclass
class Sums:
    """What the orders of a file come to.

    Copies and points are those of dispatched orders, money is that of all attempts by currency, in
    its minor unit. What a person gave back by hand counts as refunded.
    """

    orders: int = 0
    dispatched: int = 0
    rejected: int = 0
    compensated: int = 0
    copies: int = 0
    points: int = 0
    captured_cents: dict[str, int] = field(default_factory=dict)
    refunded_cents: dict[str, int] = field(default_factory=dict)

    def add(self, rows: dict[str, Any]) -> None:
        """Count an order."""
        order = rows["order"]
        status = order["status"]
        self.orders += 1
        setattr(self, status, getattr(self, status) + 1)
        if status == OrderStatus.DISPATCHED:
            self.copies += order["copies"]
            self.points += order["points_redeemed"]
        # The order's currency is that of its present attempt.
        earlier = {each["attempt"] - 1: each.get("previous_currency") for each in rows["attempts"]}
        for record in rows["saga_log"]:
            if record["step"] == "bill_customer":
                currency = earlier.get(record["attempt"]) or order["currency"]
                captured, refunded = _moved(record)
                _add(self.captured_cents, currency, captured)
                _add(self.refunded_cents, currency, refunded)


def _add(sums: dict[str, int], name: str, amount: int) -> None:
    if amount:
        sums[name] = sums.get(name, 0) + amount


def _moved(record: dict[str, Any]) -> tuple[int, int]:
    """Return the amounts that a record of billing captured and refunded."""
    billed = record["result"]["amount_cents"]
    if record["state"] != StepState.UNDONE:
        return (billed if record["state"] in HOLDING else 0), 0
    refunded = record["undo_result"]["amount_cents"]
    # A charge in doubt has no reference: what its refund found is all that was captured.
    return (billed if record["result"].get("reference") else refunded), refunded


def order_texts(session: Session, order_ids: Sequence[str]) -> dict[str, str]:
    """Return each order with all its rows as one line of JSON.

    The same rows are always the same text.

    Args:
        session: The transaction.
        order_ids: The orders; one that is not there is left out.
    """
    parts = ", ".join(
        f"'{name}', COALESCE((SELECT json_agg(part ORDER BY {_sorted(by)}) FROM {table} part "
        "WHERE part.order_id = orders.id), '[]')"
        for name, (model, by) in PARTS.items()
        for table in [str(model.__tablename__)]
    )
    # A line break in JSON is only ever between its parts.
    text = f"replace(CAST(json_build_object('order', orders, {parts}) AS TEXT), E'\\n', ' ')"
    found = read_rows(
        session, select(Order.id, literal_column(text)).where(among(col(Order.id), order_ids))
    )
    return dict(map(tuple, found))


def _sorted(by: str) -> str:
    return ", ".join(f"part.{name}" for name in by.split(", "))


def header(archive: Archive, revision: str | None, timezone: str, written_at: datetime) -> Any:
    """Return a file's first line.

    Args:
        archive: The file.
        revision: The version of the database's schema.
        timezone: The zone of the file's month.
        written_at: The present moment.
    """
    return {
        "header": {
            "format": FORMAT,
            "version": VERSION,
            "month": archive.month,
            "timezone": timezone,
            "from": archive.from_at,
            "until": archive.until_at,
            "planned_at": archive.planned_at,
            "written_at": written_at,
            "database_revision": revision,
            "about": "A line for each order that ended from `from` to before `until`, with all its "
            "rows; the last line has the sums. Where an order is in two files, the one that was "
            "written later counts.",
            "reading": READING,
            "columns": {
                "order": _columns(Order),
                **{name: _columns(model) for name, (model, _) in PARTS.items()},
            },
        }
    }


def _columns(model: type[SQLModel]) -> dict[str, str]:
    table = model.__table__  # type: ignore[attr-defined]
    about = {"": " ".join((inspect.getdoc(model) or "").split())}
    return about | {column.name: _unit(column) for column in table.columns}


def _unit(column: Any) -> str:
    if isinstance(column.type, UtcDateTime):
        return "moment, ISO 8601 in UTC"
    if column.name.endswith("_cents"):
        return "whole minor units of the currency (cents)"
    return {
        "copies": "whole copies",
        "quantity": "whole copies",
        "points_redeemed": "whole points",
    }.get(column.name, str(column.type).lower())


def write_file(file: IO[bytes], head: Any, texts: Iterable[str]) -> tuple[Sums, datetime | None]:
    """Write a file of orders.

    Args:
        file: Where to.
        head: The first line.
        texts: The orders, as :func:`order_texts` returns them.

    Returns:
        Its sums, and when the first of its orders was accepted.
    """
    sums = Sums()
    digest = hashlib.sha256()
    accepted_from: datetime | None = None
    with gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
        packed.write(orjson.dumps(head) + b"\n")
        for text in texts:
            line = text.encode() + b"\n"
            rows = orjson.loads(line)
            sums.add(rows)
            accepted_at = datetime.fromisoformat(rows["order"]["created_at"])
            accepted_from = min(accepted_from or accepted_at, accepted_at)
            digest.update(line)
            packed.write(line)
        packed.write(orjson.dumps({"trailer": _trailer(sums, digest.hexdigest())}) + b"\n")
    return sums, accepted_from


def _trailer(sums: Sums, digest: str) -> dict[str, Any]:
    return {**asdict(sums), "orders_sha256": digest}


def is_of_plan(file: IO[bytes], archive: Archive) -> bool:
    """Return whether a file was written for an archive's plan.

    A process that died may have left it. Only its first line is looked at, so that one which was
    damaged further on is known as well.

    Args:
        file: The file, at its beginning.
        archive: The plan.
    """
    unpacked = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    line, packed = b"", file.read(LONGEST_HEADER)
    try:
        while packed and b"\n" not in line:
            line += unpacked.decompress(packed, 1024)
            packed = unpacked.unconsumed_tail
        planned_at = datetime.fromisoformat(
            orjson.loads(line.partition(b"\n")[0])["header"]["planned_at"]
        )
    except (*_UNREADABLE, ValueError):
        return False
    return planned_at == archive.planned_at


def sha256_of(file: IO[bytes]) -> str:
    """Return a file's digest, and rewind it."""
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    file.seek(0)
    return digest


def orders_in(file: IO[bytes], location: str) -> Iterator[OrderText]:
    """Yield the orders of a file, and check its header and trailer.

    Args:
        file: The file, at its beginning.
        location: Its name, for errors.

    Raises:
        ArchiveDamaged: it is no such file, ends too early, or is not what its trailer sums up.
    """
    sums = Sums()
    digest = hashlib.sha256()
    try:
        with gzip.GzipFile(fileobj=file) as packed:
            head = orjson.loads(packed.readline())["header"]
            if (head["format"], head["version"]) != (FORMAT, VERSION):
                raise ArchiveDamaged(f"{location} is of another format: {head['format']}")
            for line in packed:
                rows = orjson.loads(line)
                if "trailer" in rows:
                    if rows["trailer"] != _trailer(sums, digest.hexdigest()):
                        raise ArchiveDamaged(f"{location} is not what its last line sums up")
                    return
                sums.add(rows)
                digest.update(line)
                yield OrderText(rows["order"]["id"], line.decode().rstrip("\n"), rows)
    except _UNREADABLE as error:
        raise ArchiveDamaged(f"{location} cannot be read: {type(error).__name__}") from error
    raise ArchiveDamaged(f"{location} has no last line: it was cut off")


def archives(
    session: Session,
    *,
    ended_after: datetime | None = None,
    accepted_before: datetime | None = None,
) -> list[Archive]:
    """Return the archives whose files are written, the oldest month first.

    Args:
        session: The transaction.
        ended_after: Leave out those whose orders had all ended by then.
        accepted_before: Leave out those whose orders were all accepted from then on.
    """
    wanted = select(Archive).where(col(Archive.written_at).is_not(None))
    if ended_after is not None:
        wanted = wanted.where(col(Archive.until_at) > ended_after)
    if accepted_before is not None:
        wanted = wanted.where(col(Archive.accepted_from) < accepted_before)
    return list(session.exec(wanted.order_by(col(Archive.from_at), col(Archive.id))))


def read_orders(session: Session, archive: Archive) -> Iterator[dict[str, Any]]:
    """Yield the orders of an archive, each with all its rows.

    An order that the database still has at the session's moment is left out, so that in one
    snapshot each order is either here or in the tables.

    Args:
        session: The transaction, best one of :func:`store.database.snapshot`.
        archive: One of :func:`archives`.

    Yields:
        The rows by table: `order`, and lists of `lines`, `attempts`, `saga_log`, `decisions`,
        `ledger` and `notifications`, with the columns of `store/models.py`; times are text in ISO
        8601.

    Raises:
        ArchiveDamaged: the file is not the one that was archived.
        ArchiveRefused: the file is not there, or must not be read.
        ArchiveUnavailable: S3 did not answer.
    """
    with opened(archive.location) as file:
        require_unchanged(file, archive)
        orders = orders_in(file, archive.location)
        while page := list(islice(orders, ORDERS_AT_ONCE)):
            counted = archived_among(session, [order.id for order in page], archive.id)
            yield from (order.rows for order in page if order.id in counted)


def require_unchanged(file: IO[bytes], archive: Archive) -> None:
    """Raise ArchiveDamaged unless a file is byte for byte the archived one.

    Raises:
        ArchiveDamaged: its digest is another one.
    """
    if (found := sha256_of(file)) != archive.sha256:
        raise ArchiveDamaged(
            f"{archive.location} was changed since it was archived: its SHA-256 is {found}, was "
            f"{archive.sha256}; bring the file of {archive.written_at:%Y-%m-%d} back from a backup"
        )
