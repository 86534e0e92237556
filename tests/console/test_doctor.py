"""The doctor says of every part that it is well or what to do, whatever else is missing."""

import hashlib
import itertools
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import IO

import prefect
import psutil
import pytest
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolUpdate
from prefect.settings import (
    PREFECT_API_SSL_CERT_FILE,
    PREFECT_API_URL,
    PREFECT_CLIENT_CSRF_SUPPORT_ENABLED,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_LOGGING_EXTRA_LOGGERS,
    PREFECT_RUNNER_CRASH_ON_CANCELLATION_FAILURE,
    PREFECT_UI_URL,
    temporary_settings,
)
from prefect.settings.legacy import Setting
from prefect.testing.utilities import prefect_test_harness
from sqlalchemy import make_url, text, update
from sqlalchemy.exc import DBAPIError
from sqlmodel import col

from console import prefect_checks
from console.diagnosis import Diagnosis, Verdict
from console.doctor import CHECKS, diagnose
from console.main import main
from deployments.automations import HEARTBEAT_SECONDS, SILENCE_SECONDS, automations
from deployments.local import PROJECT_DIR
from orders.batches import begin_batch
from orders.intake import submit_orders
from store.database import engine, migrate, reading, transaction
from store.messages import NO_COURIER, CourierAnswer
from store.models import QueuedMessage, SagaRecord, utc_now
from store.settings import settings
from tasks.couriers import record_answer
from tests.flows.runs import Runs
from tests.polling import wait_until
from tests.shop import NOWHERE, an_order, give_back, placed, set_capacities, set_order
from tests.store.test_blockers import held_up, seen

SAFE = {
    PREFECT_CLIENT_MAX_RETRIES: 10,
    PREFECT_LOGGING_EXTRA_LOGGERS: ["store"],
    PREFECT_UI_URL: "http://127.0.0.1:4200/v2",
}


def looked(name: str) -> list[Diagnosis]:
    """What one check says, by itself."""
    return list(next(check for check in CHECKS if check.name == name).look())


def verdicts(name: str) -> set[Verdict]:
    return {diagnosis.verdict for diagnosis in looked(name)}


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def no_server() -> Iterator[None]:
    """No address of a server, whichever other tests of this session have started."""
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        yield


@pytest.mark.usefixtures("no_server")
def test_with_nothing_there_each_part_is_told_of_and_none_stops_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    verdict = {line["check"]: line["verdict"] for line in found}
    assert list(verdict) == [check.name for check in CHECKS]
    assert verdict["settings"] == verdict["prefect server"] == "mend"
    assert verdict["database"] == verdict["workers"] == "not checked"
    assert verdict["prefect.yaml"] == "ok"
    assert "STORE_DATABASE_URL: is missing" in found[0]["says"]
    assert all(line["remedy"] for line in found if line["verdict"] in ("mend", "warning"))


@pytest.mark.usefixtures("no_server")
def test_what_is_to_be_mended_is_followed_by_its_remedy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "mend        prefect server: PREFECT_API_URL is not set" in said
    assert "\n            -> set it to the address of your server" in said


def test_a_database_and_a_server_that_are_away_are_told_of(
    setting: Callable[[str, object], None],
) -> None:
    setting("database_url", f"postgresql+psycopg://ada:secret@127.0.0.1:{closed_port()}/store")
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{closed_port()}/api"}):
        said = dict(diagnose())
    assert (said["database"].verdict, said["migrations"].verdict) == ("mend", "not checked")
    assert "refused" in said["database"].says
    assert "secret" not in said["database"].says
    assert (said["prefect server"].verdict, said["workers"].verdict) == ("mend", "not checked")
    assert "does not answer" in said["prefect server"].says


def test_a_shop_that_is_well_has_nothing_to_mend(database: str) -> None:
    placed("o-1", "prepare_order")
    for name in (
        "settings",
        "store settings",
        "database",
        "locks",
        "shared database",
        "migrations",
        "couriers",
        "orders",
        "queue",
    ):
        assert verdicts(name) == {Verdict.OK}, name
    assert verdicts("topic") == verdicts("payments") == {Verdict.WARNING}


def test_a_shop_without_a_courier_is_to_be_mended(database: str) -> None:
    set_capacities()
    [diagnosis] = looked("couriers")
    assert (diagnosis.verdict, diagnosis.says[:10]) == (Verdict.MEND, "no courier")
    assert "`python -m seed --courier ID COPIES`" in diagnosis.remedy


@pytest.mark.parametrize(
    ("name", "value", "verdict"),
    [
        ("visibility_timeout_seconds", 29, Verdict.MEND),
        ("stalled_seconds", 59, Verdict.MEND),
        ("reminder_seconds", 4 * 3600, Verdict.WARNING),
        ("stalled_second", 600, Verdict.WARNING),
    ],
)
def test_an_unsafe_setting_of_the_store_is_named(
    database: str,
    setting: Callable[[str, object], None],
    name: str,
    value: int,
    verdict: Verdict,
) -> None:
    setting(name, value)
    [diagnosis] = looked("store settings")
    assert diagnosis.verdict == verdict
    assert f"STORE_{name.upper()}" in diagnosis.says


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (" , ", "STORE_FRONT_END_TOKENS is empty"),
        ("web:" + 24 * "ab", "the token of web in STORE_FRONT_END_TOKENS has few different"),
    ],
)
def test_front_end_tokens_that_are_empty_or_easy_to_guess_are_told(
    database: str, setting: Callable[[str, object], None], tokens: str, says: str
) -> None:
    setting("front_end_tokens", tokens)
    [diagnosis] = looked("store settings")
    assert diagnosis.verdict == Verdict.WARNING
    assert diagnosis.says.startswith(says)
    assert "abab" not in diagnosis.says + diagnosis.remedy
    setting("front_end_tokens", f"web:{hashlib.sha256(b'web').hexdigest()}")
    assert verdicts("store settings") == {Verdict.OK}


def test_a_read_only_database_is_to_be_mended(
    database: str, setting: Callable[[str, object], None]
) -> None:
    url = settings().database_url
    setting("database_url", f"{url}&options=-c%20default_transaction_read_only%3Don")
    [diagnosis] = looked("database")
    assert (diagnosis.verdict, "is read-only" in diagnosis.says) == (Verdict.MEND, True)
    setting("database_url", url)


@pytest.mark.parametrize(
    ("held_seconds", "verdict"), [(1.0, None), (30.0, Verdict.WARNING), (61.0, Verdict.MEND)]
)
def test_the_session_that_others_wait_for_is_named_with_its_age_and_process(
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    held_seconds: float,
    verdict: Verdict | None,
) -> None:
    with held_up(2):
        [blocker] = seen(2)
        aged = replace(blocker, seconds=held_seconds)
        monkeypatch.setattr("console.store_checks.blockers", lambda _: [aged])
        [diagnosis] = looked("locks")
    assert diagnosis.verdict == (verdict or Verdict.OK)
    if verdict:
        assert f"session {blocker.pid} (store {socket.gethostname()}:{os.getpid()}" in (
            diagnosis.says
        )
        assert f"for {held_seconds:.0f} s; 2 others wait" in diagnosis.says


def test_the_remedy_of_a_session_that_others_wait_for_ends_it(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DBAPIError, match="terminating connection"), held_up(1):  # noqa: PT012
        [blocker] = seen(1)
        aged = replace(blocker, seconds=61.0)
        with monkeypatch.context() as patch:
            patch.setattr("console.store_checks.blockers", lambda _: [aged])
            [diagnosis] = looked("locks")
        (statement,) = re.findall("`(.*)`", diagnosis.remedy)
        with reading() as session:
            session.execute(text(statement))


def test_the_variables_of_prefect_yaml_are_no_unknown_settings(
    database: str, setting: Callable[[str, object], None]
) -> None:
    setting("work_pool", "local")
    assert verdicts("store settings") == {Verdict.OK}


def test_a_sqlite_database_is_to_be_mended(setting: Callable[[str, object], None]) -> None:
    setting("database_url", "sqlite:////srv/store.db")
    [diagnosis] = looked("settings")
    assert diagnosis.verdict == Verdict.MEND
    assert diagnosis.says.startswith("STORE_DATABASE_URL: names a SQLite database")


def test_a_database_that_is_prefects_as_well_is_refused(
    setting: Callable[[str, object], None],
) -> None:
    from prefect.settings import PREFECT_SERVER_DATABASE_CONNECTION_URL

    setting("database_url", "postgresql+psycopg://db/shop")
    with temporary_settings(
        {PREFECT_SERVER_DATABASE_CONNECTION_URL: "postgresql+asyncpg://prefect@db/shop"}
    ):
        assert verdicts("shared database") == {Verdict.MEND}
    assert verdicts("shared database") == {Verdict.OK}


def test_a_url_of_prefects_database_that_is_wrong_is_not_quoted(
    setting: Callable[[str, object], None],
) -> None:
    from prefect.settings import PREFECT_SERVER_DATABASE_CONNECTION_URL

    setting("database_url", "postgresql+psycopg://db/shop")
    wrong = "postgresql+asyncpg://prefect:a@b:hunter2@db/prefect"
    with temporary_settings({PREFECT_SERVER_DATABASE_CONNECTION_URL: wrong}):
        assert "hunter2" not in str(looked("shared database"))


def test_a_password_in_the_query_of_a_url_is_not_shown(
    database: str, setting: Callable[[str, object], None]
) -> None:
    url = make_url(settings().database_url).update_query_dict({"password": "hunter2"})
    setting("database_url", url.render_as_string(hide_password=False))
    [diagnosis] = looked("database")
    assert "answers" in diagnosis.says
    assert "hunter2" not in diagnosis.says


def test_a_database_that_is_not_migrated_is_told(
    setting: Callable[[str, object], None], empty_url: str
) -> None:
    setting("database_url", empty_url)
    assert verdicts("database") == {Verdict.OK}
    [diagnosis] = looked("migrations")
    assert (diagnosis.verdict, "version none" in diagnosis.says) == (Verdict.MEND, True)


@pytest.mark.parametrize(
    ("version", "says", "remedy"),
    [
        ("newer", "which this code does not know", "bring in that version of the code"),
        (
            "0003",
            "from before all migrations became one",
            "run `python -m deployments.migrate` of comm",
        ),
    ],
)
def test_a_database_from_which_this_code_has_no_migration_is_told_with_the_remedy(
    setting: Callable[[str, object], None], empty_url: str, version: str, says: str, remedy: str
) -> None:
    setting("database_url", empty_url)
    migrate(empty_url)
    with engine(empty_url).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :v"), {"v": version})
    [diagnosis] = looked("migrations")
    assert diagnosis.verdict == Verdict.MEND
    assert f"version {version}, {says}" in diagnosis.says
    assert diagnosis.remedy.startswith(remedy)


def test_dead_letters_failed_undos_and_orders_that_stand_still_are_counted(database: str) -> None:
    placed("o-1", "bill_customer")
    placed("o-2", "prepare_order")
    record_answer("o-2", CourierAnswer(outcome=NO_COURIER, answered_by="Ada"))
    now = utc_now()
    with transaction() as session:
        session.add(QueuedMessage(id="m", body="{}", visible_at=now, dead_at=now))
        session.get_one(SagaRecord, ("o-2", 1, "bill_customer")).undo_error = "no answer"
        session.execute(
            update(SagaRecord)
            .where(col(SagaRecord.order_id) == "o-1")
            .values(at=now - timedelta(hours=2))
        )
    set_order("o-1", updated_at=now - timedelta(hours=2))
    assert "1 dead letters" in looked("queue")[1].says
    # Redriven, an unreadable one only comes again.
    assert "`checkout dead-letters drop ID`" in looked("queue")[1].remedy
    assert "1 undos have failed" in looked("compensations")[0].says
    assert "1 orders have not moved for long: order o-1 is started" in looked("orders")[0].says
    give_back("o-2")
    assert verdicts("compensations") == {Verdict.OK}


def test_the_first_orders_that_stand_still_are_named_and_the_rest_counted(database: str) -> None:
    for number in range(7):
        placed(f"o-{number}", "check_inventory")
        set_order(f"o-{number}", updated_at=utc_now() - timedelta(hours=2))
    with transaction() as session:
        session.execute(update(SagaRecord).values(at=utc_now() - timedelta(hours=2)))
    [diagnosis] = looked("orders")
    assert diagnosis.says.startswith("7 orders have not moved for long: order o-")
    assert diagnosis.says.count("order o-") == 5
    assert diagnosis.says.endswith("; and 2 more")


@pytest.mark.parametrize("may_look", [True, False])
def test_prefects_database_is_not_judged_where_its_server_cannot_be_looked_into(
    may_look: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_kind: str) -> None:
        raise psutil.AccessDenied

    if not may_look:
        monkeypatch.setattr(psutil, "net_connections", refuse)
    check = next(check for check in CHECKS if check.name == "prefect database")
    # Nothing listens there that could be seen, as if it were in a container.
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{closed_port()}/api"}):
        diagnosis = next(check.look())
    assert diagnosis.verdict == Verdict.NOT_CHECKED


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({PREFECT_CLIENT_MAX_RETRIES: 9}, Verdict.MEND),
        ({PREFECT_RUNNER_CRASH_ON_CANCELLATION_FAILURE: True}, Verdict.MEND),
        ({PREFECT_API_SSL_CERT_FILE: "/nowhere.pem"}, Verdict.MEND),
        ({PREFECT_API_SSL_CERT_FILE: __file__}, Verdict.MEND),
        ({PREFECT_UI_URL: "http://127.0.0.1:4200"}, Verdict.WARNING),
        ({PREFECT_LOGGING_EXTRA_LOGGERS: ["other"]}, Verdict.WARNING),
    ],
    ids=lambda value: next(iter(value)).name if isinstance(value, dict) else value,
)
def test_an_unsafe_setting_of_prefect_is_named(
    changed: dict[Setting, object], verdict: Verdict
) -> None:
    with temporary_settings(SAFE):
        assert verdicts("prefect settings") == {Verdict.OK}
    with temporary_settings(SAFE | changed):
        [diagnosis] = looked("prefect settings")
    assert diagnosis.verdict == verdict
    assert next(iter(changed)).name in diagnosis.says


def test_a_sigterm_behaviour_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR", "reschedule")
    with temporary_settings(SAFE):
        assert verdicts("prefect settings") == {Verdict.WARNING}


class LocksOut(BaseHTTPRequestHandler):
    """A server that lets nobody in."""

    def do_GET(self) -> None:
        self.send_error(401)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class WithoutDatabase(LocksOut):
    """A server of Prefect whose database is away; its version it has in its memory."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(prefect.__version__).encode())

    def do_POST(self) -> None:
        self.send_error(500)


@contextmanager
def served(server: HTTPServer, scheme: str = "http") -> Iterator[None]:
    """Have a server answer, as Prefect's."""
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        with temporary_settings(
            {PREFECT_API_URL: f"{scheme}://127.0.0.1:{server.server_port}/api"}
        ):
            yield
    finally:
        server.shutdown()
        serving.join()


def test_a_server_of_an_unknown_authority_is_told_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=me"
    subprocess.run(
        [*made.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True
    )
    with HTTPServer(("127.0.0.1", 0), LocksOut) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        with (
            served(server, "https"),
            temporary_settings(
                {PREFECT_API_SSL_CERT_FILE: str(PROJECT_DIR / "deployments" / "no_authority.pem")}
            ),
        ):
            [diagnosis] = looked("prefect server")
            assert main(["drain"]) == 1
    assert "PREFECT_API_SSL_CERT_FILE" in diagnosis.remedy
    assert "Does PREFECT_API_SSL_CERT_FILE name a file" in capsys.readouterr().err


def test_a_missing_file_of_certificates_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    address = f"http://127.0.0.1:{closed_port()}/api"
    with temporary_settings({PREFECT_API_URL: address, PREFECT_API_SSL_CERT_FILE: "/nowhere.pem"}):
        assert main(["drain"]) == 1
    assert capsys.readouterr().err == (
        "PREFECT_API_SSL_CERT_FILE: /nowhere.pem cannot be read as certificates: "
        "No such file or directory\n"
    )


def test_a_server_that_does_not_let_us_in_is_told_with_the_remedy() -> None:
    with HTTPServer(("127.0.0.1", 0), LocksOut) as server, served(server):
        [diagnosis] = looked("prefect server")
    assert (diagnosis.verdict, "does not let us in (401)" in diagnosis.says) == ("mend", True)
    assert "PREFECT_API_AUTH_STRING" in diagnosis.remedy


def test_a_server_whose_database_is_away_is_told_once_with_the_remedy(
    setting: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    setting("database_url", NOWHERE)
    with (
        HTTPServer(("127.0.0.1", 0), WithoutDatabase) as server,
        served(server),
        temporary_settings({PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False}),
    ):
        said = dict(diagnose())
        assert main(["dispatcher", "status"]) == 1
    assert said["prefect server"].verdict == Verdict.MEND
    assert "(HTTP 500), as without its own database" in said["prefect server"].says
    assert "PREFECT_API_DATABASE_CONNECTION_URL" in said["prefect server"].remedy
    assert said["deployments"].says == "it needs prefect server"
    assert "(HTTP 500). It runs: is its own PostgreSQL there?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prefect_version", "sqlalchemy_version", "schedules"),
    [
        ("3.8.8", "2.0.58", True),
        ("3.8.8", "2.1.0", False),
        ("3.9.0", "2.1.9", True),
        ("3.9.1", "2.0.58", True),
    ],
)
def test_a_prefect_whose_schedules_are_dead_with_this_sqlalchemy_is_to_be_mended(
    prefect_server: None,
    monkeypatch: pytest.MonkeyPatch,
    prefect_version: str,
    sqlalchemy_version: str,
    schedules: bool,
) -> None:
    monkeypatch.setattr("prefect.__version__", prefect_version)
    monkeypatch.setattr(prefect_checks, "installed", lambda _package: sqlalchemy_version)
    dead = [each for each in looked("prefect version") if "starts no scheduled run" in each.says]
    assert [each.verdict for each in dead] == ([] if schedules else [Verdict.MEND])
    assert all("constraints-oldest.txt" in each.remedy for each in dead)


@pytest.fixture
def server_on_sqlite() -> Iterator[None]:
    """Prefect's own test server, fresh; its start may take a minute here."""
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.mark.usefixtures("server_on_sqlite")
def test_a_server_on_sqlite_without_deployments_is_told_of_all_that(
    setting: Callable[[str, object], None],
) -> None:
    setting("database_url", NOWHERE)
    assert verdicts("prefect server") == verdicts("prefect version") == {Verdict.OK}
    [on_sqlite, leases, pauses] = looked("prefect database")
    assert (on_sqlite.verdict, "SQLite" in on_sqlite.says) == (Verdict.MEND, True)
    assert "leases in memory" in leases.says
    assert "reads every paused run each 5 s" in pauses.says
    assert {"store-checkout/local is not deployed", "audit-books/daily is not deployed"} < {
        diagnosis.says for diagnosis in looked("deployments")
    }
    assert verdicts("continuations") == verdicts("work pools") == {Verdict.MEND}
    assert ["is missing" in diagnosis.says for diagnosis in looked("automations")] == [True]


def test_submitted_orders_that_no_batch_claims_are_told_with_the_remedy(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    def says(after: str) -> bool:
        [found] = looked("online")
        return found.verdict == Verdict.WARNING and f"{after}" in f"{found.says} -> {found.remedy}"

    submit_orders([an_order("of-a-file")])
    set_order("of-a-file", updated_at=utc_now() - timedelta(minutes=2))
    assert verdicts("online") == {Verdict.OK}
    submit_orders([an_order("of-the-web")], "web")
    set_order("of-the-web", updated_at=utc_now() - timedelta(minutes=3))
    assert says("is not deployed -> apply prefect.yaml")
    flow_id = runs.client.create_flow_from_name("batch-checkout")
    deployment_id = runs.client.create_deployment(flow_id, "online", paused=True)
    try:
        assert says("1 submitted orders wait, the oldest for 3 m")
        assert says("is paused -> `checkout online on`")
        assert main(["online", "on"]) == 0
        assert main(["online", "status"]) == 0
        switched = "Online is on: submitted orders are carried as they come.\n"
        assert capsys.readouterr().out == switched * 2
        assert says("2 submitted orders wait")
        assert says("none of its runs listens -> see `work pools` and `workers`")
        begin_batch("00000000-0000-0000-0000-000000000001", None, listen_seconds=60)
        assert says("although a batch listens")
    finally:
        runs.client.delete_deployment(deployment_id)


@pytest.fixture
def paused_deployments(runs: Runs) -> Iterator[Runs]:
    """The upkeep's deployments, paused, and the schedule of the recovery not active."""
    made = []
    for flow, slug, seconds in (
        ("recover-orders", "every-two-hours", 7200),
        ("dispatch-orders", "every-two-hours", 7200),
    ):
        schedule = {"slug": slug, "schedule": {"interval": seconds}, "active": flow[0] == "d"}
        flow_id = runs.client.create_flow_from_name(flow)
        made.append(
            runs.client.create_deployment(
                flow_id, "local", schedules=[DeploymentScheduleCreate(**schedule)], paused=True
            )
        )
    yield runs
    for deployment_id in made:
        runs.client.delete_deployment(deployment_id)


def test_the_remedies_of_paused_deployments_and_schedules_are_commands_that_work(
    paused_deployments: Runs,
) -> None:
    remedies = [diagnosis.remedy for diagnosis in looked("schedules")]
    assert len(remedies) == 3
    for remedy in remedies:
        follow(remedy)
    assert verdicts("schedules") == {Verdict.OK}


@pytest.mark.usefixtures("paused_deployments")
def test_deployments_whose_pool_or_queue_was_deleted_are_named() -> None:
    [found] = [each for each in looked("deployments") if "was deleted" in each.says]
    assert found.verdict == Verdict.MEND
    assert "dispatch-orders/local, recover-orders/local" in found.says
    assert "`python -m deployments.apply`" in found.remedy


def follow(remedy: str) -> None:
    """Run the command that a remedy names."""
    with following(remedy) as (started, said):
        status = started.wait(120)
        said.seek(0)
        assert status == 0, f"{remedy}: {said.read()}"


@contextmanager
def following(remedy: str) -> Iterator[tuple["subprocess.Popen[bytes]", IO[str]]]:
    """Start the command that a remedy names, and kill it at the end.

    Yields it and the file of its output.
    """
    (command,) = re.findall("`(.*)`", remedy)
    environment = {
        **os.environ,
        "PREFECT_API_URL": str(PREFECT_API_URL.value()),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    }
    # No pipe: a worker that nobody listens to stands still when it is full.
    with tempfile.TemporaryFile("w+") as said:
        started = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {command}"],
            cwd=PROJECT_DIR,
            env=environment,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        try:
            yield started, said
        finally:
            started.kill()
            started.wait()


@pytest.fixture
def missing_pool(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of the pool for the next deploy, which does not exist yet."""
    name = "of the remedies"
    monkeypatch.setenv("STORE_WORK_POOL", name)
    yield name
    runs.client.delete_work_pool(name)


def test_the_remedies_of_work_pools_and_workers_are_commands_that_work(
    runs: Runs, missing_pool: str
) -> None:
    # `prefect deploy --all` is refused without its pool, so that comes first.
    order = [check.name for check in CHECKS]
    assert order.index("work pools") < order.index("deployments")
    follow(of_pool("work pools", missing_pool).remedy)
    assert of_pool("work pools", missing_pool).verdict is Verdict.OK
    runs.client.update_work_pool(missing_pool, WorkPoolUpdate(is_paused=True))
    follow(of_pool("work pools", missing_pool).remedy)
    assert of_pool("work pools", missing_pool).verdict is Verdict.OK
    with following(of_pool("workers", missing_pool).remedy):
        wait_until(
            lambda: of_pool("workers", missing_pool).verdict is Verdict.OK, "worker of the remedy"
        )


def of_pool(check: str, pool: str) -> Diagnosis:
    """What a check says of one pool, whichever others there are on the session's server."""
    (found,) = (each for each in looked(check) if pool in each.says)
    return found


@pytest.mark.usefixtures("paused_deployments")
def test_the_remedy_of_missing_automations_is_a_command_that_works(runs: Runs) -> None:
    names = [each.name for each in automations(SILENCE_SECONDS)]
    try:
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: HEARTBEAT_SECONDS}):
            (remedy,) = {each.remedy for each in looked("automations")}
            follow(remedy)
            assert verdicts("automations") == {Verdict.OK}
    finally:
        for automation in itertools.chain(*map(runs.client.read_automations_by_name, names)):
            runs.client.delete_automation(automation.id)
