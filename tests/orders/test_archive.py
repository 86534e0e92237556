"""Orders that ended long ago move into files, and the books balance before, during and after."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import delete, text
from sqlalchemy.exc import OperationalError
from sqlmodel import Session, col, select

import orders.archive
from orders.acceptance import accept_order, begin_attempt, claim_failed_orders, known_order
from orders.archive import archive_orders, due_months
from orders.archive_check import Verified, archives_to_verify, verify
from orders.decisions import decisions_of
from orders.intake import claim_orders, submit_orders
from orders.lookup import read_order
from reports.audit import audit
from reports.checkpoint import move_checkpoint, read_checkpoint
from reports.receipts import explain
from seed.catalogue import EDUARDO_SANTANA, TEN_X_RULE
from store.archive_files import (
    archives,
    header,
    order_texts,
    read_orders,
    sha256_of,
    write_file,
)
from store.archive_places import exists, opened
from store.archived_orders import Archive, ArchivedOrder, archive_of
from store.blockers import blockers
from store.database import reading, snapshot, transaction
from store.errors import ArchiveDamaged, ArchiveRefused, CheckoutFailed, OrderArchived
from store.messages import NO_COURIER, CourierAnswer, OrderMessage
from store.models import Book, Customer, Order, utc_now
from store.saga import fail_orders
from tasks.couriers import record_answer
from tests.polling import wait_until
from tests.shop import (
    LONG_AGO,
    an_order,
    at_once,
    carry_on,
    end_at,
    end_run,
    give_back,
    ledger,
    notices,
    place,
    placed,
    points,
    statuses,
    stock,
)

YEAR = timedelta(days=365)


def a_shop_of_years() -> None:
    """Orders of each ending that ended long ago, and orders that are still needed."""
    placed("sold", "dispatch_order", 20, redeem=True)
    placed("twice", "bill_customer", 3)
    end_run("twice")
    begin_attempt(an_order("twice", 3), "run", "a person's Retry")
    carry_on(["twice"])
    placed("undone", "prepare_order", 4, redeem=True)
    end_run("undone")
    place("rejected")
    end_run("rejected")
    end_at(LONG_AGO, "sold", "twice", "undone")
    end_at(LONG_AGO + timedelta(days=40), "rejected")
    placed("recent", "dispatch_order", 5)
    placed("waiting", "prepare_order", 6)
    end_at(LONG_AGO, "waiting")


@pytest.fixture
def shop(database: str) -> None:
    a_shop_of_years()


def archive(to: Path, older_than: timedelta = YEAR) -> list[Archive]:
    return list(archive_orders(str(to), older_than))


def all_archived() -> dict[str, dict[str, Any]]:
    """Every order in the files, by its id; none is there twice."""
    with snapshot() as session:
        found = [each for of in archives(session) for each in read_orders(session, of)]
    by_id = {each["order"]["id"]: each for each in found}
    assert len(by_id) == len(found)
    return by_id


def in_tables() -> set[str]:
    with reading() as session:
        return set(session.exec(select(Order.id)))


def findings() -> list[str]:
    with snapshot() as session:
        return [str(found) for found in audit(session) if not found.is_warning]


def initial() -> tuple[int, int]:
    with reading() as session:
        return (
            session.get_one(Book, TEN_X_RULE).initial_quantity,
            session.get_one(Customer, EDUARDO_SANTANA).initial_points,
        )


def test_orders_of_past_months_are_in_one_file_a_month_and_nowhere_else(
    shop: None, tmp_path: Path
) -> None:
    copies, granted = initial()
    before = (stock(), points())
    assert due_months(YEAR) == {"2024-05": 3, "2024-06": 1}
    done = archive(tmp_path)
    assert [(each.month, each.archived) for each in done] == [("2024-05", 3), ("2024-06", 1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "orders-2024-05.jsonl.gz",
        "orders-2024-06.jsonl.gz",
    ]
    assert in_tables() == {"recent", "waiting"}
    found = all_archived()
    assert set(found) == {"sold", "twice", "undone", "rejected"}
    assert [record["attempt"] for record in found["twice"]["saga_log"]] == [1] * 3 + [2] * 5
    assert [entry["status"] for entry in found["undone"]["ledger"]] == ["captured", "refunded"]
    assert {key.partition(":")[0] for key, *_ in ledger()} == {"recent", "waiting"}
    assert not [key for key in notices() if key.startswith(("sold", "twice", "undone"))]
    assert (stock(), points()) == before
    assert initial() == (copies - 23, granted - 300)
    assert findings() == []
    assert archive(tmp_path) == []


def test_the_first_audit_after_an_archival_is_a_full_one(shop: None, tmp_path: Path) -> None:
    assert move_checkpoint(None, utc_now())
    archive(tmp_path)
    with reading() as session:
        assert read_checkpoint(session) is None
    assert findings() == []
    assert move_checkpoint(None, utc_now())
    with snapshot() as session:
        found = [
            str(each) for each in audit(session, read_checkpoint(session)) if not each.is_warning
        ]
    assert found == []


def test_a_limit_that_is_too_near_and_a_place_that_is_not_there_are_refused(
    shop: None, tmp_path: Path
) -> None:
    with pytest.raises(ArchiveRefused, match=r"older_than: .* give 30d or more"):
        archive(tmp_path, timedelta(days=29))
    with pytest.raises(ArchiveRefused, match="to: there is no folder"):
        archive(tmp_path / "mount")
    assert len(in_tables()) == 6


def test_a_month_is_archived_when_all_of_it_is_old_enough(
    database: str, setting: Callable[[str, object], None], tmp_path: Path
) -> None:
    setting("timezone", "Europe/Berlin")
    placed("may-in-berlin", "dispatch_order")
    placed("june", "dispatch_order")
    end_at(datetime(2024, 4, 30, 22, 30, tzinfo=UTC), "may-in-berlin")
    end_at(datetime(2024, 6, 1, tzinfo=UTC), "june")
    since = datetime(2024, 5, 31, 22, tzinfo=UTC)
    now = datetime.now(UTC)
    assert due_months(now - since + timedelta(hours=1)) == {}
    (done,) = archive(tmp_path, now - since - timedelta(hours=1))
    assert (done.month, done.archived) == ("2024-05", 1)
    assert in_tables() == {"june"}


def test_whatever_is_asked_of_an_archived_order_is_refused(shop: None, tmp_path: Path) -> None:
    archive(tmp_path)
    sold = an_order("sold", 20, redeem=True)
    for ask in (
        lambda: accept_order(sold, "another run"),
        lambda: accept_order(an_order("undone", 7), "run"),
        lambda: begin_attempt(an_order("undone", 4, redeem=True), "run", "a Retry"),
        lambda: known_order(sold),
        lambda: read_order("sold"),
        lambda: record_answer("sold", CourierAnswer(outcome=NO_COURIER, answered_by="Ada")),
        lambda: explain("sold", CheckoutFailed("the run failed")),
    ):
        with pytest.raises(OrderArchived, match=r"`checkout show (sold|undone)` names its file"):
            ask()
    new, first, again = submit_orders([an_order("new"), sold, an_order("sold")])
    assert new is True
    assert isinstance(first, OrderArchived)
    assert isinstance(again, OrderArchived)
    assert claim_failed_orders("run", "run", 10) == []
    assert in_tables() == {"recent", "waiting", "new"}
    found = archive_of("sold")
    assert found is not None
    assert found.location == str(tmp_path / "orders-2024-05.jsonl.gz")
    message = OrderMessage(order_id="sold", attempt=1, copies=20)
    assert decisions_of([message])[message].is_done


def test_an_order_that_changes_after_it_was_written_stays_and_counts_once(
    shop: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(orders.archive, "_delete", interrupted)
        with pytest.raises(KeyboardInterrupt):
            archive(tmp_path)
    assert all_archived() == {}
    begin_attempt(an_order("undone", 4, redeem=True), "run", "a Retry")
    record_answer("twice", CourierAnswer(outcome=NO_COURIER, answered_by="Ada, too late"))
    assert [each.archived for each in archive(tmp_path)] == [1, 1, 1]
    assert set(all_archived()) == {"sold", "twice", "rejected"}
    carry_on(["undone"])
    end_at(LONG_AGO, "undone")
    (done,) = archive(tmp_path)
    assert done.location == str(tmp_path / "orders-2024-05-3.jsonl.gz")
    found = all_archived()
    assert set(found) == {"sold", "twice", "undone", "rejected"}
    assert len(found["twice"]["decisions"]) == 2
    assert found["undone"]["order"]["status"] == "dispatched"
    assert findings() == []
    assert [(v.left_out, v.problem) for v in map(verify_pair, archives_to_verify([]))] == [
        *((2, ""), (0, ""), (0, ""), (0, ""))
    ]


def verify_pair(pair: tuple[Archive, str]) -> Verified:
    return verify(*pair)


def test_of_a_retry_and_the_archival_of_an_order_exactly_one_wins(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"order-{number}" for number in range(40)]
    for id_ in ids:
        place(id_)
        end_run(id_)
    end_at(LONG_AGO, *ids)

    def retry(of: list[str]) -> list[str]:
        won = []
        for id_ in of:
            with suppress(OrderArchived):
                if begin_attempt(an_order(id_), "run", "a Retry").owned:
                    won.append(id_)
        return won

    monkeypatch.setattr(orders.archive, "ORDERS_AT_ONCE", 3)
    first, second, done = at_once(
        [lambda: retry(ids[::2]), lambda: retry(ids[::-2]), lambda: archive(tmp_path)]
    )
    assert isinstance(first, list)
    assert isinstance(second, list)
    assert isinstance(done, list)
    assert in_tables() == {*first, *second}
    assert in_tables() | all_archived().keys() == set(ids)
    assert not in_tables() & all_archived().keys()
    assert statuses(in_tables()) <= {"started"}


def test_an_order_sent_again_while_it_is_archived_waits_and_is_refused(
    shop: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = orders.archive._lower_initial_numbers
    is_deleted = threading.Event()

    def both_wait() -> bool:
        with reading() as looking:
            return sum(each.waiting for each in blockers(looking)) == 2

    def held_up(session: Session, deleted: Any) -> None:
        if not is_deleted.is_set():
            is_deleted.set()
            # The rows are deleted and not committed; who inserts one again waits for that.
            wait_until(both_wait, "two that wait")
        real(session, deleted)

    monkeypatch.setattr(orders.archive, "_lower_initial_numbers", held_up)

    def send_again() -> Any:
        assert is_deleted.wait(30)
        return submit_orders([an_order("sold", 20, redeem=True)])[0]

    def start_again() -> None:
        assert is_deleted.wait(30)
        accept_order(an_order("twice", 3), "another run")

    _, sent, started = at_once([lambda: archive(tmp_path), send_again, start_again])
    assert isinstance(sent, OrderArchived)
    assert isinstance(started, OrderArchived)
    assert in_tables() == {"recent", "waiting"}


def test_a_file_of_somebody_else_is_not_replaced(shop: None, tmp_path: Path) -> None:
    theirs = tmp_path / "orders-2024-05.jsonl.gz"
    theirs.write_text("of another shop")
    with pytest.raises(ArchiveRefused, match="is there already, and no archive of this database"):
        archive(tmp_path)
    assert theirs.read_text() == "of another shop"
    theirs.unlink()
    assert [each.month for each in archive(tmp_path)] == ["2024-05", "2024-06"]


def test_a_file_that_another_shop_writes_after_the_plan_is_not_replaced(
    shop: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place_of_may = tmp_path / "orders-2024-05.jsonl.gz"

    def of_another_shop() -> bytes:
        now = utc_now()
        plan = Archive(location=str(place_of_may), month="2024-05", from_at=now, until_at=now)
        with place_of_may.open("w+b") as file:
            write_file(file, header(plan, "0008", "UTC", now), [])
        return place_of_may.read_bytes()

    def killed(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(orders.archive, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            archive(tmp_path)
    theirs = of_another_shop()
    with pytest.raises(ArchiveRefused, match="is there already, and no archive of this database"):
        archive(tmp_path)
    assert place_of_may.read_bytes() == theirs
    place_of_may.unlink()
    with monkeypatch.context() as patch:
        # While this shop's file is written.
        patch.setattr(orders.archive, "sha256_of", lambda _: sha256(of_another_shop()).hexdigest())
        with pytest.raises(ArchiveRefused, match="is there already"):
            archive(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [place_of_may.name]
    place_of_may.unlink()
    assert [each.archived for each in archive(tmp_path)] == [3, 1]


def test_a_process_that_stood_still_does_not_replace_the_file_of_its_successor(
    shop: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    successors: list[Archive] = []

    def stand_still(file: Any) -> str:
        monkeypatch.undo()
        with reading() as session:
            ended = text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE state = 'idle in transaction' AND query LIKE '%archives%'"
            )
            session.execute(ended)
        successors.extend(archive(tmp_path))
        return sha256_of(file)

    monkeypatch.setattr(orders.archive, "sha256_of", stand_still)
    with pytest.raises(OperationalError):
        archive(tmp_path)
    assert [each.archived for each in successors] == [3, 1]
    assert [verify_pair(pair).problem for pair in archives_to_verify([])] == ["", ""]
    assert len(list(tmp_path.iterdir())) == 2


def test_two_that_archive_at_once_write_each_file_once(shop: None, tmp_path: Path) -> None:
    answers = at_once([lambda: archive(tmp_path), lambda: archive(tmp_path)])
    assert all(isinstance(answer, list | ArchiveRefused) for answer in answers), answers
    archive(tmp_path)
    assert set(all_archived()) == {"sold", "twice", "undone", "rejected"}
    assert len(list(tmp_path.iterdir())) == 2
    assert findings() == []


def test_the_file_of_another_process_is_not_taken_for_that_of_another_shop(
    shop: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def after_another_process(location: str) -> bool:
        monkeypatch.undo()
        archive(tmp_path)
        return exists(location)

    monkeypatch.setattr(orders.archive, "exists", after_another_process)
    with pytest.raises(ArchiveRefused, match="another process archives the orders of 2024-05 now"):
        archive(tmp_path)


def test_nothing_is_deleted_because_of_a_file_that_has_changed(
    shop: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaging(location: str) -> Any:
        with Path(location).open("r+b") as file:
            file.seek(-20, os.SEEK_END)
            (byte,) = file.read(1)
            file.seek(-20, os.SEEK_END)
            file.write(bytes([byte ^ 1]))
        return opened(location)

    with monkeypatch.context() as patch:
        patch.setattr(orders.archive, "opened", damaging)
        with pytest.raises(ArchiveDamaged, match="was changed since it was archived"):
            archive(tmp_path)
    assert len(in_tables()) == 6
    assert [each.archived for each in archive(tmp_path)] == [3, 1]
    assert [verify_pair(pair).problem for pair in archives_to_verify([])] == ["", ""]


def test_a_file_that_is_lost_in_the_midst_of_the_deletion_must_come_back(
    shop: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(orders.archive, "_concluded", interrupted)
        with pytest.raises(KeyboardInterrupt):
            archive(tmp_path)
    may = tmp_path / "orders-2024-05.jsonl.gz"
    may.rename(tmp_path / "moved")
    with pytest.raises(ArchiveRefused, match="cannot be read: No such file"):
        archive(tmp_path)
    assert not may.exists()
    (tmp_path / "moved").rename(may)
    assert [each.archived for each in archive(tmp_path)] == [3, 1]


@pytest.mark.parametrize("is_replaced", [False, True])
def test_no_more_is_deleted_once_the_file_is_gone(
    is_replaced: bool, shop: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = orders.archive._delete
    may = tmp_path / "orders-2024-05.jsonl.gz"

    def then_gone(plan: Archive, page: Any) -> None:
        real(plan, page)
        may.rename(tmp_path / "moved")
        if is_replaced:
            may.write_bytes((tmp_path / "moved").read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr(orders.archive, "ORDERS_AT_ONCE", 1)
        patch.setattr(orders.archive, "_delete", then_gone)
        with pytest.raises(ArchiveRefused, match="was moved, deleted or replaced while"):
            archive(tmp_path)
    assert len(in_tables()) == 5
    (tmp_path / "moved").rename(may)
    assert [each.archived for each in archive(tmp_path)] == [3, 1]


def test_orders_are_not_deleted_by_a_file_that_another_process_has_written_again(
    shop: None, tmp_path: Path
) -> None:
    (before, _) = archive(tmp_path)
    with transaction() as session:
        session.get_one(Archive, before.id).sha256 = "of another file"
    with pytest.raises(ArchiveRefused, match="another process archives"):
        orders.archive._delete(before, [])


def test_a_file_is_compared_with_what_was_archived(shop: None, tmp_path: Path) -> None:
    archive(tmp_path)
    may, june = (verify(*pair) for pair in archives_to_verify([]))
    assert (may.problem, may.left_out, june.problem) == ("", 0, "")
    copy = tmp_path / "copy" / Path(may.location).name
    copy.parent.mkdir()
    copy.write_bytes(Path(june.location).read_bytes())
    (pair,) = archives_to_verify([str(copy)])
    assert "was changed since it was archived" in verify(*pair).problem
    Path(may.location).unlink()
    assert "cannot be read: No such file" in verify(may.archive, may.location).problem
    with transaction() as session:
        session.execute(delete(ArchivedOrder).where(col(ArchivedOrder.order_id) == "rejected"))
    assert "1 orders were archived in it, and 0 are" in verify(*archives_to_verify([])[1]).problem
    with pytest.raises(ArchiveRefused, match=r"other\.gz is no archive of this database"):
        archives_to_verify(["other.gz"])


PLACES_OF_DEATH = {
    *("INSERT INTO archives", "committed INSERT INTO archives"),
    *("half a file", "before its name", "after its name"),
    *("UPDATE archives", "committed UPDATE archives"),
    *("DELETE FROM order_lines", "DELETE FROM ledger", "DELETE FROM orders"),
    *("INSERT INTO archived_orders", "UPDATE books", "UPDATE customers"),
    "committed UPDATE customers",
}


def test_an_archival_that_is_killed_anywhere_loses_nothing_and_doubles_nothing(
    database: str, tmp_path: Path
) -> None:
    ids = [f"order-{number:03}" for number in range(120)]
    submit_orders([an_order(id_, redeem=id_ < "order-020") for id_ in ids])
    claim_orders("run", 1_000)
    carry_on(ids[:80])
    carry_on(ids[80:], "bill_customer")
    fail_orders(ids[80:], CheckoutFailed("the run failed"))
    give_back(*ids[80:])
    end_at(LONG_AGO, *ids)
    with reading() as session:
        before = {id_: orjson.loads(line) for id_, line in order_texts(session, ids).items()}
    ended = subprocess.run(
        [sys.executable, "-m", "tests.orders.archive_kills", str(tmp_path)],
        env={**os.environ, "STORE_DATABASE_URL": database},
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ended.returncode == 0, ended.stderr
    assert set(ended.stdout.splitlines()) >= PLACES_OF_DEATH
    assert in_tables() == set()
    assert all_archived() == before
    assert [path.name for path in tmp_path.glob("*.gz")] == ["orders-2024-05.jsonl.gz"]
