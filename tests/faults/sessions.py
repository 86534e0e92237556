"""A database session that somebody watches: the simulated world, or what kills a process."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import ClassVar, Protocol

from sqlalchemy.orm import SessionTransaction
from sqlmodel import Session


class Watcher(Protocol):
    """Whoever is let in round the store's transactions."""

    def before_transaction(self) -> None:
        """Called before a session begins, one that only reads as well."""
        ...

    def before_commit(self) -> None:
        """Called when all is written and nothing is committed."""
        ...

    def after_commit(self) -> None:
        """Called when it is committed, before the process knows anything of it."""
        ...


class WatchedSession(Session):
    """Put in the place of ``store.database.Session``."""

    watcher: ClassVar[Watcher]
    _commits = False

    def __enter__(self) -> "WatchedSession":
        self.watcher.before_transaction()
        super().__enter__()
        return self

    def begin(self, nested: bool = False) -> AbstractContextManager[SessionTransaction]:  # type: ignore[override]
        self._commits = True
        return self._begin(nested)

    @contextmanager
    def _begin(self, nested: bool) -> Iterator[SessionTransaction]:
        with super().begin(nested) as begun:
            yield begun
            self.watcher.before_commit()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)
        if self._commits and error is None:
            self.watcher.after_commit()
