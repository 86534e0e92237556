"""Archival of orders that ended long ago.

A month's orders are written to a file, which is read back; then they are deleted a group at a time.
An order is deleted only while its rows, under its lock, are exactly those of the file. What is
killed at any moment is finished by the next call (docs/adr/0014-archive.md).
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import islice
from typing import NamedTuple

from sqlalchemy import ColumnElement, delete, func, text
from sqlmodel import Session, SQLModel, col, select

from store.archive_files import (
    ORDERS_AT_ONCE,
    PARTS,
    OrderText,
    header,
    is_of_plan,
    order_texts,
    orders_in,
    require_unchanged,
    sha256_of,
    write_file,
)
from store.archive_places import created, exists, is_at, location_in, opened
from store.archived_orders import Archive, ArchivedOrder
from store.bulk import among, increase, insert_rows
from store.checkpoint import forget_checkpoint
from store.database import reading, revisions, snapshot, transaction
from store.errors import ArchiveDamaged, ArchiveRefused
from store.models import ENDED, HOLDING, Book, Customer, Order, utc_now
from store.saga_log import lock_orders
from store.sessions import ARCHIVING
from store.settings import settings
from tasks.retries import retried

DAYS_AT_LEAST = 30
"""A batch's failed orders are taken again, and a run is retried, within days; a message of SQS
lives for two weeks."""


class Month(NamedTuple):
    """A month of the shop's time zone."""

    name: str
    from_at: datetime
    until_at: datetime


def archive_orders(to: str, older_than: timedelta) -> Iterator[Archive]:
    """Archive the orders that ended in months wholly before a limit.

    What an earlier call left unfinished is finished first.

    Args:
        to: A folder, or `s3://bucket/prefix`.
        older_than: How long ago the months must have ended, at least 30 days.

    Yields:
        Each archive as it is finished.

    Raises:
        ArchiveRefused: the limit is too near, the place is wrong or has such a file already, or
            another process archives now.
        ArchiveUnavailable: S3 did not answer; the next call goes on.
        ArchiveDamaged: what was written is read back otherwise; nothing of it was deleted.
    """
    limit = _limit(older_than)
    location_in(to, "")
    for archive in map(_without_a_lost_file, _unfinished()):
        yield _finish(archive if archive.written_at else _planned(archive.month, archive, to))
    after = None
    while month := _oldest_month(after, limit):
        yield _finish(_planned(month.name, month, to))
        # What has changed in the meantime is left for the next call.
        after = month.until_at


def due_months(older_than: timedelta) -> dict[str, int]:
    """Return the number of orders of each month that would be archived.

    Args:
        older_than: As of :func:`archive_orders`.

    Raises:
        ArchiveRefused: the limit is too near.
    """
    limit = _limit(older_than)
    found: dict[str, int] = {}
    after = None
    while month := _oldest_month(after, limit):
        with reading() as session:
            ended = select(func.count()).select_from(Order).where(*_ended_in(month))
            found[month.name] = session.scalar(ended) or 0
        after = month.until_at
    return found


def _limit(older_than: timedelta) -> datetime:
    if older_than < timedelta(days=DAYS_AT_LEAST):
        raise ArchiveRefused(
            f"older_than: orders are kept for {DAYS_AT_LEAST} days at least, in which they may be "
            f"tried again; give {DAYS_AT_LEAST}d or more. Nothing was archived."
        )
    return utc_now() - older_than


def _oldest_month(after: datetime | None, limit: datetime) -> Month | None:
    """Return the oldest month to archive, None if there is none."""
    with reading() as session:
        ends = [
            session.scalar(
                select(func.min(col(Order.updated_at))).where(
                    col(Order.status) == status,
                    *([] if after is None else [col(Order.updated_at) >= after]),
                )
            )
            for status in ENDED
        ]
    oldest = min(filter(None, ends), default=None)
    month = None if oldest is None else _month_of(oldest)
    return month if month is not None and month.until_at <= limit else None


def _month_of(moment: datetime) -> Month:
    zone = settings().zone
    local = moment.astimezone(zone)
    begin = datetime(local.year, local.month, 1, tzinfo=zone)
    next_year, next_month = divmod(local.year * 12 + local.month, 12)
    return Month(f"{begin:%Y-%m}", begin, datetime(next_year, next_month + 1, 1, tzinfo=zone))


def _ended_in(month: Month | Archive) -> tuple[ColumnElement[bool], ...]:
    return (
        col(Order.status).in_(ENDED),
        col(Order.updated_at) >= month.from_at,
        col(Order.updated_at) < month.until_at,
    )


def _unfinished() -> list[Archive]:
    with reading() as session:
        wanted = select(Archive).where(col(Archive.deleted_at).is_(None)).order_by(col(Archive.id))
        return list(session.exec(wanted))


def _without_a_lost_file(archive: Archive) -> Archive:
    """Return an unfinished archive, unwritten if its file is lost.

    Raises:
        ArchiveRefused, ArchiveDamaged: the file is lost, and some of its orders are deleted.
    """
    if archive.written_at is None:
        return archive
    try:
        with opened(archive.location) as file:
            require_unchanged(file, archive)
    except (ArchiveRefused, ArchiveDamaged):
        with transaction() as session:
            # Whoever deletes its orders at this moment shares the row.
            lost = session.get_one(Archive, archive.id, with_for_update=True)
            of_archive = select(ArchivedOrder).where(ArchivedOrder.archive_id == archive.id)
            if session.exec(of_archive.limit(1)).first() is not None:
                raise
            lost.written_at = lost.sha256 = archive.written_at = None
    return archive


def _planned(name: str, month: Month | Archive, to: str) -> Archive:
    """Record an archive before its file is written, and return it.

    The file of a plan may be written again. Any other file that is there is somebody else's.
    """
    of_month = select(Archive).where(Archive.month == name)
    with reading() as session:
        seen = session.exec(of_month).all()
        own = {each.location for each in seen if each.written_at is None}
    number = len(seen) + (not own)
    suffix = f"-{number}" if number > 1 else ""
    location = location_in(to, f"orders-{name}{suffix}.jsonl.gz")
    if location not in own and exists(location):
        with reading() as session:
            # Planned and written since.
            if len(session.exec(of_month).all()) != len(seen):
                raise _in_progress(name)
        raise _taken(location)
    with transaction() as session:
        # Two that plan the same month make one plan.
        session.execute(text("LOCK TABLE archives IN SHARE ROW EXCLUSIVE MODE"))
        unwritten = of_month.where(col(Archive.written_at).is_(None))
        plan = session.exec(unwritten.with_for_update(skip_locked=True)).first()
        if (plan is None) != (not own) or len(session.exec(of_month).all()) != len(seen):
            raise _in_progress(name)
        if plan is None:
            plan = Archive(
                location=location, month=name, from_at=month.from_at, until_at=month.until_at
            )
            session.add(plan)
        plan.location = location
        session.flush()
        session.refresh(plan)
        return plan


def _finish(archive: Archive) -> Archive:
    """Write an archive's missing file, and delete its orders."""
    if archive.written_at is None:
        archive = _write(archive)
    with opened(archive.location) as file:
        require_unchanged(file, archive)
        for _ in orders_in(file, archive.location):
            pass
        file.seek(0)
        orders = orders_in(file, archive.location)
        while page := list(islice(orders, ORDERS_AT_ONCE)):
            # What is read from may have no name any more, and nobody finds it then.
            if not is_at(archive.location, file):
                raise ArchiveRefused(
                    f"{archive.location} was moved, deleted or replaced while its orders were "
                    "deleted; bring it back and archive again. What is left of them is untouched."
                )
            _delete(archive, page)
    return _concluded(archive.id or 0)


def _write(planned: Archive) -> Archive:
    """Write an archive's file and record its digest and sums.

    Its row is locked meanwhile, which keeps every other process from the file.
    """
    now = utc_now()
    revision, _ = revisions(settings().database_url)
    with transaction(ARCHIVING) as session:
        archive = session.exec(
            select(Archive)
            .where(Archive.id == planned.id, col(Archive.written_at).is_(None))
            .with_for_update(skip_locked=True)
        ).first()
        if archive is None:
            raise _in_progress(planned.month)
        _require_free(archive)
        head = header(archive, revision, settings().timezone, now)
        with created(archive.location) as file:
            with snapshot() as seen:
                sums, accepted_from = write_file(file, head, _texts(seen, archive))
            sha256 = sha256_of(file)
            # A process that stood still for long has lost the row's lock, and another one may have
            # written the file and deleted its orders since.
            session.execute(text("SELECT 1"))
            _require_free(archive)
        archive.sha256, archive.accepted_from = sha256, accepted_from
        archive.sums, archive.written_at = vars(sums), now
    return archive


def _require_free(archive: Archive) -> None:
    """Raise ArchiveRefused if another file is at an archive's place.

    What the plan's own processes have left there may be replaced. A plan is known to its database
    only; another database may archive into the same place.
    """
    if exists(archive.location):
        with opened(archive.location) as file:
            if not is_of_plan(file, archive):
                raise _taken(archive.location)


def _taken(location: str) -> ArchiveRefused:
    return ArchiveRefused(
        f"to: {location} is there already, and no archive of this database; move it away or give "
        "another place. Nothing was archived."
    )


def _in_progress(month: str) -> ArchiveRefused:
    return ArchiveRefused(
        f"to: another process archives the orders of {month} now; archive again when it has ended, "
        "if anything is left. Nothing was archived here."
    )


def _texts(seen: Session, archive: Archive) -> Iterator[str]:
    """Yield the month's orders by their ends, as one snapshot has them."""
    ids = seen.connection().execute(
        select(Order.id).where(*_ended_in(archive)).order_by(col(Order.updated_at), col(Order.id)),
        execution_options={"yield_per": ORDERS_AT_ONCE},
    )
    for page in ids.scalars().partitions():
        texts = order_texts(seen, page)
        yield from (texts[id_] for id_ in page)


@retried
def _delete(archive: Archive, page: Sequence[OrderText]) -> None:
    """Delete those orders of a page whose rows are still the file's.

    One that was retried, answered late or changed by hand is left.
    """
    with transaction() as session:
        of_archive = select(Archive.sha256).where(Archive.id == archive.id)
        if session.scalar(of_archive.with_for_update(read=True)) != archive.sha256:
            raise _in_progress(archive.month)
        locked = lock_orders(session, [order.id for order in page])
        present = order_texts(session, list(locked))
        same = [order for order in page if present.get(order.id) == order.text]
        if not same:
            return
        ids = [order.id for order in same]
        for name, (model, _) in PARTS.items():
            _delete_rows(session, model, "order_id", ids, sum(len(o.rows[name]) for o in same))
        _delete_rows(session, Order, "id", ids, len(ids))
        insert_rows(
            session, ArchivedOrder, [{"order_id": id_} for id_ in ids], archive_id=archive.id
        )
        forget_checkpoint(session)
        # Last, since each checkout of the same title waits for its row.
        _lower_initial_numbers(session, same)


def _delete_rows(
    session: Session, model: type[SQLModel], key: str, ids: Sequence[str], expected: int
) -> None:
    deleted = session.connection().execute(delete(model).where(among(getattr(model, key), ids)))
    # The gateway's and the topic's rows are written without the order's lock.
    if deleted.rowcount != expected:
        raise ArchiveRefused(
            f"older_than: {model.__tablename__} of an order that ended long ago changed at this "
            "moment; archive again. Nothing of its group was deleted."
        )


def _lower_initial_numbers(session: Session, orders: Sequence[OrderText]) -> None:
    """Subtract what orders hold from the initial stock and points."""
    copies: dict[str, int] = {}
    points: dict[str, int] = {}
    for order in orders:
        for record in order.rows["saga_log"]:
            if record["state"] not in HOLDING:
                continue
            if record["step"] == "check_inventory":
                for line in order.rows["lines"]:
                    _subtract(copies, line["book_id"], line["quantity"])
            if record["step"] == "redeem_points":
                _subtract(points, record["result"]["user_id"], record["result"]["points"])
    _lock(session, Book, copies)
    _lock(session, Customer, points)
    increase(session, Book, "initial_quantity", copies)
    increase(session, Customer, "initial_points", points)


def _subtract(amounts: dict[str, int], id_: str, amount: int) -> None:
    amounts[id_] = amounts.get(id_, 0) - amount


def _lock(session: Session, model: type[Book] | type[Customer], ids: dict[str, int]) -> None:
    wanted = select(model.id).where(among(col(model.id), ids)).order_by(col(model.id))
    session.connection().execute(wanted.with_for_update())


@retried
def _concluded(archive_id: int) -> Archive:
    """Record that an archive's orders are deleted, and return it."""
    with transaction() as session:
        archive = session.get_one(Archive, archive_id, with_for_update=True)
        archive.archived = session.scalar(
            select(func.count())
            .select_from(ArchivedOrder)
            .where(ArchivedOrder.archive_id == archive_id)
        )
        archive.verified_at = archive.deleted_at = utc_now()
        return archive
