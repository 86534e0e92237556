"""Orders on the real server, worker and deployments, from their start to each ending."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.demo import demonstrate
from deployments.local import CHECKOUT_DEPLOYMENT, DISPATCH_DEPLOYMENT, EXAMPLE_ORDER
from seed.catalogue import JOHN_DOE, STRIPED_PAJAMAS
from store.models import OrderStatus
from tests.books_balance import assert_books_balance

from .conftest import RunningSystem, status_of, wait_until

ONE_COPY = {"userId": JOHN_DOE, "bookId": STRIPED_PAJAMAS, "quantity": 1}
pytestmark = pytest.mark.timeout(900)


def test_the_four_endings_of_an_order_are_as_expected_and_the_books_balance(
    local_system: RunningSystem,
) -> None:
    wrong = demonstrate(local_system.local, local_system.progress)
    assert wrong == [], local_system.printed.getvalue()


def test_an_order_that_waited_when_the_system_was_restarted_is_dispatched_and_its_run_completed(
    local_system: RunningSystem,
) -> None:
    local_system.api.start_run(DISPATCH_DEPLOYMENT, {"listen_seconds": 60})
    store_url = local_system.local.store_url
    wait_until(
        lambda: status_of(store_url, "survivor") == OrderStatus.DISPATCHED,
        "dispatch of the order that waited",
    )
    run = local_system.survivor.id
    wait_until(
        lambda: local_system.api.read_run(run).state_type == "COMPLETED", "completion of its run"
    )


def test_a_file_of_orders_is_carried_out_by_the_nightly_batch(
    local_system: RunningSystem, tmp_path: Path
) -> None:
    local = local_system.local
    source = tmp_path / "orders.csv"
    lines = [f"batch-{number},{JOHN_DOE},{STRIPED_PAJAMAS},1" for number in range(20)]
    source.write_text("\n".join(["orderId,userId,bookId,quantity", *lines, "bad,bad,bad,0"]))
    subprocess.run(
        [
            *(str(Path(sys.executable).parent / "prefect"), "deployment", "run"),
            *("batch-checkout/nightly", "--param", f"source={source}"),
        ],
        env={**os.environ, **local.settings()},
        check=True,
        capture_output=True,
    )
    local_system.api.start_run(DISPATCH_DEPLOYMENT, {"listen_seconds": 60})
    wait_until(
        lambda: all(
            status_of(local.store_url, f"batch-{number}") == OrderStatus.DISPATCHED
            for number in range(20)
        ),
        "dispatch of all orders of the batch",
    )
    assert (tmp_path / "orders.csv.rejects.csv").read_text().startswith("line,field,reason\n22,")


def test_two_workers_share_checkouts_and_batches(
    local_system: RunningSystem, tmp_path: Path, setting: Callable[[str, object], None]
) -> None:
    local, api = local_system.local, local_system.api
    second = local.start_worker()
    api.start_run(DISPATCH_DEPLOYMENT, {"listen_seconds": 120})
    orders: list[str] = []
    runs: list[str] = []

    def start(deployment: str, parameters: dict[str, Any]) -> None:
        run_id = api.start_run(deployment, parameters).id
        runs.append(run_id)
        wait_until(lambda: api.read_run(run_id).state_type != "SCHEDULED", "worker that takes it")

    def workers() -> int:
        logs = [log.read_text() for log in local.logs_dir.glob("worker-*.log")]
        return sum(any(f"submitting flow run '{id_}'" in log for id_ in runs) for log in logs)

    while len(runs) < 4 or workers() < 2:
        *names, alone = [f"shared-{len(runs)}-{each}" for each in range(4)]
        lines = [{**ONE_COPY, "orderId": name} for name in names]
        source = tmp_path / f"{alone}.jsonl"
        source.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        start("batch-checkout/nightly", {"source": str(source), "chunk_size": 2})
        start(CHECKOUT_DEPLOYMENT, {"order": {**ONE_COPY, "orderId": alone}})
        orders += [*names, alone]
    wait_until(
        lambda: {status_of(local.store_url, id_) for id_ in orders} == {OrderStatus.DISPATCHED},
        "dispatch of all orders",
    )
    wait_until(
        lambda: {api.read_run(id_).state_type for id_ in runs} == {"COMPLETED"}, "end of all runs"
    )
    second.stop()
    setting("database_url", local.store_url)
    assert_books_balance()


def test_the_ui_is_served_and_calls_the_server_on_its_port(local_system: RunningSystem) -> None:
    page = httpx.get(local_system.local.ui_url, follow_redirects=True)
    assert page.status_code == httpx.codes.OK
    assert "<html" in page.text
    settings = httpx.get(f"{local_system.local.ui_url}/ui-settings").json()
    assert settings["api_url"] == local_system.local.api_url


def test_an_order_that_cannot_be_is_refused_before_a_run_exists(
    local_system: RunningSystem,
) -> None:
    order = json.loads(EXAMPLE_ORDER) | {"quantity": 0}
    with pytest.raises(httpx.HTTPStatusError, match="409"):
        local_system.api.start_run(CHECKOUT_DEPLOYMENT, {"order": order})
