"""SQS and SNS over real HTTP: moto's server, for the session, with queues of each test's own."""

import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from store import aws
from tests.aws.cloud import Calls, Cloud, Faults, forget_clients

if TYPE_CHECKING:
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer


@pytest.fixture(scope="session", autouse=True)
def botocores_data_is_read_once() -> Iterator[None]:
    """Every client's session would read the descriptions of all services anew."""
    from botocore.loaders import create_loader

    loader = create_loader()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("botocore.session.create_loader", lambda *_: loader)
        yield


@pytest.fixture(scope="session")
def server() -> Iterator["ThreadedMotoServer"]:
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    # A line for each request would bury what a failing test has to say.
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    yield moto
    moto.stop()


@pytest.fixture
def endpoint_url(
    server: "ThreadedMotoServer", aws_environment: None, monkeypatch: pytest.MonkeyPatch
) -> str:
    # The stand-in has one server, of which a short poll misses nothing.
    monkeypatch.setattr("store.sqs.REDRIVE_POLL_SECONDS", 0)
    host, port = server.get_host_and_port()
    return f"http://{host}:{port}"


@pytest.fixture
def aws_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Credentials of nobody, and no way to those of the machine; clients of this test's own."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    forget_clients()
    yield
    forget_clients()


@pytest.fixture
def cloud(endpoint_url: str) -> Cloud:
    """The stand-in for AWS, looked at past the code under test."""
    return Cloud(endpoint_url)


@pytest.fixture
def calls(endpoint_url: str) -> Calls:
    """Every call to AWS that the test's code makes from here on."""
    return Calls(endpoint_url)


@pytest.fixture
def faults(endpoint_url: str) -> Faults:
    """Answers that the test gives instead of AWS, at the edge to HTTP."""
    return Faults(endpoint_url)


@pytest.fixture
def no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once, as often as ever: botocore and we."""
    monkeypatch.setattr(
        aws, "ENTRY_RETRY_DELAYS_SECONDS", tuple(0.0 for _ in aws.ENTRY_RETRY_DELAYS_SECONDS)
    )
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)


@pytest.fixture
def closed_url() -> Iterator[str]:
    """An address at which nobody answers."""
    with contextlib.closing(socket.socket()) as taken:
        # Bound and never listening: the port cannot become anybody else's meanwhile.
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def use_aws(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, str]]:
    """Have the settings choose a new queue and topic; gives them, and the subscriber's queue."""

    def use() -> dict[str, str]:
        queue_url, dead_letter_url = cloud.queue()
        topic_arn, subscribed_url = cloud.topic()
        chosen = {
            "STORE_QUEUE": "sqs",
            "STORE_QUEUE_URL": queue_url,
            "STORE_DEAD_LETTER_URL": dead_letter_url,
            "STORE_TOPIC": "sns",
            "STORE_TOPIC_ARN": topic_arn,
            "STORE_AWS_ENDPOINT_URL": cloud.endpoint_url,
        }
        for name, value in chosen.items():
            monkeypatch.setenv(name, value)
        return {**chosen, "subscribed": subscribed_url}

    return use
