"""Comparison of archives' files with what was archived."""

from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from sqlalchemy import func
from sqlmodel import col, select

from store.archive_files import (
    ORDERS_AT_ONCE,
    Sums,
    archives,
    orders_in,
    require_unchanged,
)
from store.archive_places import opened
from store.archived_orders import Archive, ArchivedOrder, archived_among
from store.database import reading, snapshot, transaction
from store.errors import ArchiveDamaged, ArchiveRefused
from store.models import utc_now


@dataclass(frozen=True, slots=True)
class Verified:
    """An archive's file as it was found.

    ``left_out`` counts its orders that changed before they were deleted: they stayed in the
    database. ``problem`` is empty where the file is as it was archived.
    """

    archive: Archive
    location: str
    left_out: int = 0
    problem: str = ""


def archives_to_verify(files: list[str]) -> list[tuple[Archive, str]]:
    """Return the archives of these files, or all, each with its file.

    Args:
        files: Where the files are: as they were written, or copies of the same names.

    Raises:
        ArchiveRefused: a file is of no archive of this database.
    """
    with reading() as session:
        known = archives(session)
    if not files:
        return [(archive, archive.location) for archive in known]
    return [(_archive_of(file, known), file) for file in files]


def _archive_of(file: str, known: list[Archive]) -> Archive:
    place = file if file.startswith("s3://") else str(Path(file).absolute())
    name = file.rpartition("/")[2]
    of_place = [archive for archive in known if archive.location == place]
    of_name = [archive for archive in known if archive.location.rpartition("/")[2] == name]
    for found in (of_place, of_name):
        if len(found) == 1:
            return found[0]
    raise ArchiveRefused(
        f"{file} is no archive of this database; `checkout archive verify` without a file compares "
        "all there are"
    )


def verify(archive: Archive, location: str) -> Verified:
    """Compare a file with what was archived in it.

    Its digest, its sums and the ids of its orders are compared.

    Raises:
        ArchiveUnavailable: S3 did not answer.
    """
    sums = Sums()
    counted = 0
    try:
        with opened(location) as file, snapshot() as session:
            require_unchanged(file, archive)
            orders = orders_in(file, location)
            while page := list(islice(orders, ORDERS_AT_ONCE)):
                for order in page:
                    sums.add(order.rows)
                counted += len(archived_among(session, [o.id for o in page], archive.id))
            of_archive = col(ArchivedOrder.archive_id) == archive.id
            recorded = session.scalar(
                select(func.count(col(ArchivedOrder.order_id)).filter(of_archive))
            )
    except (ArchiveDamaged, ArchiveRefused) as error:
        return Verified(archive, location, problem=str(error))
    problem = ""
    if asdict(sums) != archive.sums:
        problem = f"its sums are {asdict(sums)}, were {archive.sums}"
    elif counted != recorded:
        problem = f"{recorded} orders were archived in it, and it has {counted} of them"
    elif archive.deleted_at is None:
        problem = "its orders are not all deleted yet; archive again"
    elif recorded != archive.archived:
        problem = f"{archive.archived} orders were archived in it, and {recorded} are recorded"
    elif location == archive.location:
        _note(archive)
    return Verified(archive, location, sums.orders - counted, problem)


def _note(archive: Archive) -> None:
    with transaction() as session:
        session.get_one(Archive, archive.id, with_for_update=True).verified_at = utc_now()
