"""How a pool's runs start, set on a real Prefect server and told by the doctor."""

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from prefect import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL
from prefect.workers.process import ProcessWorker

from console import warm_start_check
from console.diagnosis import Verdict
from deployments import warm_start
from deployments.local import PROJECT_DIR
from deployments.machine import SetupError
from deployments.prefect_server import PrefectServer
from deployments.warm_start import is_wanted, main, run_command, set_run_command
from fork_server.status import Silent, Status
from store.models import utc_now

WARM = run_command("/venv/bin/python", PROJECT_DIR)
Template = dict[str, Any]


@pytest.fixture
def api(prefect_server: None) -> Iterator[PrefectServer]:
    with PrefectServer(PREFECT_API_URL.value()) as api:
        yield api


@pytest.fixture
def pool(api: PrefectServer) -> Iterator[Callable[..., str]]:
    """Makes a work pool; removed at the end."""
    made: list[str] = []

    def make(kind: str = "process", **more: Any) -> str:
        name = f"pool-{uuid4().hex[:8]}"
        api.create_work_pool(WorkPoolCreate(name=name, type=kind, **more))
        made.append(name)
        return name

    yield make
    with get_client(sync_client=True) as client:
        for name in made:
            client.delete_work_pool(name)


def command(api: PrefectServer, name: str) -> object:
    return api.read_work_pool(name).base_job_template["variables"]["properties"]["command"][
        "default"
    ]


def own_template(value: str | None) -> Template:
    template = ProcessWorker.get_default_base_job_template()
    template["variables"]["properties"]["command"]["default"] = value
    template["variables"]["properties"]["env"]["default"] = {"OF": "ours"}
    return template


def test_a_pools_runs_start_warm_and_cold_again(
    api: PrefectServer, pool: Callable[..., str]
) -> None:
    name = pool()
    assert set_run_command(api, name, WARM) == f"Runs of the work pool {name} start warm."
    assert command(api, name) == WARM
    assert "cold" in set_run_command(api, name, None)
    assert command(api, name) is None


def test_what_else_a_pools_template_says_stays(
    api: PrefectServer, pool: Callable[..., str]
) -> None:
    name = pool(base_job_template=own_template(None))
    set_run_command(api, name, WARM)
    assert api.read_work_pool(name).base_job_template == own_template(WARM)


def test_the_command_of_an_older_place_of_the_code_is_replaced(
    api: PrefectServer, pool: Callable[..., str]
) -> None:
    before = "/old/python -I -S /old/fork_server/client.py /old /old prefect.engine"
    name = pool(base_job_template=own_template(before))
    set_run_command(api, name, WARM)
    assert command(api, name) == WARM


def test_a_command_of_ones_own_stays(api: PrefectServer, pool: Callable[..., str]) -> None:
    name = pool(base_job_template=own_template("nice python -m prefect.engine"))
    assert "a command of its own" in set_run_command(api, name, WARM)
    assert command(api, name) == "nice python -m prefect.engine"


def test_a_pool_of_containers_is_left_alone(api: PrefectServer, pool: Callable[..., str]) -> None:
    name = pool("kubernetes")
    before = api.read_work_pool(name)
    assert "is of type kubernetes" in set_run_command(api, name, WARM)
    assert api.read_work_pool(name) == before


def test_a_pool_that_is_missing_is_named_with_what_to_do(api: PrefectServer) -> None:
    with pytest.raises(SetupError, match="prefect work-pool create gone"):
        set_run_command(api, "gone", WARM)


@pytest.mark.parametrize(
    ("value", "expected"), [(None, True), ("true", True), ("false", False), ("0", False)]
)
def test_runs_start_warm_unless_the_setting_says_no(
    monkeypatch: pytest.MonkeyPatch, value: str | None, expected: bool
) -> None:
    monkeypatch.delenv("STORE_WARM_START", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    if value is not None:
        monkeypatch.setenv("STORE_WARM_START", value)
    assert is_wanted() is expected


def test_on_another_system_than_linux_runs_start_cold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert not is_wanted()


def test_the_command_line_sets_the_pool_of_the_environment(
    api: PrefectServer,
    pool: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = pool()
    monkeypatch.setenv("PREFECT_API_URL", api.url)
    monkeypatch.setenv("STORE_WORK_POOL", name)
    monkeypatch.setenv("STORE_WARM_START", "perhaps")
    assert main([]) == 1
    assert capsys.readouterr().err == "STORE_WARM_START must be true or false.\n"
    monkeypatch.setenv("STORE_WARM_START", "true")
    monkeypatch.setattr("sys.platform", "linux")
    assert main([]) == 0
    assert warm_start.CLIENT in str(command(api, name))
    monkeypatch.delenv("STORE_WORK_POOL")
    assert main([]) == 1


def test_the_doctor_says_how_a_pools_runs_start(
    api: PrefectServer, pool: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = pool(base_job_template=own_template(None))
    monkeypatch.setattr(
        warm_start_check,
        "work_pools",
        lambda client: {name: client.read_work_pool(name), "gone": None},
    )
    monkeypatch.setenv("STORE_WARM_START", "true")
    monkeypatch.setattr("sys.platform", "linux")
    (cold,) = warm_start_check.look()
    assert (cold.verdict, cold.remedy) == (
        Verdict.WARNING,
        "call `python -m deployments.warm_start`, or set STORE_WARM_START=false",
    )
    monkeypatch.setenv("STORE_WARM_START", "false")
    (cold,) = warm_start_check.look()
    assert cold.verdict == Verdict.OK
    set_run_command(api, name, WARM)
    warm, *_servers = warm_start_check.look()
    assert (warm.verdict, warm.says) == (Verdict.OK, f"runs of the work pool {name} start warm")


def test_the_doctor_names_each_fork_server_with_its_code_and_runs(
    api: PrefectServer, pool: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = pool(base_job_template=own_template(WARM))
    monkeypatch.setattr(
        warm_start_check, "work_pools", lambda client: {name: client.read_work_pool(name)}
    )
    monkeypatch.setattr(warm_start_check, "servers", list)
    _, none = warm_start_check.look()
    assert "no fork server runs here" in none.says
    now = utc_now()
    statuses = [
        Status(7, 5, now, 3, code="0123456789ab", is_current=is_current)
        for is_current in (True, False)
    ]
    monkeypatch.setattr(warm_start_check, "servers", lambda: statuses)
    _, current, old = warm_start_check.look()
    assert "the fork server 7 of worker 5 has the present code (0123456789ab)" in current.says
    assert current.says.endswith("UTC, and 3 runs")
    assert "has older code" in old.says
    assert {current.verdict, old.verdict} == {Verdict.OK}
    monkeypatch.setattr(warm_start_check, "servers", lambda: [Silent(7, 5)])
    _, silent = warm_start_check.look()
    assert silent.verdict == Verdict.WARNING
    assert "the fork server 7 of worker 5 has not answered" in silent.says
    assert "`kill -9 7`" in silent.remedy
