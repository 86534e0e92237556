"""Orders on the real server, worker and deployments, from their start to each ending.

The last tests look at what all of it has left behind.
"""

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest
from sqlalchemy import NullPool, create_engine, inspect, text
from sqlmodel import select

from console.doctor import CHECKS
from deployments.demo import demonstrate
from deployments.example_order import EXAMPLE_ORDER
from deployments.holdings import open_store
from deployments.local import (
    CHECKOUT_DEPLOYMENT,
    DISPATCH_DEPLOYMENT,
    PROJECT_DIR,
    WORK_POOL,
    LocalSystem,
)
from deployments.machine import inherited_environment
from seed.catalogue import JOHN_DOE, STRIPED_PAJAMAS, TEN_X_RULE
from store.messages import ASSIGNED, NO_COURIER
from store.models import Courier, Customer, Order, OrderStatus, QueuedMessage, SagaRecord, utc_now
from tests.books_balance import assert_books_balance

from .conftest import (
    DEADLINE_SECONDS,
    PASSWORD,
    PAYMENT_METHOD,
    SECRETS,
    USER,
    RunningSystem,
    checkout,
    status_of,
    wait_until,
)

ONE_COPY = {"userId": JOHN_DOE, "bookId": STRIPED_PAJAMAS, "quantity": 1}
pytestmark = pytest.mark.timeout(900)

NAME = "Zqille Featherstone"
CARD = "4242424242424242"
EMAIL = "zq.person@example.com"
PERSONAL = {NAME, CARD, EMAIL, PAYMENT_METHOD, "Eduardo Santana", "John Doe"}
ON_SIGTERM = "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"
MAY_HOLD = {"customers", "orders", "ledger", "order_queue"}
"""Tables of the store: who the customers are, what they pay with, and dead letters as they came."""
FAULTS = {
    # While the points are given back, so that the compensation fails.
    "unreturned": "points < initial_points",
    # While the points are taken.
    "unredeemed": "points = initial_points",
}
"""By the customer who meets it: what the database demands of the row, and quotes it otherwise."""
ENDINGS = {
    "unredeemed": OrderStatus.COMPENSATED,
    "unreturned": OrderStatus.COMPENSATION_FAILED,
}
"""By the customer again; the demo brings its orders to the other endings."""
PLANTED = {*PERSONAL, *SECRETS.values(), PASSWORD}


def found_in(words: str, planted: set[str] = PLANTED) -> set[str]:
    return {each for each in planted if each in words}


def places(url: str, planted: set[str] = PLANTED) -> dict[str, set[str]]:
    """By table and column of a database: what is found there of what is secret or personal."""
    found: dict[str, set[str]] = defaultdict(set)
    with create_engine(url, poolclass=NullPool).connect() as connection:
        for table in inspect(connection).get_table_names():
            rows = connection.execute(
                text(
                    "SELECT field.key, field.value::text "  # noqa: S608
                    f'FROM "{table}" AS row_, jsonb_each(to_jsonb(row_)) AS field'
                )
            )
            for column, value in rows:
                found[f"{table}.{column}"] |= found_in(value, planted)
    return {place: leaked for place, leaked in found.items() if leaked}


def plant(system: RunningSystem, folder: Path) -> None:
    """Put what is personal where it does not belong: in messages, files and a run's parameters."""
    bodies = [
        json.dumps({"order_id": NAME, "attempt": EMAIL, "copies": 1, EMAIL: CARD}),
        f"{NAME}, {EMAIL}, {CARD}",
    ]
    with open_store(system.local.store_url) as session:
        session.add_all(
            QueuedMessage(id=str(uuid4()), body=body, visible_at=utc_now()) for body in bodies
        )
        session.commit()
    files = {
        "no-header.csv": f"{NAME},{EMAIL},{CARD}\n",
        "lines.jsonl": f'{{"orderId": "{NAME}", "{EMAIL}": "{CARD}"}}\n{NAME} {EMAIL} {CARD}\n',
        "cells.csv": f"orderId,userId,bookId,paymentMethod\n{NAME},{EMAIL},{NAME},{CARD}\n",
    }
    for name, content in files.items():
        (folder / name).write_text(content)
        run = system.api.start_run("batch-checkout/nightly", {"source": str(folder / name)})
        wait_until(
            lambda run=run: system.api.read_run(run.id).state_type == "FAILED",  # type: ignore[misc]
            f"end of the batch of {name}",
        )
    with pytest.raises(httpx.HTTPStatusError) as refused:
        checkout(system.api, {**ONE_COPY, "paymentMethod": CARD})
    assert "paymentMethod must be" in refused.value.response.text
    assert found_in(refused.value.response.text) == set()


@pytest.fixture(scope="module")
def every_ending(
    local_system: RunningSystem, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningSystem]:
    """The system after orders have come to every ending, on errors that quote a customer too."""
    local = local_system.local
    plant(local_system, tmp_path_factory.mktemp("planted"))
    with open_store(local.store_url) as session:
        for id_, demand in FAULTS.items():
            session.add(
                Customer(
                    id=id_, name=NAME, points=5, initial_points=5, payment_method=PAYMENT_METHOD
                )
            )
            check = f"CHECK (id <> '{id_}' OR {demand}) NOT VALID"
            session.flush()
            session.execute(text(f"ALTER TABLE customers ADD CONSTRAINT fault_{id_} {check}"))
        session.commit()
    api, runs = local_system.api, {}
    # A dispatcher may listen still.
    with every_courier_busy(local.store_url):
        for id_ in ENDINGS:
            order = {"orderId": id_, "userId": id_, "bookId": TEN_X_RULE, "quantity": 2}
            runs[id_] = checkout(api, order | {"redeem": True})
        waiting = runs["unreturned"].id
        wait_until(lambda: api.read_run(waiting).state_name == "Paused", "pause of unreturned")
        api.resume(waiting, {"outcome": NO_COURIER, "reason": "snow"})
        wait_until(
            lambda: status_of(local.store_url, "unreturned") != OrderStatus.WAITING,
            "record of the answer",
        )
    for id_, ending in ENDINGS.items():
        wait_until(partial(has_ended, local.store_url, id_, ending), f"{ending} {id_}")
    yield local_system
    with open_store(local.store_url) as session:
        for id_ in FAULTS:
            session.execute(text(f"ALTER TABLE customers DROP CONSTRAINT fault_{id_}"))
        session.commit()


def has_ended(store_url: str, order_id: str, ending: OrderStatus) -> bool:
    return status_of(store_url, order_id) == ending


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


def test_a_dispatcher_that_is_off_is_off_after_a_restart(local_system: RunningSystem) -> None:
    assert local_system.dispatcher_stayed_off


def test_a_file_of_orders_is_carried_out_by_the_nightly_batch(
    local_system: RunningSystem, tmp_path: Path
) -> None:
    local = local_system.local
    source = tmp_path / "orders.csv"
    lines = [f"batch-{number},{JOHN_DOE},{STRIPED_PAJAMAS},1" for number in range(20)]
    bad = ["bad,bad,bad,0", f"{EMAIL},{EMAIL},bad,1", f"bad,bad,bad,{CARD}"]
    source.write_text("\n".join(["orderId,userId,bookId,quantity", *lines, *bad]))
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
    rejects = (tmp_path / "orders.csv.rejects.csv").read_text()
    assert rejects.startswith("line,field,reason\n22,")
    assert len(rejects.splitlines()) == 4
    assert found_in(rejects) == set()


def test_a_waiting_run_whose_container_is_stopped_goes_on_in_another_one(
    local_system: RunningSystem, tmp_path: Path
) -> None:
    local, api = local_system.local, local_system.api
    with pool_of_containers(api.url) as (deployment, given), ExitStack() as containers:
        with every_courier_busy(local.store_url):
            run = api.start_run(deployment, {"order": ONE_COPY | {"orderId": "in-a-container"}})
            environment = {**local.settings(), **given, "PREFECT__FLOW_RUN_ID": str(run.id)}
            first = containers.enter_context(container(environment, tmp_path))
            wait_until(lambda: api.read_run(run.id).state_name == "Paused", "pause of the run")
            first.terminate()
            first.wait(60)
            assert api.read_run(run.id).state_type == "SCHEDULED"
            second = containers.enter_context(container(environment, tmp_path))
            wait_until(
                lambda: api.read_run(run.id).state_name == "Paused", "pause in another container"
            )
            assert status_of(local.store_url, "in-a-container") == OrderStatus.WAITING
        answer = {"outcome": ASSIGNED, "courier": "night-rail", "answered_by": "a person"}
        assert api.resume(run.id, answer) == "ACCEPT"
        second.wait(DEADLINE_SECONDS)
        assert api.read_run(run.id).state_type == "COMPLETED"
    with open_store(local.store_url) as session:
        found = session.get_one(Order, "in-a-container")
        assert (found.status, found.attempt, found.continuations) == ("dispatched", 1, 0)


@contextmanager
def container(environment: Mapping[str, str], folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Inside, a process executes one run, as the command of a container's image does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect", "flow-run", "execute"],
        env={**os.environ, **environment},
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def every_courier_busy(store_url: str) -> Iterator[None]:
    """Inside, an order waits, whoever seeks a courier for it."""
    with open_store(store_url) as session:
        couriers = session.exec(select(Courier)).all()
        before = {courier.id: courier.assigned_copies for courier in couriers}
        for courier in couriers:
            courier.assigned_copies = courier.capacity_copies
        session.commit()
        try:
            yield
        finally:
            for courier in couriers:
                courier.assigned_copies = before[courier.id]
            session.commit()


@contextmanager
def pool_of_containers(api_url: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Inside there is a pool without a worker: a deployment in it, and what a stop does in it."""
    template = json.loads((PROJECT_DIR / "deployments" / "pools" / "docker.json").read_text())
    with httpx.Client(base_url=api_url, auth=(USER, PASSWORD), timeout=60) as api:
        checkouts = api.get(f"/deployments/name/{CHECKOUT_DEPLOYMENT}").raise_for_status().json()
        pool = {"name": "containers", "type": "docker", "base_job_template": template}
        api.post("/work_pools/", json=pool).raise_for_status()
        kept = ("flow_id", "entrypoint", "pull_steps", "parameter_openapi_schema")
        deployment = {key: checkouts[key] for key in kept}
        deployment |= {"name": pool["name"], "work_pool_name": pool["name"]}
        made = api.post("/deployments/", json=deployment).raise_for_status().json()
        try:
            given = template["variables"]["properties"]["env"]["default"]
            yield "store-checkout/containers", {ON_SIGTERM: given[ON_SIGTERM]}
        finally:
            api.delete(f"/deployments/{made['id']}").raise_for_status()
            api.delete("/work_pools/containers").raise_for_status()


def test_two_workers_share_checkouts_and_batches(
    local_system: RunningSystem, tmp_path: Path, setting: Callable[[str, object], None]
) -> None:
    local, api = local_system.local, local_system.api
    second = local.start_worker()
    api.start_run(DISPATCH_DEPLOYMENT, {"listen_seconds": 120})
    orders: list[str] = []
    runs: list[str] = []

    def start(deployment: str, parameters: dict[str, Any]) -> None:
        run_id = str(api.start_run(deployment, parameters).id)
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
    def is_listened_to() -> bool:
        found = doctor(local_system.local)
        return all(line["verdict"] == "ok" for line in found if line["check"] == "listeners")

    # Recovery's first look, seconds after the start, makes the dispatcher's stand-by.
    wait_until(is_listened_to, "stand-by of the dispatcher")
    found = doctor(local_system.local)
    assert {line["check"] for line in found if line["verdict"] == "ok"} == {
        check.name for check in CHECKS
    } - {"topic", "payments"}
    assert {line["verdict"] for line in found} == {"ok", "warning"}, found


def test_the_doctor_sees_what_is_paused_missing_or_unfitting(local_system: RunningSystem) -> None:
    local = local_system.local
    with httpx.Client(base_url=local.api_url, auth=(USER, PASSWORD)) as api:
        [automation] = api.post("/automations/filter", json={"sort": "NAME_ASC"}).json()
        batch = local_system.api.read_deployment_by_name("batch-checkout/nightly").id
        dispatcher = local_system.api.read_deployment_by_name(DISPATCH_DEPLOYMENT).id
        broken: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
            ("PATCH", f"/work_pools/{WORK_POOL}", {"is_paused": True}, {"is_paused": False}),
            ("PATCH", f"/automations/{automation['id']}", {"enabled": False}, {"enabled": True}),
            (
                "PATCH",
                f"/deployments/{batch}",
                {"concurrency_limit": 1, "paused": True},
                {"concurrency_limit": None, "paused": False},
            ),
            ("PATCH", f"/deployments/{dispatcher}", {"paused": True}, {"paused": False}),
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
    schedules = {line["says"]: line["verdict"] for line in found if line["check"] == "schedules"}
    paused = "batch-checkout/nightly is paused: none of its schedules makes a run"
    assert schedules[paused] == "mend"
    # A shop may do without it.
    off = "the dispatcher is off: each waiting order is a person's to answer"
    assert schedules[off] == "warning"
    assert "batch-checkout/nightly has a concurrency limit" in said["limits"]
    assert "store-checkout/other" in said["continuations"]
    automations = [line["says"] for line in found if line["check"] == "automations"]
    assert any("is disabled" in says for says in automations)
    assert any("healthy runs are marked as crashed" in says for says in automations)


def test_prefect_knows_no_secret_and_no_customer(every_ending: RunningSystem) -> None:
    url = every_ending.local.store_url.replace("/store?", "/prefect?")
    assert places(url) == {}
    # What is there is found: an order's id in the parameters, in logs, and in the events.
    found = places(url, {"survivor"})
    assert {"flow_run.parameters", "log.message", "artifact.data", "events.resource_id"} <= set(
        found
    )


def test_the_store_knows_a_customer_only_where_it_must(every_ending: RunningSystem) -> None:
    found = places(every_ending.local.store_url)
    assert {place.partition(".")[0] for place in found} <= MAY_HOLD
    # It was looked for in the right place: the fault did quote the row.
    with open_store(every_ending.local.store_url) as session:
        record = session.exec(
            select(SagaRecord).where(
                SagaRecord.order_id == "unreturned", SagaRecord.step == "redeem_points"
            )
        ).one()
        assert "fault_unreturned" in (record.undo_error or "")


def test_no_file_has_a_secret_or_a_customer_in_it(every_ending: RunningSystem) -> None:
    data_dir = every_ending.local.data_dir
    files = [
        path
        for path in data_dir.rglob("*")
        if path.is_file() and not path.is_relative_to(data_dir / "postgres")
    ]
    assert len([path for path in files if path.is_relative_to(data_dir / "logs")]) >= 3
    found = {path.name: found_in(path.read_bytes().decode(errors="replace")) for path in files}
    assert {name: leaked for name, leaked in found.items() if leaked} == {}


def test_the_errors_that_prefect_keeps_in_files_are_no_pickles(every_ending: RunningSystem) -> None:
    kept = list((every_ending.local.data_dir / "prefect" / "storage").iterdir())
    errors = [json.loads(path.read_text())["__exc_type__"] for path in kept]
    assert "store.errors.BookOutOfStock" in errors


def test_no_secret_is_in_a_command_line(every_ending: RunningSystem) -> None:
    lines = [
        " ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])
    ]
    assert [line for line in lines if found_in(line)] == []


def test_the_server_answers_nobody_without_the_password(local_system: RunningSystem) -> None:
    url = local_system.local.api_url
    for auth in (None, (USER, "guessed")):
        answer = httpx.post(f"{url}/flow_runs/filter", json={}, auth=auth)
        assert answer.status_code == httpx.codes.UNAUTHORIZED
    assert httpx.get(f"{url}/health").status_code == httpx.codes.OK


@pytest.mark.parametrize("kind", ["docker", "kubernetes", "ecs"])
def test_the_server_takes_a_work_pools_template_and_the_checkout_into_it(
    local_system: RunningSystem, kind: str
) -> None:
    template = json.loads((PROJECT_DIR / "deployments" / "pools" / f"{kind}.json").read_text())
    checkouts = f"/deployments/name/{CHECKOUT_DEPLOYMENT}"
    with httpx.Client(base_url=local_system.api.url, auth=(USER, PASSWORD), timeout=60) as api:
        deployed = api.get(checkouts).raise_for_status().json()
        # A process has no image.
        assert deployed["job_variables"] == {"working_dir": str(PROJECT_DIR)}
        pool = {"name": f"checked-{kind}", "type": kind, "base_job_template": template}
        api.post("/work_pools/", json=pool).raise_for_status()
        deployment = {
            "name": kind,
            "flow_id": deployed["flow_id"],
            "work_pool_name": pool["name"],
            "job_variables": deployed["job_variables"] | {"image": "store-checkout:0.2.0"},
        }
        api.post("/deployments/", json=deployment).raise_for_status()
        wrong = api.post("/deployments/", json=deployment | {"job_variables": {"image": 7}})
        assert wrong.status_code == httpx.codes.UNPROCESSABLE_ENTITY
