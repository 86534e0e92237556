"""The settings choose AWS, and nothing else does."""

import re
import subprocess
import sys

import pytest
from pydantic import ValidationError

from store.partners import order_queue, topic
from store.settings import settings
from store.table_queue import TableQueue
from store.table_topic import TableTopic
from tests.shop import NOWHERE

QUEUE_URL = "https://sqs.eu-central-1.amazonaws.com/123456789012/store-orders"
TOPIC_ARN = "arn:aws:sns:eu-central-1:123456789012:store-notices"
COMPLETE = {
    "STORE_QUEUE": "sqs",
    "STORE_QUEUE_URL": QUEUE_URL,
    "STORE_DEAD_LETTER_URL": f"{QUEUE_URL}-dead",
    "STORE_TOPIC": "sns",
    "STORE_TOPIC_ARN": TOPIC_ARN,
}


@pytest.fixture(autouse=True)
def database_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_DATABASE_URL", NOWHERE)


def choose(monkeypatch: pytest.MonkeyPatch, **changed: str) -> None:
    for name, value in {**COMPLETE, **changed}.items():
        monkeypatch.setenv(name, value)


def test_the_tables_are_taken_if_nothing_is_said() -> None:
    assert isinstance(order_queue(), TableQueue)
    assert isinstance(topic(), TableTopic)


def test_sqs_and_sns_are_taken_if_the_settings_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from store.sns import SnsTopic
    from store.sqs import SqsQueue

    choose(monkeypatch, STORE_AWS_ENDPOINT_URL="", STORE_VISIBILITY_TIMEOUT_SECONDS="45")
    assert order_queue() == SqsQueue(QUEUE_URL, f"{QUEUE_URL}-dead", 45, "")
    assert topic() == SnsTopic(TOPIC_ARN, "")


@pytest.mark.parametrize("missing", ["STORE_QUEUE_URL", "STORE_DEAD_LETTER_URL", "STORE_TOPIC_ARN"])
@pytest.mark.parametrize("empty", [True, False])
def test_a_missing_setting_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, missing: str, empty: bool
) -> None:
    choose(monkeypatch, **{missing: ""})
    if not empty:
        monkeypatch.delenv(missing)
    with pytest.raises(ValidationError) as wrong:
        settings()
    (error,) = wrong.value.errors()
    assert re.findall(r"needs (\w+)", error["msg"]) == [missing]
    assert "python -m deployments.provision" in error["msg"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STORE_QUEUE_URL", "store-orders"),
        ("STORE_TOPIC_ARN", "store-notices"),
        ("STORE_TOPIC_ARN", QUEUE_URL),
        ("STORE_AWS_ENDPOINT_URL", "127.0.0.1:5000"),
        ("STORE_VISIBILITY_TIMEOUT_SECONDS", "43201"),
        ("STORE_QUEUE", "rabbit"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    choose(monkeypatch, **{name: value})
    with pytest.raises(ValidationError) as wrong:
        settings()
    assert [error["loc"] for error in wrong.value.errors()] == [
        (name.removeprefix("STORE_").lower(),)
    ]


def test_boto3_is_imported_only_for_who_uses_it() -> None:
    program = (
        "import sys\n"
        "from store.partners import order_queue, topic\n"
        "order_queue(), topic()\n"
        "assert not {'boto3', 'botocore', 'store.aws'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
