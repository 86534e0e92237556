"""Import of books and users from the original's DynamoDB tables.

The tables are read page by page and never written. Each page is one transaction, and what was
reached is noted after it, so that an import that was interrupted goes on when it is called again.
A row that is known already is brought up to date until this shop has its first order; from then
on stock and points live here, and it is left as it is.

Region and credentials come from boto3's own chain, the address from `STORE_AWS_ENDPOINT_URL`.
"""

import csv
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from boto3.dynamodb.types import TypeDeserializer
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import func
from sqlalchemy import select as select_columns
from sqlmodel import Session, col, select

from seed.catalogue import GOOD_CARD
from seed.original_items import ItemRefused, Taken, book, customer
from store import aws
from store.bulk import insert_missing
from store.database import migrate, reading, transaction
from store.errors import SourceUnavailable, UnreadableSource
from store.messages import PaymentMethod
from store.models import Book, Customer, Order
from store.partners import wrong_method
from store.settings import settings
from terminal.command_line import WRONG_USAGE, command
from terminal.output import complain, print_table, terminal
from terminal.rows import cell

PAGE_ITEMS = 1_000
"""Items of one call and one transaction; they bound the memory, and what is read twice at most."""
FOLDER = Path("dynamodb-import")

_ERRORS = aws.Errors(SourceUnavailable, UnreadableSource)
_PAYMENT_METHOD: TypeAdapter[str] = TypeAdapter(PaymentMethod)
_OUTCOMES = ("new", "brought up to date", "unchanged", "left as it is here", "rejected")


@dataclass(frozen=True, slots=True)
class Source:
    """A table of the original, with its key and its model here."""

    table: str
    key: str
    model: type[Book] | type[Customer]
    take: Callable[[Mapping[str, Any]], Taken]


@dataclass
class Progress:
    """The progress of one table's import, with its items' outcomes."""

    next_key: dict[str, Any] | None = None
    is_done: bool = False
    outcomes: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)


class ImportFolder:
    """The folder of an import's progress and rejected items.

    The keys of rejected items may say who a customer is, so nobody else may read the files.

    Args:
        folder: Made if it is missing.
        tables: The tables that are read.
        into: Where they are read from and put; no other import goes on from here.

    Raises:
        UnreadableSource: an unfinished import of something else is kept there.
    """

    def __init__(self, folder: Path, tables: Sequence[str], into: Mapping[str, str | None]) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.rejects = folder / "rejects.csv"
        self._state = folder / "state.json"
        self._what = {"tables": list(tables), **into}
        self.progress = {table: Progress() for table in tables}
        self.goes_on = False
        kept = json.loads(self._state.read_text()) if self._state.exists() else None
        if kept and not all(table["is_done"] for table in kept["progress"].values()):
            if kept["what"] != self._what:
                raise UnreadableSource(
                    f"{folder} keeps an unfinished import of other tables, or into another "
                    "database; finish it, name another --folder, or delete this one"
                )
            self.goes_on = True
            self.progress = {
                table: Progress(
                    read["next_key"],
                    read["is_done"],
                    *(Counter(read[name]) for name in ("outcomes", "missing", "left_out")),
                )
                for table, read in kept["progress"].items()
            }
        # What was written after the last noted page belongs to items that are read again.
        with _private(self.rejects, "a") as file:
            file.truncate(kept["rejects_bytes"] if kept and self.goes_on else 0)
        if not self.goes_on:
            self._append([("table", "key", "field", "reason")])

    def note(self, rejects: Sequence[tuple[str, str, str, str]]) -> None:
        """Write a page's rejects, then the progress.

        The page is in the database already.
        """
        self._append(rejects)
        new = self._state.with_suffix(".new")
        with _private(new, "w") as file:
            json.dump(
                {
                    "what": self._what,
                    "rejects_bytes": self.rejects.stat().st_size,
                    "progress": {name: vars(table) for name, table in self.progress.items()},
                },
                file,
            )
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._state)

    def _append(self, rows: Sequence[Sequence[str]]) -> None:
        with _private(self.rejects, "a") as file:
            csv.writer(file).writerows(map(cell, row) for row in rows)
            file.flush()
            os.fsync(file.fileno())


def _private(path: Path, mode: str) -> Any:
    def opener(name: str, flags: int) -> int:
        return os.open(name, flags, 0o600)

    return open(path, mode, newline="", encoding="utf-8", opener=opener)


def import_tables(
    sources: Sequence[Source],
    folder: ImportFolder,
    report: Callable[[str], None] = lambda _line: None,
) -> None:
    """Read each table to its end, from where the last import stopped.

    Args:
        sources: The tables, in the order in which they are read.
        folder: How far the import is; kept after each page.
        report: Called with a line after each page.

    Raises:
        SourceUnavailable: DynamoDB did not answer; what was read is kept.
        UnreadableSource: DynamoDB refuses, or a table is not one of the original's.
    """
    for source in sources:
        progress = folder.progress[source.table]
        while not progress.is_done:
            items, progress.next_key = _page(source, progress.next_key)
            taken, rejects = _sorted_out(source, items)
            with transaction() as session:
                outcomes = _put(session, source.model, taken)
            progress.outcomes.update(outcomes, rejected=len(rejects))
            for each in taken:
                progress.missing.update(each.missing)
                progress.left_out.update(each.left_out)
            progress.is_done = progress.next_key is None
            folder.note(rejects)
            report(f"{source.table}: {progress.outcomes.total()} items")


def _page(
    source: Source, start: dict[str, Any] | None
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Return the next page's items, and its last key."""
    # The final import reads what the old shop wrote last.
    options: dict[str, Any] = {"ConsistentRead": True, "Limit": PAGE_ITEMS}
    if start is not None:
        options["ExclusiveStartKey"] = start
    with aws.calling(f"reading {source.table}", _ERRORS):
        client = aws.dynamodb(settings().aws_endpoint_url)
        answer = client.scan(TableName=source.table, **options)
    next_key: dict[str, Any] | None = answer.get("LastEvaluatedKey")
    if next_key is not None and (set(next_key) != {source.key} or "S" not in next_key[source.key]):
        raise UnreadableSource(
            f"{source.table} is no such table of the original: its key is "
            f"{', '.join(sorted(next_key))}, not the text {source.key}"
        )
    return answer["Items"], next_key


def _sorted_out(
    source: Source, items: Sequence[Mapping[str, Any]]
) -> tuple[list[Taken], list[tuple[str, str, str, str]]]:
    read = TypeDeserializer().deserialize
    taken: list[Taken] = []
    rejects: list[tuple[str, str, str, str]] = []
    for item in items:
        values = {name: read(value) for name, value in item.items()}
        try:
            taken.append(source.take(values))
        except ItemRefused as refused:
            key = str(values.get(source.key, ""))
            rejects.append((source.table, key, refused.field, refused.reason))
    return taken, rejects


def _put(
    session: Session, model: type[Book] | type[Customer], taken: Sequence[Taken]
) -> Counter[str]:
    """Insert new rows, and update known ones before the first order."""
    ids = [each.row["id"] for each in taken]
    found: Iterable[Book | Customer] = session.scalars(
        select(model).where(col(model.id).in_(ids)).order_by(col(model.id)).with_for_update()
    )
    known = {row.id: row for row in found}
    # Asked with the rows locked: an order that comes now waits, and finds them up to date.
    has_orders = session.scalar(select(Order.id).limit(1)) is not None
    new = insert_missing(
        session, model, [e.row | e.only_new for e in taken if e.row["id"] not in known]
    )
    outcomes = Counter(new=len(new))
    for each in taken:
        row = known.get(each.row["id"])
        if row is None:
            continue
        if all(getattr(row, name) == value for name, value in each.row.items()):
            outcomes["unchanged"] += 1
        elif has_orders:
            outcomes["left as it is here"] += 1
        else:
            for name, value in each.row.items():
                setattr(row, name, value)
            outcomes["brought up to date"] += 1
    return outcomes


@command("python -m seed.dynamodb", __doc__)
def main(
    *, book_table: str, user_table: str, payment_method: str = GOOD_CARD, folder: Path = FOLDER
) -> int:
    """Import both tables.

    The status is 1 if an item was rejected or the import stops.

    Args:
        book_table: The name of the original's table of books.
        user_table: The name of the original's table of users.
        payment_method: What new customers pay with; the original knows none.
        folder: Where the import keeps how far it is, and what it could not take.
    """
    output = terminal()
    try:
        _PAYMENT_METHOD.validate_python(payment_method)
    except ValidationError:
        return complain(
            "--payment-method is the gateway's id of one, which begins with a letter", WRONG_USAGE
        )
    problem = wrong_method(payment_method)
    if problem is not None:
        return complain(f"--payment-method: {problem}. Nothing was changed.")
    url = settings().database_url
    migrate(url)
    sources = [
        Source(book_table, "bookId", Book, book),
        Source(user_table, "userId", Customer, partial(customer, payment_method=payment_method)),
    ]
    try:
        kept = ImportFolder(
            folder,
            [source.table for source in sources],
            {
                "endpoint": settings().aws_endpoint_url,
                # Not the URL: it may hold a password.
                "database": hashlib.sha256(url.encode()).hexdigest(),
            },
        )
        if kept.goes_on:
            output.print("the import that was interrupted goes on")
        import_tables(sources, kept, output.print)
    except SourceUnavailable as error:
        return complain(f"{error}\nWhat was read is kept; the same command goes on from there.")
    _print_totals(sources, kept)
    return 1 if any(p.outcomes["rejected"] for p in kept.progress.values()) else 0


def _print_totals(sources: Sequence[Source], folder: ImportFolder) -> None:
    counted = [(source.table, folder.progress[source.table].outcomes) for source in sources]
    print_table(
        "Imported",
        ["table", "read", *_OUTCOMES],
        (
            [table, outcomes.total(), *(outcomes[o] for o in _OUTCOMES)]
            for table, outcomes in counted
        ),
        empty="",
    )
    output = terminal()
    for source in sources:
        progress = folder.progress[source.table]
        for name, count in sorted(progress.missing.items()):
            output.print(f"{source.table}: {count} items have no {name}")
        for name, count in sorted(progress.left_out.items()):
            output.print(f"{source.table}: {name} of {count} items has no place here")
    if any(folder.progress[source.table].outcomes["rejected"] for source in sources):
        output.print(f"Rejected, with the reasons: {folder.rejects}")
    with reading() as session:
        books, copies = session.execute(
            select_columns(func.count(), func.coalesce(func.sum(Book.quantity), 0))
        ).one()
        customers, points = session.execute(
            select_columns(func.count(), func.coalesce(func.sum(Customer.points), 0))
        ).one()
    output.print(
        f"The shop has {books} books with {copies} copies, {customers} customers with {points} "
        "points."
    )


if __name__ == "__main__":
    sys.exit(main())
