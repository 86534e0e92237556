"""A database for simulations: SQLite in memory's own file system, or an embedded PostgreSQL."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deployments.embedded import EmbeddedPostgres
from store.database import migrate
from tests.faults.simulation import dispose

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (a folder of its own is made in it)


@contextmanager
def new_database(kind: str) -> Iterator[str]:
    """Give the address of a new, migrated database that is gone afterwards."""
    fast = _SHARED_MEMORY if kind == "sqlite" and _SHARED_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="store-faults-", dir=fast) as folder:
        if kind == "sqlite":
            yield from _migrated(f"sqlite:///{folder}/store.db")
            return
        with EmbeddedPostgres(Path(folder) / "data", durable=False) as server:
            server.create_database("faults")
            yield from _migrated(server.sqlalchemy_url("faults"))


def _migrated(url: str) -> Iterator[str]:
    migrate(url)
    try:
        yield url
    finally:
        dispose(url)
