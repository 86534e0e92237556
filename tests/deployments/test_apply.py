"""Applying prefect.yaml changes nothing that a person has switched or set."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import yaml
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient

from deployments import apply

ARCHIVE = ("archive-orders", "monthly", "flows.archive.archive_orders")
DISPATCHER = ("dispatch-orders", "local", "flows.dispatch.dispatch_orders")
IN_THE_FILE = {
    (deployment["entrypoint"], deployment["name"]): deployment
    for deployment in yaml.safe_load((apply.PROJECT_DIR / "prefect.yaml").read_text())[
        "deployments"
    ]
}


@pytest.fixture
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def deployed(client: SyncPrefectClient) -> Iterator[Callable[..., None]]:
    """Create a deployment as an earlier `prefect deploy` has, with what people have set since."""
    with ExitStack() as created:

        def deploy(flow: str, name: str, entrypoint: str, *, paused: bool, **set_: object) -> None:
            id_ = client.create_deployment(
                client.create_flow_from_name(flow),
                name,
                entrypoint=entrypoint,
                paused=paused,
                parameters=set_,
            )
            created.callback(client.delete_deployment, id_)

        yield deploy


def to_apply(client: SyncPrefectClient) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the deployments of the copy that is applied."""
    with apply.what_to_apply(client) as file:
        document = yaml.safe_load(file.read_text())
    assert not file.exists()
    assert document["pull"] == []
    return {(each["entrypoint"], each["name"]): each for each in document["deployments"]}


@pytest.mark.parametrize("paused", [True, False])
def test_what_a_person_has_switched_or_set_outlives_the_file(
    client: SyncPrefectClient, deployed: Callable[..., None], paused: bool
) -> None:
    deployed(*ARCHIVE, paused=paused, to="s3://orders", older_than_days=500, gone=1)
    deployed(*DISPATCHER, paused=paused)
    copy = to_apply(client)
    archive, dispatcher = copy.pop(ARCHIVE[:0:-1]), copy.pop(DISPATCHER[:0:-1])
    assert archive["paused"] is dispatcher["paused"] is paused
    # Its own, not the one that the flow has no more, and the file's value where the file has one.
    assert archive["parameters"] == {"to": "s3://orders", "older_than_days": 400}
    assert dispatcher["parameters"] == IN_THE_FILE[DISPATCHER[:0:-1]]["parameters"]
    assert all(each.get("paused") == IN_THE_FILE[key].get("paused") for key, each in copy.items())


def test_a_switch_outlives_the_move_of_its_flow_to_another_module(
    client: SyncPrefectClient, deployed: Callable[..., None]
) -> None:
    flow, name, _ = DISPATCHER
    deployed(flow, name, "flows.earlier.dispatch_orders", paused=True)
    assert to_apply(client)[DISPATCHER[:0:-1]]["paused"] is True


def test_an_interrupted_apply_leaves_no_file_and_no_switch_changed(
    client: SyncPrefectClient, deployed: Callable[..., None]
) -> None:
    deployed(*DISPATCHER, paused=True)
    with suppress(KeyboardInterrupt), apply.what_to_apply(client) as file:
        assert file.exists()
        raise KeyboardInterrupt
    assert not file.exists()
    assert client.read_deployment_by_name("dispatch-orders/local").paused


@pytest.mark.parametrize("image", [None, "shop:1"])
def test_an_image_is_named_only_where_there_is_one(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch, image: str | None
) -> None:
    if image is None:
        monkeypatch.delenv("STORE_IMAGE", raising=False)
    else:
        monkeypatch.setenv("STORE_IMAGE", image)
    for deployment in to_apply(client).values():
        assert ("image" in deployment["work_pool"]["job_variables"]) is (image is not None)


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
        deploy = (
            "import os, sys; assert os.path.exists('prefect.yaml'); "
            f"assert os.path.exists(sys.argv[1]); raise SystemExit({status})"
        )
        monkeypatch.setattr(apply, "DEPLOY", ("-c", deploy))
        assert apply.main([]) == status
    said = capsys.readouterr()
    assert said.out.startswith("Applied.")
    assert "`prefect deploy --all` ended with status 1" in said.err
