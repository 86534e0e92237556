"""The automations watch every flow, and never count a run as dead that is well."""

from collections.abc import Iterator

import httpx
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.events.schemas.automations import EventTrigger
from prefect.exceptions import ObjectNotFound
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    temporary_settings,
)

from deployments import automations
from deployments.automations import FLOWS, SILENCE_SECONDS, main
from deployments.local import PROJECT_DIR
from deployments.prefect_yaml import deployments_of, pauses
from flows.runs import lost_runs, stand_by


@pytest.fixture
def server() -> Iterator[None]:
    """An address at which nobody answers."""
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        yield


@pytest.fixture
def applied(server: None, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seconds of silence of each call that would apply the automations."""
    found: list[int] = []

    def apply(_client: SyncPrefectClient, silence_seconds: int) -> list[str]:
        found.append(silence_seconds)
        return ["an automation"]

    monkeypatch.setattr(automations, "apply", apply)
    monkeypatch.setattr(automations, "start_recovery", lambda _: None)
    return found


def fails(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def apply(_client: SyncPrefectClient, silence_seconds: int) -> list[str]:
        raise error

    monkeypatch.setattr(automations, "apply", apply)


def test_every_flow_that_is_deployed_is_watched_and_followed_up_as_its_kind_needs() -> None:
    document = yaml.safe_load((PROJECT_DIR / "prefect.yaml").read_text())
    deployed = deployments_of(document)
    assert {name.partition("/")[0] for name in deployed} == set(FLOWS)
    pausing = {name for name, each in deployed.items() if pauses(each)}
    assert {name.partition("/")[0] for name in pausing} == set(lost_runs.FLOWS)
    listening = {
        name for name, each in deployed.items() if "listen_seconds" in each.get("parameters", {})
    }
    assert {name.partition("/")[0] for name in listening - pausing} == set(stand_by.FLOWS)


def test_a_run_that_sends_heartbeats_or_has_no_process_is_not_counted_as_dead() -> None:
    (silent,) = automations.automations(SILENCE_SECONDS)
    assert isinstance(silent.trigger, EventTrigger)
    # A run that dies before its first heartbeat counts as well.
    assert silent.trigger.after == {"prefect.flow-run.Running", "prefect.flow-run.heartbeat"}
    states = ("Suspended", "Resuming", "Completed", "Failed", "Crashed", "Cancelled")
    assert silent.trigger.expect == {
        "prefect.flow-run.heartbeat",
        *(f"prefect.flow-run.{state}" for state in states),
    }


@pytest.mark.parametrize(("heartbeat", "silence"), [(30, 120), (180, 720), (None, 120)])
def test_a_run_may_be_silent_for_four_of_the_heartbeats_that_runs_have_here(
    applied: list[int], heartbeat: int | None, silence: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: heartbeat}):
        assert main([]) == 0
    assert applied == [silence]
    assert f"after {silence} s without a heartbeat" in capsys.readouterr().out


@pytest.mark.parametrize("seconds", ["180", "60"])
def test_a_silence_in_which_a_healthy_run_sends_no_heartbeat_is_refused(
    applied: list[int], seconds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 180}):
        assert main(["--silence-seconds", seconds]) == 2
    assert applied == []
    assert "PREFECT_FLOWS_HEARTBEAT_FREQUENCY" in capsys.readouterr().err


def test_without_a_server_nothing_is_started_to_apply_them_to(
    applied: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert main([]) == 1
    assert applied == []
    assert "PREFECT_API_URL" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (ObjectNotFound(http_exc=Exception()), "python -m deployments.apply"),
        (httpx.ConnectError("refused"), "Is the server running"),
    ],
)
def test_what_is_missing_on_the_server_is_named_with_its_remedy(
    server: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    remedy: str,
) -> None:
    fails(error, monkeypatch)
    assert main([]) == 1
    assert remedy in capsys.readouterr().err
