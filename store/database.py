"""Engine, transactions and migration of the store's database.

Every write happens inside :func:`transaction`. Rows are locked with ``SELECT … FOR UPDATE``, always
orders first, then books, customers and couriers, each by id, so that no two can deadlock.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import orjson
from sqlalchemy import Engine, ExceptionContext, NullPool, QueuePool, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.util.queue import Empty
from sqlmodel import Session

from store.blockers import end_frozen_sessions
from store.errors import DatabaseVersionUnknown
from store.outages import LOCK_NOT_AVAILABLE, READ_ONLY, is_outage, sqlstate_of
from store.sessions import READING, SNAPSHOT, STEP, Limits, connect_arguments, limit, prepare
from store.settings import settings

if TYPE_CHECKING:
    from alembic.config import Config

REPLACED = ("0001", "0002", "0003", "0004", "0005")
"""Versions whose migrations are a part of the first one."""
LAST_WITH_REPLACED = "3f9ddef"
"""A commit whose migrations lead from these to the first one."""
MIGRATION_TRIES = 5
"""Each waits a few seconds at most for its locks, and lets the checkouts through in between."""


class ReleasingPool(QueuePool):
    """A connection pool that can close its idle connections and continue.

    Disposing of an engine would do that too, but leave a connection that another thread uses at
    that moment open until it is garbage.
    """

    def release(self) -> None:
        """Close each connection that is not in use."""
        with suppress(Empty):
            while True:
                self._pool.get(block=False).close()
                self._dec_overflow()


@cache
def engine(url: str) -> Engine:
    """Return this process's one engine for ``url``, not yet connected."""
    # A batch may carry 32 chunks at a time, each with a connection, beside the run's own.
    return _engine(url, poolclass=ReleasingPool, pool_pre_ping=True, pool_size=5, max_overflow=30)


@cache
def unpooled_engine(url: str) -> Engine:
    """Return this process's engine for what keeps a connection for long.

    It takes none from the pool, whose connections the transactions need.
    """
    return _engine(url, poolclass=NullPool)


def _engine(url: str, **pool: Any) -> Engine:
    parts = make_url(url)
    created = create_engine(
        url,
        **pool,
        hide_parameters=True,
        json_serializer=_to_json,
        json_deserializer=orjson.loads,
        # A prepared statement keeps the plan that was best while the tables were small.
        connect_args={"prepare_threshold": None, **connect_arguments(parts)},
    )
    event.listen(created, "handle_error", _leave_row_out)
    event.listen(created, "handle_error", _leave_read_only_server)

    @event.listens_for(created, "connect")
    def set_up(connection: Any, _: object) -> None:
        prepare(connection, is_named="application_name" in parts.query)

    return created


def release_connections() -> None:
    """Close this process's idle connections before a long wait.

    Hundreds of waiting orders must not use up the database's connections. Later work reconnects.
    """
    cast(ReleasingPool, engine(settings().database_url).pool).release()


def _leave_statement_out(context: ExceptionContext) -> None:
    """Reduce an error's text to its first line.

    SQLAlchemy's text has the driver's lines, the whole statement, and a link behind them. The
    statement stays in tracebacks, as a note.
    """
    error = context.sqlalchemy_exception
    if not isinstance(error, StatementError):
        return
    if error.statement:
        error.add_note(f"[SQL: {error.statement}]")
    error.statement = error.code = None
    first, *_ = str(error.args[0]).strip().splitlines() or [""]
    error.args = (first,)


def _leave_row_out(context: ExceptionContext) -> None:
    """Remove the row at fault from an error's message.

    Messages go into logs, states and notices.

    PostgreSQL quotes the whole row that a constraint refuses, such as a customer with their name,
    and the part of a document that it cannot take apart into rows.
    """
    _leave_statement_out(context)
    diagnosis = getattr(context.original_exception, "diag", None)
    quoting = [getattr(diagnosis, name, None) for name in ("message_detail", "context")]
    for error in (context.original_exception, context.sqlalchemy_exception):
        for quote in filter(None, quoting):
            if error is not None:
                error.args = tuple(
                    each.replace(quote, "left out") if isinstance(each, str) else each
                    for each in error.args
                )


def _leave_read_only_server(context: ExceptionContext) -> None:
    """Drop the pool's connections to a read-only server after a failover.

    A failover may leave them standing. New ones follow the address, and ``target_session_attrs``
    in a URL of several hosts.
    """
    if sqlstate_of(context.original_exception) == READ_ONLY:
        context.is_disconnect = True


def _to_json(value: Any) -> str:
    return orjson.dumps(value).decode()


@contextmanager
def transaction(limits: Limits = STEP) -> Iterator[Session]:
    """Begin a session whose changes commit together or roll back.

    Args:
        limits: When the server ends it; one that is ended is an outage.
    """
    bind = engine(settings().database_url)
    try:
        # What was read or written may be looked at when the transaction is over.
        with Session(bind, expire_on_commit=False) as session, session.begin():
            if limits != STEP:
                limit(session.connection(), limits)
            yield session
    except DBAPIError as error:
        if sqlstate_of(error) == LOCK_NOT_AVAILABLE:
            with bind.begin() as connection:
                end_frozen_sessions(connection)
        raise


@contextmanager
def reading() -> Iterator[Session]:
    """Begin a read-only session that never blocks a writer."""
    url = settings().database_url
    with Session(engine(url)) as session:
        limit(session.connection(), READING)
        yield session


@contextmanager
def snapshot() -> Iterator[Session]:
    """Begin a read-only session that sees one snapshot of the database.

    As :func:`reading` it takes no lock that a writer waits for.
    """
    url = settings().database_url
    with Session(engine(url).execution_options(isolation_level="REPEATABLE READ")) as session:
        # A large result is read row by row to its end: all of it is wanted, not its first rows.
        limit(session.connection(), SNAPSHOT, cursor_tuple_fraction="1")
        yield session


def migrate(url: str) -> None:
    """Migrate the schema of the database at ``url`` to the newest version.

    It is safe to repeat.

    All of it is one transaction. Where the shop is open, the database may end it (a deadlock with
    a checkout, a lock that does not come in time); it is then tried again.

    Raises:
        DatabaseVersionUnknown: this code has no migration from the version that it has.
        DBAPIError: the database is away or refuses; its schema is as it was.
    """
    from alembic import command

    require_known_version(url)
    for tries_left in reversed(range(MIGRATION_TRIES)):
        try:
            command.upgrade(_migrations(url), "head")
        except DBAPIError as error:
            if not (tries_left and is_outage(error)):
                raise
        else:
            return


def revisions(url: str) -> tuple[str | None, str | None]:
    """Return the database's schema version, None if empty, and the newest."""
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    with engine(url).connect() as connection:
        present = MigrationContext.configure(connection).get_current_revision()
    return present, ScriptDirectory.from_config(_migrations(url)).get_current_head()


def require_known_version(url: str) -> None:
    """Refuse a database at a version that this code does not know.

    Raises:
        DatabaseVersionUnknown: this code has no migration from the version that it has.
        DBAPIError: the database is away or refuses.
    """
    from alembic.script import ScriptDirectory

    present, _ = revisions(url)
    if present in REPLACED:
        raise DatabaseVersionUnknown(
            f"the database is at version {present}, from before all migrations became one",
            f"run `python -m deployments.migrate` of commit {LAST_WITH_REPLACED}, then again this "
            "code's",
        )
    known = ScriptDirectory.from_config(_migrations(url)).walk_revisions()
    if present is not None and present not in {script.revision for script in known}:
        raise DatabaseVersionUnknown(
            f"the database is at version {present}, which this code does not know: a newer one has "
            "migrated it",
            "bring in that version of the code",
        )


def _migrations(url: str) -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["url"] = url
    return config
