"""Orders on the real server, worker and deployments, from their start to each ending."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from console.doctor import CHECKS
from deployments.demo import demonstrate
from deployments.local import (
    CHECKOUT_DEPLOYMENT,
    DISPATCH_DEPLOYMENT,
    EXAMPLE_ORDER,
    WORK_POOL,
    LocalSystem,
    inherited_environment,
)
from seed.catalogue import JOHN_DOE, STRIPED_PAJAMAS
from store.models import OrderStatus

from .conftest import RunningSystem, status_of, wait_until

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


def doctor(local: LocalSystem, **changed: str) -> list[dict[str, str]]:
    """What `checkout doctor` says in the environment of the system's worker, with changes."""
    answer = subprocess.run(
        [str(Path(sys.executable).parent / "checkout"), "doctor", "--json"],
        env={**inherited_environment(), **local.settings(), **changed},
        check=False,
        capture_output=True,
        text=True,
    )
    found: list[dict[str, str]] = json.loads(answer.stdout)
    assert answer.returncode == int(any(line["verdict"] == "mend" for line in found))
    return found


def test_the_doctor_finds_the_running_system_well(local_system: RunningSystem) -> None:
    found = doctor(local_system.local)
    assert {line["check"] for line in found if line["verdict"] == "ok"} == {
        check.name for check in CHECKS
    } - {"topic", "payments"}
    assert {line["verdict"] for line in found} == {"ok", "warning"}, found


def test_the_doctor_sees_what_is_paused_missing_or_unfitting(local_system: RunningSystem) -> None:
    local = local_system.local
    with httpx.Client(base_url=local.api_url) as api:
        [automation, _] = api.post("/automations/filter", json={"sort": "NAME_ASC"}).json()
        batch = local_system.api.deployment_id("batch-checkout/nightly")
        broken: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
            ("PATCH", f"/work_pools/{WORK_POOL}", {"is_paused": True}, {"is_paused": False}),
            ("PATCH", f"/automations/{automation['id']}", {"enabled": False}, {"enabled": True}),
            (
                "PATCH",
                f"/deployments/{batch}",
                {"concurrency_limit": 1, "paused": True},
                {"concurrency_limit": None, "paused": False},
            ),
        ]
        try:
            for method, path, change, _ in broken:
                api.request(method, path, json=change).raise_for_status()
            found = doctor(
                local,
                PREFECT_FLOWS_HEARTBEAT_FREQUENCY="180",
                STORE_CHECKOUT_DEPLOYMENT="store-checkout/other",
            )
        finally:
            for method, path, _, change in broken:
                api.request(method, path, json=change).raise_for_status()
    said = {line["check"]: line["says"] for line in found if line["verdict"] != "ok"}
    assert "paused: no worker takes a run" in said["work pools"]
    assert "batch-checkout/nightly is paused" in said["schedules"]
    assert "batch-checkout/nightly has a concurrency limit" in said["limits"]
    assert "store-checkout/other" in said["continuations"]
    automations = [line["says"] for line in found if line["check"] == "automations"]
    assert any("is disabled" in says for says in automations)
    assert any("healthy runs are marked as crashed" in says for says in automations)
