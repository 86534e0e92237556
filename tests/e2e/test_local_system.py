"""Orders on the real server, worker and deployments, from their start to each ending.

The last tests look at what all of it has left behind.
"""

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest
from sqlalchemy import NullPool, create_engine, inspect, text
from sqlmodel import select

from deployments.demo import demonstrate
from deployments.holdings import open_store
from deployments.local import (
    CHECKOUT_DEPLOYMENT,
    DISPATCH_DEPLOYMENT,
    EXAMPLE_ORDER,
    PROJECT_DIR,
    WORK_POOL,
)
from seed.catalogue import JOHN_DOE, STRIPED_PAJAMAS, TEN_X_RULE
from store.models import Courier, Customer, Order, OrderStatus, SagaRecord

from .conftest import (
    PASSWORD,
    PAYMENT_METHOD,
    SECRETS,
    USER,
    RunningSystem,
    checkout,
    status_of,
    wait_until,
)

pytestmark = pytest.mark.timeout(900)

NAME = "Zqille Featherstone"
CARD = "4242424242424242"
EMAIL = "zq.person@example.com"
PERSONAL = {NAME, CARD, EMAIL, PAYMENT_METHOD, "Eduardo Santana", "John Doe"}
MAY_HOLD = {"customers", "orders", "ledger"}
"""Tables of the store: who the customers are, and what they pay with."""
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


@pytest.fixture(scope="module")
def every_ending(local_system: RunningSystem) -> Iterator[RunningSystem]:
    """The system after orders have come to every ending, on errors that quote a customer too."""
    local = local_system.local
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
    for id_ in ENDINGS:
        # More copies than any courier takes.
        order = {"orderId": id_, "userId": id_, "bookId": TEN_X_RULE, "quantity": 201}
        checkout(local_system.api, order | {"redeem": True})
    local_system.api.start_run(DISPATCH_DEPLOYMENT, {"listen_seconds": 60})
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
    template = json.loads((PROJECT_DIR / "deployments" / "pools" / "docker.json").read_text())
    with every_courier_busy(local.store_url), (tmp_path / "run.log").open("w") as log:
        with closed_pool(api.url):
            run = checkout(
                api,
                {
                    "orderId": "in-a-container",
                    "userId": JOHN_DOE,
                    "bookId": STRIPED_PAJAMAS,
                    "quantity": 1,
                },
            )
            in_a_container = subprocess.Popen(
                [sys.executable, "-m", "prefect", "flow-run", "execute"],
                env={
                    **os.environ,
                    **local.settings(),
                    "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR": template["variables"][
                        "properties"
                    ]["env"]["default"]["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"],
                    "PREFECT__FLOW_RUN_ID": run.id,
                },
                cwd=tmp_path,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            wait_until(lambda: api.read_run(run.id).state_name == "Paused", "pause of the run")
            paused = api.read_run(run.id).state_id
            in_a_container.terminate()
            in_a_container.wait(60)
        wait_until(
            lambda: (now := api.read_run(run.id)).state_name == "Paused" and now.state_id != paused,
            "pause of the run in another process",
        )
        assert status_of(local.store_url, "in-a-container") == OrderStatus.WAITING
    api.start_run(DISPATCH_DEPLOYMENT, {"listen_seconds": 30})
    wait_until(
        lambda: status_of(local.store_url, "in-a-container") == OrderStatus.DISPATCHED,
        "dispatch of the order",
    )
    with open_store(local.store_url) as session:
        order = session.get_one(Order, "in-a-container")
        assert (order.attempt, order.continuations) == (1, 0)


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
def closed_pool(api_url: str) -> Iterator[None]:
    """Inside, no worker takes a run."""
    with httpx.Client(base_url=api_url, auth=(USER, PASSWORD), timeout=60) as api:
        pool = f"/work_pools/{WORK_POOL}"
        api.patch(pool, json={"is_paused": True}).raise_for_status()
        try:
            yield
        finally:
            api.patch(pool, json={"is_paused": False}).raise_for_status()


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
        # Left out, it is empty; a process has no image.
        assert deployed["job_variables"] == {"image": ""}
        pool = {"name": f"checked-{kind}", "type": kind, "base_job_template": template}
        api.post("/work_pools/", json=pool).raise_for_status()
        deployment = {
            "name": kind,
            "flow_id": deployed["flow_id"],
            "work_pool_name": pool["name"],
            "job_variables": {"image": "store-checkout:0.1.0"},
        }
        api.post("/deployments/", json=deployment).raise_for_status()
        wrong = api.post("/deployments/", json=deployment | {"job_variables": {"image": 7}})
        assert wrong.status_code == httpx.codes.UNPROCESSABLE_ENTITY
