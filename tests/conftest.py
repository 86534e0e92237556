"""What the tests stand on: a real PostgreSQL, and one Prefect server for the flows.

Prefect reads its settings when it is first imported, so they are put in place before that.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from deployments.local_settings import OF_RUNS

_PREFECT_HOME = Path(tempfile.mkdtemp(prefix="store-tests-prefect-"))
os.environ["PREFECT_HOME"] = str(_PREFECT_HOME)
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
# What asks for a server without the fixture for it is a mistake, and would cost half a minute.
os.environ["PREFECT_SERVER_EPHEMERAL_ENABLED"] = "false"
# Otherwise each of Prefect's clients, six a run, reads a hundred certificates and asks the server
# for two things first.
for _name in (
    "PREFECT_API_SSL_CERT_FILE",
    "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED",
    "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED",
):
    os.environ[_name] = OF_RUNS[_name]
# Each run of a flow is a process, which would compile Prefect anew each time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# A server of this machine must never see the tests.
for _name in ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_PROFILE"):
    os.environ.pop(_name, None)
# How runs start is for the caller of the tests to say.
for _name in {name for name in os.environ if name.startswith("STORE_")} - {"STORE_WARM_START"}:
    del os.environ[_name]

from deployments.embedded import EmbeddedPostgres  # noqa: E402
from deployments.local import LocalSystem  # noqa: E402
from seed.catalogue import empty, put_shop  # noqa: E402
from store.database import engine, migrate  # noqa: E402
from store.settings import settings  # noqa: E402
from tests.books_balance import assert_books_balance  # noqa: E402
from tests.prepared_cluster import prepare  # noqa: E402

SHARE_A_SYSTEM = ("tests/e2e/test_local_system.py", "tests/e2e/test_ui.py")


def pytest_unconfigure() -> None:
    shutil.rmtree(_PREFECT_HOME, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Whichever test comes first has the server's start in its time.
    for item in items:
        if "prefect_server" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(300))


class FilesTogether(LoadFileScheduling):  # type: ignore[misc]
    """Gives each file to one process, and those that share a system to the same."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return "tests/e2e" if file in SHARE_A_SYSTEM else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    """Distribute the tests as `FilesTogether` does, where they go file by file."""
    return FilesTogether(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A real PostgreSQL, for the whole session."""
    folder = tmp_path_factory.mktemp("postgres")
    with EmbeddedPostgres(folder / "data", durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def store_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a migrated database, used again by each test."""
    postgres.create_database("store_tests")
    url = postgres.sqlalchemy_url("store_tests")
    migrate(url)
    yield url
    engine(url).dispose()


@pytest.fixture
def empty_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a database without tables."""
    postgres.create_database("empty")
    url = postgres.sqlalchemy_url("empty")
    yield url
    engine(url).dispose()
    postgres.drop_database("empty")


@pytest.fixture(autouse=True)
def fresh_settings() -> Iterator[None]:
    """No test sees the settings of another one."""
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, object], None]:
    """Changes a setting for the test: ``setting("pause_poll_seconds", 1)``."""

    def change(name: str, value: object) -> None:
        monkeypatch.setenv(f"STORE_{name.upper()}", str(value))
        settings.cache_clear()

    return change


@pytest.fixture
def database(store_url: str, setting: Callable[[str, object], None]) -> Iterator[str]:
    """The URL of a database with nothing but the shop's first data; its books balance after."""
    setting("database_url", store_url)
    empty()
    put_shop()
    yield store_url
    assert_books_balance()


class PrefectServerAlone(LocalSystem):
    """A local system without a store: the tests have a database of their own.

    The cluster that it begins with has the deployments.
    """

    def _prepare_store(self) -> None:
        pass

    def deploy(self) -> None:
        pass


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A real Prefect server on PostgreSQL, one for the session.

    Prefect's own test server is on SQLite, which is locked for a minute now and then when a flow
    has several tasks at once.
    """
    from prefect import context
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        temporary_settings,
    )

    folder = tmp_path_factory.mktemp("prefect")
    prepare(folder, tmp_path_factory)
    with (
        PrefectServerAlone(folder, durable=False, preferred_port=0, worker=False) as system,
        # The end of every run waits for its thread of heartbeats, which sleeps for a second.
        temporary_settings(
            {PREFECT_API_URL: system.api_url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
        ),
        # For the tests' threads as well, as Prefect's own harness does it.
        context._temporary_global_settings_context(context.get_settings_context()),
    ):
        yield
        APILogWorker.instance().drain()
        EventsWorker.drain_all()
