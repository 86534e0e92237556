"""A database for simulations, on an embedded PostgreSQL of its own."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deployments.embedded import EmbeddedPostgres
from store.database import engine, migrate
from tests.faults.simulation import dispose


@contextmanager
def new_server() -> Iterator[EmbeddedPostgres]:
    """Start a PostgreSQL that is gone afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="store-faults-") as folder,
        EmbeddedPostgres(Path(folder) / "data", durable=False) as server,
    ):
        yield server


@contextmanager
def new_database(server: EmbeddedPostgres) -> Iterator[str]:
    """Give the address of a new, migrated database for simulations."""
    server.create_database("faults")
    url = server.sqlalchemy_url("faults")
    migrate(url)
    # A message for each transaction, of which there are hundreds in a seed.
    engine(url).pool._pre_ping = False
    try:
        yield url
    finally:
        dispose(url)
