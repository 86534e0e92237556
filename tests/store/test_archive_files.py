"""A file of archived orders describes itself, sums itself up, and is read as it was written."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import delete

from orders.acceptance import begin_attempt
from store.archive_files import (
    PARTS,
    archives,
    header,
    order_texts,
    orders_in,
    read_orders,
    sha256_of,
    write_file,
)
from store.archived_orders import Archive, ArchivedOrder
from store.database import reading, transaction
from store.errors import ArchiveDamaged
from store.models import Order, utc_now
from tests.shop import an_order, carry_on, end_run, place, placed

ORDERS = ["dispatched", "twice", "rejected"]


def place_all(setting: Callable[[str, object], None]) -> None:
    """One order of each ending; one was compensated in dollars, and then dispatched in euros."""
    placed("dispatched", "dispatch_order", 20, redeem=True)
    placed("twice", "bill_customer", 3)
    end_run("twice")
    setting("currency", "EUR")
    begin_attempt(an_order("twice", 3), "run", "a person's Retry")
    carry_on(["twice"])
    place("rejected")
    end_run("rejected")


def written(folder: Path) -> Archive:
    """An archive of all orders, of which those of ``ORDERS[:2]`` are recorded as archived."""
    now = utc_now()
    archive = Archive(
        location=str(folder / "f.jsonl.gz"), month="2026-01", from_at=now, until_at=now
    )
    with transaction() as session, Path(archive.location).open("w+b") as file:
        texts = order_texts(session, ORDERS)
        head = header(archive, "0008", "UTC", now)
        sums, archive.accepted_from = write_file(file, head, [texts[id_] for id_ in ORDERS])
        archive.sha256, archive.written_at = sha256_of(file), now
        archive.sums = vars(sums)
        session.add(archive)
        session.flush()
        session.add_all(
            ArchivedOrder(order_id=id_, archive_id=archive.id or 0) for id_ in ORDERS[:2]
        )
        session.refresh(archive)
        session.expunge(archive)
    return archive


@pytest.fixture
def archive(
    database: str, tmp_path: Path, setting: Callable[[str, object], None]
) -> Iterator[Archive]:
    place_all(setting)
    yield written(tmp_path)
    with transaction() as session:
        session.execute(delete(ArchivedOrder))


def lines(archive: Archive) -> list[Any]:
    with gzip.open(archive.location, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_a_file_describes_itself_and_has_every_column_of_every_order(archive: Archive) -> None:
    first, *orders, last = lines(archive)
    assert first["header"]["month"] == "2026-01"
    assert [each["order"]["id"] for each in orders] == ORDERS
    assert [len(orders[1][part]) for part in PARTS] == [1, 1, 8, 1, 3, 1]
    columns = first["header"]["columns"]
    assert set(columns["order"]) - {""} == set(orders[0]["order"]) == set(Order.model_fields)
    for part in PARTS:
        assert set(columns[part]) - {""} == set(orders[1][part][0])
    assert last["trailer"] | {"orders_sha256": ""} == {
        "orders": 3,
        "dispatched": 2,
        "rejected": 1,
        "compensated": 0,
        "copies": 23,
        "points": 300,
        "captured_cents": {"USD": 160_00, "EUR": 60_00},
        "refunded_cents": {"USD": 60_00},
        "orders_sha256": "",
    }


def test_only_the_orders_that_were_archived_are_read(archive: Archive) -> None:
    with reading() as session:
        (found,) = archives(session, ended_after=archive.from_at.replace(year=2020))
        read = list(read_orders(session, found))
        assert archives(session, ended_after=archive.until_at) == []
        assert archives(session, accepted_before=archive.accepted_from) == []
    assert [each["order"]["id"] for each in read] == ORDERS[:2]
    assert read == lines(archive)[1:3]


def damaged(content: bytes, how: str) -> bytes:
    match how:
        case "cut off":
            return content[: len(content) // 2]
        case "without its last line":
            return gzip.compress(b"\n".join(gzip.decompress(content).split(b"\n")[:-2]) + b"\n")
        case "another amount":
            return gzip.compress(gzip.decompress(content).replace(b"16000", b"16001"))
        case "another line":
            return gzip.compress(gzip.decompress(content).replace(b'"copies":20', b'"copies":21'))
        case _:
            return b"no archive"


@pytest.mark.parametrize(
    "how", ["cut off", "without its last line", "another amount", "another line", "another file"]
)
def test_a_damaged_file_is_found_by_itself_and_by_its_digest(archive: Archive, how: str) -> None:
    path = Path(archive.location)
    path.write_bytes(damaged(path.read_bytes(), how))
    with path.open("rb") as file, pytest.raises(ArchiveDamaged):
        list(orders_in(file, archive.location))
    with reading() as session, pytest.raises(ArchiveDamaged, match="was changed since"):
        list(read_orders(session, archive))
