"""What the store uses of Prefect that Prefect promises nobody: one test for each use.

The table in docs/prefect.md names each with the place where it is used. A test that fails here
says which use another version of Prefect has changed, before an order meets it.
"""

import ast
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from prefect import Flow, flow, get_client, pause_flow_run, suspend_flow_run, task
from prefect.cli.deploy import _models
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import OrchestrationResult
from prefect.context import FlowRunContext
from prefect.exceptions import Abort, Pause
from prefect.input import keyset_from_base_key, keyset_from_paused_state
from prefect.states import Cancelled, Crashed, Paused, Scheduled, Suspended

from deployments.local import PROJECT_DIR
from flows.actions.drain import CRASHED, PAUSED, RESUMING, SUSPENDED
from flows.batches.bulk import as_one, forget_results
from flows.compensation import _reason
from flows.runs.pause import state_message
from flows.runs.run_states import is_cancelled_by_prefect
from store.errors import BillingError
from tests.flows.pool import Pool
from tests.flows.runs import Runs

PRODUCT = (
    "flows",
    "orders",
    "reports",
    "tasks",
    "texts",
    "store",
    "console",
    "deployments",
    "seed",
)
HEADING = "\n## Used of Prefect without its promise\n"


def test_a_run_keeps_the_results_of_its_tasks_in_run_results_until_they_are_cleared(
    prefect_server: None,
) -> None:
    kept = []

    @task
    def one() -> list[int]:
        return [1000, 2000]

    @flow
    def run() -> None:
        one()
        context = FlowRunContext.get()
        assert context is not None
        kept.append(len(context.run_results))
        forget_results()
        kept.append(len(context.run_results))

    run()
    assert kept[0] > 0
    assert kept[1] == 0


def test_a_quoted_argument_reaches_its_task_as_the_value_itself(prefect_server: None) -> None:
    got = []

    @task
    def take(values: Any) -> None:
        got.append(values)

    @flow
    def run() -> None:
        take(as_one(["a", "b"]))

    run()
    assert got == [["a", "b"]]


@pytest.mark.parametrize(("state", "begins"), [(Paused, "paused"), (Suspended, "suspended")])
def test_the_answer_to_a_pause_has_the_key_by_which_the_store_looks_for_it(
    state: type[State[Any]], begins: str
) -> None:
    waiting: State[Any] = state(pause_key="courier-1")  # type: ignore[call-arg]
    keys = keyset_from_paused_state(waiting)
    assert keys == keyset_from_base_key(f"{begins}-courier-1")
    assert keys["response"] == f"{begins}-courier-1-response"


@pytest.mark.parametrize("pause", [pause_flow_run, suspend_flow_run])
def test_a_pause_proposes_the_state_that_the_store_has_put_a_message_into(
    prefect_server: None, monkeypatch: pytest.MonkeyPatch, pause: Callable[..., Any]
) -> None:
    proposed: list[State[Any]] = []

    def refuse(state: State[Any], **_: Any) -> None:
        proposed.append(state)
        raise Abort("seen")

    monkeypatch.setattr("prefect.flow_runs.propose_state_sync", refuse)

    @flow
    def run() -> None:
        with state_message("waits for a courier"):
            pause(timeout=1)

    with pytest.raises(RuntimeError, match="seen"):
        run()
    assert [state.message for state in proposed] == ["waits for a courier"]


def test_a_hook_finds_what_its_flow_raised_in_the_data_of_the_state(prefect_server: None) -> None:
    found: list[tuple[Any, Any]] = []

    def look(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
        found.append((state.data, _reason(state)))

    @flow(on_failure=[look])
    def run() -> None:
        raise BillingError("declined")

    run(return_state=True)
    ((data, error),) = found
    assert error is data.result
    assert isinstance(error, BillingError)


def test_a_flow_that_raises_pause_leaves_its_run_in_the_state_that_it_has_set(
    prefect_server: None,
) -> None:
    ids = []

    @flow
    def gives_back() -> None:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        ids.append(context.flow_run.id)
        with get_client(sync_client=True) as client:
            said: OrchestrationResult[Any] = client.set_flow_run_state(
                ids[0], Scheduled(name=RESUMING)
            )
        raise Pause(state=said.state)

    with pytest.raises(Pause):
        gives_back()
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(ids[0]).state
    assert state is not None
    assert (state.type, state.name) == (StateType.SCHEDULED, RESUMING)


def test_the_states_that_the_store_asks_for_by_name_have_these_names() -> None:
    assert (Paused().name, Suspended().name, Crashed().name) == (PAUSED, SUSPENDED, CRASHED)
    assert Suspended().type == StateType.PAUSED


def test_a_suspended_run_that_is_resumed_is_scheduled_under_the_name_resuming(runs: Runs) -> None:
    with Pool(runs) as pool:
        run = pool.check_out("suspended", how="suspend")
        waiting: State[Any] = Suspended(timeout_seconds=60)
        runs.client.set_flow_run_state(run.id, waiting, force=True)
        runs.client.resume_flow_run(run.id)
        state = runs.client.read_flow_run(run.id).state
    assert state is not None
    assert (state.type, state.name) == (StateType.SCHEDULED, RESUMING)


MESSAGES = {
    "prefect.workers.base": r'f"(Deployment \{flow_run\.deployment_id\} no longer exists, [^"]+)"',
    "prefect.server.orchestration.core_policy": r'Cancelled\(\s*message="(Deployment [^"]+)"',
}
"""Where Prefect cancels a run by itself, and how its source says why."""


@pytest.mark.parametrize("module", MESSAGES)
def test_what_prefect_cancels_by_itself_is_known_by_its_message(module: str) -> None:
    messages = re.findall(MESSAGES[module], _source_of(module))
    assert messages
    for message in messages:
        said = re.sub(r"\{[^}]+\}", str(uuid4()), message)
        assert is_cancelled_by_prefect(Cancelled(message=said)), said


def test_the_leases_of_limits_can_be_kept_in_files() -> None:
    used = re.search(
        r'"(prefect\.server\.[\w.]+lease_storage\.\w+)"', _source("deployments/local_settings.py")
    )
    assert used is not None
    module = importlib.import_module(used[1])
    assert inspect.isclass(module.ConcurrencyLeaseStorage)


def _source_of(module: str) -> str:
    """A module's source; the server's cannot be imported each by itself."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text()


def _source(path: str) -> str:
    return (PROJECT_DIR / path).read_text()


def _private_names() -> Iterator[str]:
    """What the product imports of Prefect whose name, or whose module's, begins with a dash."""
    for package in PRODUCT:
        for path in (PROJECT_DIR / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names: list[str] = []
                if isinstance(node, ast.ImportFrom) and node.module:
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                elif isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                for name in names:
                    if name.startswith("prefect") and "._" in name:
                        yield f"{path.relative_to(PROJECT_DIR)}: {name}"


def test_the_product_imports_no_other_private_module_of_prefect() -> None:
    assert {use.rpartition(".")[0] for use in _private_names()} == {
        "deployments/prefect_yaml.py: prefect.cli.deploy._models"
    }


def test_the_models_of_prefect_yaml_know_every_key_of_the_projects_file() -> None:
    document = yaml.safe_load(_source("prefect.yaml"))
    deployments = document["deployments"]
    for mappings, model in (
        ([document], _models.PrefectYamlModel),
        (deployments, _models.DeploymentConfig),
        ([deployment["work_pool"] for deployment in deployments], _models.WorkPoolConfig),
        (
            [schedule for each in deployments for schedule in each.get("schedules", ())],
            _models.RawScheduleConfig,
        ),
        (
            [each["concurrency_limit"] for each in deployments if "concurrency_limit" in each],
            _models.ConcurrencyLimitSpec,
        ),
    ):
        known = {field.alias or name for name, field in model.model_fields.items()}
        assert mappings
        assert {key for mapping in mappings for key in mapping} <= known, model.__name__


def test_the_table_of_the_document_names_each_use_and_its_test() -> None:
    text = _source("docs/prefect.md")
    _, _, rest = text.partition(HEADING)
    table = rest.partition("\n## ")[0]
    named = set(re.findall(r"`(test_\w+)`", table))
    here = {
        name
        for name, value in globals().items()
        if name.startswith("test_") and callable(value) and name not in OF_THE_TABLE
    }
    assert named == here
    for module in re.findall(r"`((?:flows|deployments)/[\w/]+\.py)`", table):
        assert Path(PROJECT_DIR, module).is_file(), module
    (newest,) = re.findall(r"^prefect==(\S+)$", _source("constraints.txt"), re.MULTILINE)
    (oldest,) = re.findall(r"^prefect==(\S+)$", _source("constraints-oldest.txt"), re.MULTILINE)
    assert f"Prefect {oldest} and {newest}" in table


OF_THE_TABLE = {
    "test_the_product_imports_no_other_private_module_of_prefect",
    "test_the_table_of_the_document_names_each_use_and_its_test",
}
