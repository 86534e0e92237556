"""`checkout archive`, killed as by `kill -9` once at each place, until it comes to its end.

Each try is a process of its own, forked from this one, which connects to nothing. After each death
another one looks whether every order is in the tables or in a file, and the books balance.
"""

import os
import signal
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from sqlalchemy import Engine, event
from sqlmodel import Session, select

import console.archive  # noqa: F401  (once, not in each child)
import orders.archive
from console.main import main
from reports.audit import audit
from store.archive_files import archives, order_texts, orders_in, read_orders
from store.database import snapshot
from store.models import Order
from tests.books_balance import imbalances

ORDERS = 120
TRIES_AT_MOST = 60


class Killer:
    """Kills its own process at the first place at which none has died yet."""

    def __init__(self, marks: Path) -> None:
        self._marks = marks
        self._written = ""

    def install(self) -> None:
        event.listen(Engine, "after_cursor_execute", self._after_statement)
        event.listen(Session, "after_commit", self._after_commit)
        replace = Path.replace

        def half(session: Session, ids: list[str]) -> dict[str, str]:
            self.at("half a file")
            return order_texts(session, ids)

        def named(path: Path, target: Path) -> Path:
            self.at("before its name")
            found = replace(path, target)
            self.at("after its name")
            return found

        patch.object(orders.archive, "order_texts", half).start()
        patch.object(Path, "replace", named).start()

    def at(self, place: str) -> None:
        try:
            (self._marks / str(zlib.crc32(place.encode()))).open("x").close()
        except FileExistsError:
            return
        os.write(1, f"{place}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)

    def _after_statement(self, _connection: object, _cursor: object, sql: str, *_: object) -> None:
        words = sql.split()
        if words[0] in ("INSERT", "UPDATE", "DELETE"):
            self._written = " ".join(words[: 2 if words[0] == "UPDATE" else 3])
            self.at(self._written)

    def _after_commit(self, _session: object) -> None:
        written, self._written = self._written, ""
        if written:
            self.at(f"committed {written}")


def in_a_process(work: Callable[[], int]) -> int:
    """Fork, work, and return how the child ended, as the shell does."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            status = work()
        finally:
            sys.stderr.flush()
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(ended)


def archive(marks: Path, to: str) -> int:
    Killer(marks).install()
    return main(["archive", "--older-than", "365d", "--to", to])


def look(to: str) -> int:
    """Return 0 if each order is in one place, each file is whole, and the books balance."""
    for path in Path(to).glob("*.gz"):
        with path.open("rb") as file:
            sys.stderr.write(f"{path.name}: {len(list(orders_in(file, path.name)))}\n")
    with snapshot() as session:
        found = list(session.exec(select(Order.id)))
        for each in archives(session):
            found += [rows["order"]["id"] for rows in read_orders(session, each)]
        wrong = [str(each) for each in audit(session) if not each.is_warning] + imbalances()
    sys.stderr.write(f"{len(found)} orders; {wrong}\n")
    return 0 if not wrong and len(found) == len(set(found)) == ORDERS else 1


def kill_until_done(to: str) -> int:
    patch.object(orders.archive, "ORDERS_AT_ONCE", 40).start()
    marks = Path(to) / "marks"
    marks.mkdir()
    for _ in range(TRIES_AT_MOST):
        status = in_a_process(lambda: archive(marks, to))
        if in_a_process(lambda: look(to)) != 0:
            return 1
        if status != -signal.SIGKILL:
            return status
    return 2


if __name__ == "__main__":
    sys.exit(kill_until_done(sys.argv[1]))
