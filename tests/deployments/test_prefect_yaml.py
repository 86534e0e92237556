"""prefect.yaml holds nothing that Prefect would ignore, or that would cost a waiting order."""

import importlib
import pkgutil
from typing import Any

import pytest
import yaml
from prefect import Flow, Task

import flows
import tasks
from deployments.local import (
    CHECKOUT_DEPLOYMENT,
    DISPATCH_DEPLOYMENT,
    ONLINE_DEPLOYMENT,
    PROJECT_DIR,
)
from deployments.prefect_yaml import problems
from flows.runs.results import ON_THIS_MACHINE

FLOWS = "tests.deployments.some_flows"

POOL = {"name": "{{ $STORE_WORK_POOL }}", "job_variables": {"working_dir": "{{ $STORE_HOME }}"}}


def document(**changes: Any) -> dict[str, Any]:
    """A good prefect.yaml of one deployment, with changes to that deployment."""
    deployment = {
        "name": "local",
        "entrypoint": f"{FLOWS}.plain",
        "description": "Plain.",
        "parameters": {"seconds": 1},
        "schedules": [{"slug": "often", "interval": 300}],
        "concurrency_limit": {"limit": 1, "collision_strategy": "ENQUEUE"},
        "work_pool": POOL,
    }
    return {"pull": [], "deployments": [deployment | changes]}


def read_project_file() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((PROJECT_DIR / "prefect.yaml").read_text())
    return found


def test_the_projects_file_has_no_problem() -> None:
    assert problems(read_project_file()) == []


def test_what_orders_wait_for_never_stands_behind_orders_in_a_queue() -> None:
    queues = {
        (deployment["entrypoint"].rpartition(".")[2], deployment["name"]): deployment[
            "work_pool"
        ].get("work_queue_name")
        for deployment in read_project_file()["deployments"]
    }
    assert queues == {
        ("store_checkout", "local"): None,
        ("batch_checkout", "nightly"): None,
        ("batch_checkout", "online"): "upkeep",
        ("dispatch_orders", "local"): "upkeep",
        ("recover_orders", "local"): "upkeep",
        ("audit_books", "daily"): None,
        ("report_sales", "daily"): None,
        ("report_sales", "monthly"): None,
        ("archive_orders", "monthly"): None,
    }


def test_of_thirty_orders_and_two_hours_of_upkeep_nine_runs_in_ten_are_orders() -> None:
    upkeep = [
        7200 // schedule["interval"]
        for deployment in read_project_file()["deployments"]
        for schedule in deployment.get("schedules", [])
        if "order" not in deployment["tags"] and not deployment.get("paused")
        if "interval" in schedule
    ]
    assert 30 / (30 + sum(upkeep)) >= 0.9


def test_the_projects_file_has_the_deployments_that_the_local_system_starts() -> None:
    names = {
        f"{deployment['entrypoint'].rpartition('.')[2].replace('_', '-')}/{deployment['name']}"
        for deployment in read_project_file()["deployments"]
    }
    assert {CHECKOUT_DEPLOYMENT, DISPATCH_DEPLOYMENT, ONLINE_DEPLOYMENT} <= names


def test_a_limit_on_the_projects_own_checkout_is_refused() -> None:
    changed = read_project_file()
    for deployment in changed["deployments"]:
        if deployment["entrypoint"].endswith(".store_checkout"):
            deployment["concurrency_limit"] = 10
    assert [problem.partition(": ")[2] for problem in problems(changed)] == [
        "concurrency_limit: its lease is lost in a pause, and the waiting run crashes"
    ]


def test_a_good_document_has_no_problem() -> None:
    assert problems(document()) == []


@pytest.mark.parametrize(
    "used", [{"version_type": "prefect:simple"}, {"sla": []}, {"flow_name": "plain"}]
)
def test_every_key_that_prefect_uses_is_taken(used: dict[str, Any]) -> None:
    assert problems(document(**used)) == []


def test_a_limit_is_taken_on_a_flow_that_does_not_pause_itself() -> None:
    changed = document(entrypoint=f"{FLOWS}.hooked", parameters={}, concurrency_limit=1)
    assert problems(changed) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"triger": []}, "Prefect would ignore the key 'triger'"),
        ({"schedule": {"cron": "0 2 * * *"}, "schedules": None}, "without a slug"),
        ({"parameter_openapi_schema": {}}, "ignore the key 'parameter_openapi_schema'"),
        ({"work_pool": POOL | {"queue": "q"}}, "ignore the key 'queue'"),
        ({"work_pool": POOL | {"name": "local"}}, "its name must come from the environment"),
        ({"work_pool": POOL | {"job_variables": {}}}, "start in an empty temporary folder"),
        (
            {"work_pool": POOL | {"job_variables": {"working_dir": "/srv/store"}}},
            "'/srv/store' is a folder of one machine",
        ),
        ({"schedules": [{"interval": 300}]}, "without a slug"),
        ({"schedules": [{"slug": "a"}]}, "exactly one of cron, interval and rrule"),
        ({"schedules": [{"slug": "a", "interval": 1, "cron": "* * * * *"}]}, "exactly one of"),
        (
            {"schedules": [{"slug": "a", "interval": 1}, {"slug": "a", "interval": 2}]},
            "two have the same slug",
        ),
        ({"schedules": [{"slug": "a", "interval": 1, "catchup": True}]}, "the key 'catchup'"),
        ({"enforce_parameter_schema": False}, "lets bad input into a run"),
        ({"concurrency_limit": {"limit": 1}}, "must be ENQUEUE or CANCEL_NEW"),
        (
            {"concurrency_limit": {"limit": 1, "collision_strategy": "ENQUEUE", "max": 2}},
            "the key 'max'",
        ),
        ({"entrypoint": f"{FLOWS}_gone.gone"}, "there is no such flow"),
        ({"entrypoint": f"{FLOWS}.gone"}, "there is no such flow"),
        ({"parameters": {"minutes": 1}}, "the flow has no parameter 'minutes'"),
        ({"description": ""}, "description is missing"),
        (
            {"entrypoint": f"{FLOWS}.waiting", "parameters": {}, "concurrency_limit": 5},
            "its lease is lost in a pause",
        ),
        (
            {"entrypoint": f"{FLOWS}.asking", "parameters": {}, "concurrency_limit": 5},
            "its lease is lost in a pause",
        ),
        ({"entrypoint": f"{FLOWS}.retried", "parameters": {}}, "flow-level retries"),
    ],
)
def test_an_unsafe_deployment_is_refused(changes: dict[str, Any], expected: str) -> None:
    (problem,) = problems(document(**changes))
    assert expected in problem


def test_a_key_that_prefect_does_not_know_is_refused() -> None:
    (problem,) = problems(document() | {"deploments": []})
    assert "'deploments'" in problem


@pytest.mark.parametrize("pull", [None, [{"prefect.deployments.steps.git_clone": {}}]])
def test_a_pull_step_of_ones_own_or_of_prefects_is_refused(pull: object) -> None:
    (problem,) = problems(document() | {"pull": pull})
    assert problem.startswith("pull: must be []")


def test_the_same_deployment_twice_is_refused() -> None:
    changed = document()
    changed["deployments"] *= 2
    (problem,) = problems(changed)
    assert "deployed twice" in problem


@pytest.mark.parametrize("empty", [None, [], "deployments", {"deployments": []}])
def test_a_document_that_deploys_nothing_is_refused(empty: object) -> None:
    assert problems(empty)


def test_no_flow_and_no_task_keeps_results_in_a_storage() -> None:
    # What is done is in the saga log; a result read from a shared storage would be a pickle. What a
    # flow leaves open, a default storage of the server's decides.
    found: list[Flow[..., Any] | Task[..., Any]] = [
        member
        for package in (flows, tasks)
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
        for member in vars(importlib.import_module(module.name)).values()
        if isinstance(member, Flow | Task)
    ]
    assert len(found) > 10
    for member in found:
        assert member.persist_result is (False if isinstance(member, Flow) else None), member.name
        assert member.result_storage in (None, ON_THIS_MACHINE), member.name
        assert member.result_serializer is None, member.name
