"""Applying prefect.yaml changes nothing that a person has switched or set."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from uuid import UUID

import pytest
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient

from deployments import apply

SCHEMA = {"type": "object", "properties": {"to": {}, "days": {}}}


@pytest.fixture
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


class Deployed:
    """A deployment of the archive, as `prefect deploy` makes one."""

    def __init__(self, client: SyncPrefectClient) -> None:
        self.client = client
        self.flow_id = client.create_flow_from_name("archive-orders")

    def deploy(self, *, paused: bool, **parameters: object) -> UUID:
        return self.client.create_deployment(
            self.flow_id,
            "of-the-test",
            paused=paused,
            parameters=parameters,
            parameter_openapi_schema=SCHEMA,
        )


@pytest.fixture
def deployed(client: SyncPrefectClient) -> Iterator[Deployed]:
    deployed = Deployed(client)
    yield deployed
    client.delete_deployment(deployed.deploy(paused=True))


@pytest.mark.parametrize("was_paused", [True, False])
def test_what_a_person_has_switched_or_set_outlives_the_file(
    deployed: Deployed, was_paused: bool
) -> None:
    client = deployed.client
    id_ = deployed.deploy(paused=was_paused, to="s3://orders", days=400, gone=1)
    with apply.keeping(client):
        deployed.deploy(paused=not was_paused, days=500)
    now = client.read_deployment(id_)
    assert now.paused is was_paused
    assert now.parameters == {"to": "s3://orders", "days": 500}


def test_it_is_kept_when_the_file_is_refused_half_way(deployed: Deployed) -> None:
    id_ = deployed.deploy(paused=True)
    with suppress(KeyboardInterrupt), apply.keeping(deployed.client):
        deployed.deploy(paused=False)
        raise KeyboardInterrupt
    assert deployed.client.read_deployment(id_).paused


@pytest.mark.usefixtures("prefect_server")
def test_the_command_says_what_is_missing_and_how_it_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("STORE_WORK_POOL", raising=False)
    monkeypatch.setenv("STORE_HOME", "/srv")
    assert apply.main([]) == 1
    assert capsys.readouterr().err == "Set STORE_WORK_POOL as docs/settings.md says.\n"
    monkeypatch.setenv("STORE_WORK_POOL", "a-pool")
    for status in (0, 1):
        deploy = f"import os; assert os.path.exists('prefect.yaml'); raise SystemExit({status})"
        monkeypatch.setattr(apply, "DEPLOY", (sys.executable, "-c", deploy))
        assert apply.main([]) == status
    said = capsys.readouterr()
    assert said.out.startswith("Applied.")
    assert "`prefect deploy --all` ended with status 1" in said.err
