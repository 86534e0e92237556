"""`checkout metrics`: the shop's figures as Prometheus reads them, from three places."""

import os
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from prefect.states import Late
from prometheus_client.parser import text_string_to_metric_families

from console.main import main
from console.metrics import METRICS
from deployments.leash import Leashed
from deployments.machine import free_port
from store.database import transaction
from store.messages import NO_COURIER, CourierAnswer
from store.models import QueuedMessage, SagaRecord, utc_now
from tasks.couriers import record_answer
from tests.flows.pool import Pool
from tests.flows.runs import Runs
from tests.polling import wait_until
from tests.shop import NOWHERE, give_back, placed
from tests.store.test_blockers import held_up, seen


def samples(text: str) -> dict[str, float]:
    """Each sample by its name and labels, as a query would name it."""
    return {
        f"{sample.name}{sample.labels or ''}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.usefixtures("database")
def test_every_metric_is_printed_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    placed("o-1", "prepare_order", 2)
    placed("o-2", "dispatch_order")
    placed("o-3", "prepare_order", 2)
    record_answer("o-3", CourierAnswer(outcome=NO_COURIER, answered_by="Ada"))
    with transaction() as session:
        session.add(QueuedMessage(id="m", body="{}", visible_at=utc_now(), dead_at=utc_now()))
        session.get_one(SagaRecord, ("o-3", 1, "bill_customer")).undo_error = "no answer"
    assert main(["metrics"]) == 0
    printed = capsys.readouterr().out
    for metric in METRICS:
        assert f"# HELP {metric.name} {metric.meaning}\n" in printed
        assert f"# TYPE {metric.name} gauge\n" in printed
    found = samples(printed)
    assert found["store_up{'part': 'database'}"] == found["store_up{'part': 'queue'}"] == 1
    assert found["store_orders{'status': 'waiting'}"] == 1
    assert found["store_orders{'status': 'started'}"] == 0
    assert found["store_endings_last_hour{'error': '', 'status': 'dispatched'}"] == 1
    assert found["store_steps_last_hour{'outcome': 'done', 'step': 'bill_customer'}"] == 3
    assert found["store_queue_messages{'place': 'ready'}"] == 3
    assert found["store_queue_messages{'place': 'dead'}"] == 1
    assert found["store_undos_failed{'step': 'bill_customer'}"] == 1
    assert found["store_refunds_failed_cents{'currency': 'USD'}"] == 40_00
    assert found["store_orders_forgotten"] == 0
    give_back("o-3")


@pytest.mark.usefixtures("database")
def test_the_session_that_others_wait_for_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metrics"]) == 0
    quiet = samples(capsys.readouterr().out)
    assert quiet["store_blocking_seconds{'session': ''}"] == 0
    with held_up(2):
        seen(2)
        assert main(["metrics"]) == 0
    found = samples(capsys.readouterr().out)
    session = f"{{'session': 'store {socket.gethostname()}:{os.getpid()}'}}"
    assert found[f"store_blocking_seconds{session}"] > 0
    assert found[f"store_blocked_sessions{session}"] == 2


@pytest.mark.usefixtures("database")
def test_they_are_written_to_a_file(tmp_path: Path) -> None:
    file = tmp_path / "store.prom"
    assert main(["metrics", "--file", str(file)]) == 0
    assert samples(file.read_text())["store_up{'part': 'database'}"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["store.prom"]


def test_they_are_served_until_a_signal_also_while_the_database_is_away(tmp_path: Path) -> None:
    port = free_port(0)
    served = Leashed(
        [str(Path(sys.executable).parent / "checkout"), "metrics", "--port", str(port)],
        log=tmp_path / "log",
        env={**os.environ, "STORE_DATABASE_URL": NOWHERE},
    )
    try:
        found = samples(wait_until(lambda: got(port, served), "metrics"))
    finally:
        served.stop()
    assert found == {
        f"store_up{{'part': '{part}'}}": 0 for part in ("database", "queue", "prefect server")
    }
    assert served.exit_status() == 0, served.log_tail()


def got(port: int, server: Leashed) -> str | None:
    assert server.exit_status() is None, server.log_tail()
    try:
        return httpx.get(f"http://127.0.0.1:{port}/metrics").text
    except httpx.ConnectError:
        return None


@pytest.mark.usefixtures("database")
def test_a_shop_without_a_worker_is_told_and_how_long_its_runs_are_late(
    runs: Runs, setting: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    pool = Pool(runs)
    pool.create()
    run = pool.check_out("o-1")
    setting("checkout_deployment", f"store-checkout/of-{pool.name}")
    due = utc_now() - timedelta(hours=1)
    runs.client.set_flow_run_state(run.id, Late(scheduled_time=due), force=True)
    assert main(["metrics"]) == 0
    found = samples(capsys.readouterr().out)
    runs.client.delete_flow_run(run.id)
    assert found["store_up{'part': 'prefect server'}"] == 1
    assert found["store_up{'part': 'worker'}"] == 0
    assert found["store_runs_late"] == 1
    assert found["store_run_late_seconds"] >= 3600
