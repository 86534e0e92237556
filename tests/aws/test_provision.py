"""`python -m deployments.provision`: what it creates, changes, leaves alone and deletes."""

import io
import json
import shlex
from typing import Any
from uuid import uuid4

import pytest

from deployments import aws_resources, provision
from store.partners import order_queue, topic
from store.queue import MAX_RECEIVES
from store.settings import settings
from tests.aws.cloud import Calls, Cloud
from tests.aws.test_topics import a_notice
from tests.shop import NOWHERE

ACCOUNT = "123456789012"
REGION = "eu-central-1"


@pytest.fixture
def name() -> str:
    return f"shop-{uuid4().hex[:8]}"


@pytest.fixture(autouse=True)
def provisioning(endpoint_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto.sqs.models import Queue

    monkeypatch.setenv("STORE_AWS_ENDPOINT_URL", endpoint_url)
    # moto keeps this attribute of a queue and forgets to tell it, as AWS does.
    monkeypatch.setattr(Queue, "redrive_allow_policy", None, raising=False)
    monkeypatch.setattr(Queue, "BASE_ATTRIBUTES", [*Queue.BASE_ATTRIBUTES, "RedriveAllowPolicy"])


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command; exit status, standard output and error."""
    status = provision.main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def exported(output: str) -> dict[str, str]:
    """The settings as a shell would read them."""
    words = [shlex.split(line) for line in output.splitlines()]
    assert {word[0] for word in words} == {"export"}
    return dict(word[1].split("=", 1) for word in words)


def queue_url(cloud: Cloud, name: str) -> str:
    url: str = cloud.sqs.get_queue_url(QueueName=name)["QueueUrl"]
    return url


def emails(cloud: Cloud, arn: str) -> list[str]:
    found = cloud.sns.list_subscriptions_by_topic(TopicArn=arn)["Subscriptions"]
    return sorted(s["Endpoint"] for s in found if s["Protocol"] == "email")


def exists(cloud: Cloud, name: str) -> list[str]:
    """Which of the store's resources there are."""
    urls = cloud.sqs.list_queues(QueueNamePrefix=name).get("QueueUrls", [])
    arns = [topic["TopicArn"] for topic in cloud.sns.list_topics()["Topics"]]
    return sorted(
        [url.rsplit("/", 1)[1] for url in urls]
        + [arn.rsplit(":", 1)[1] for arn in arns if name in arn]
    )


def test_everything_is_created_with_what_it_needs(
    cloud: Cloud, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, told = run(capsys, "--name", name, "--email", "shop@example.com")
    assert status == 0, told
    assert exists(cloud, name) == [f"{name}-notices", f"{name}-orders", f"{name}-orders-dead"]

    queue = cloud.attributes(queue_url(cloud, f"{name}-orders"))
    assert json.loads(queue["RedrivePolicy"]) == {
        "deadLetterTargetArn": f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}-orders-dead",
        "maxReceiveCount": MAX_RECEIVES,
    }
    assert queue["VisibilityTimeout"] == "30"
    assert queue["SqsManagedSseEnabled"] == "true"
    assert queue["MaximumMessageSize"] == str(64 * 1024)
    assert int(queue["MessageRetentionPeriod"]) == 4 * 24 * 3600

    dead = cloud.attributes(queue_url(cloud, f"{name}-orders-dead"))
    assert int(dead["MessageRetentionPeriod"]) == 14 * 24 * 3600
    assert dead["SqsManagedSseEnabled"] == "true"
    assert json.loads(dead["RedriveAllowPolicy"]) == {
        "redrivePermission": "byQueue",
        "sourceQueueArns": [f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}-orders"],
    }

    arn = f"arn:aws:sns:{REGION}:{ACCOUNT}:{name}-notices"
    topic_attributes = cloud.sns.get_topic_attributes(TopicArn=arn)["Attributes"]
    assert topic_attributes["KmsMasterKeyId"] == "alias/aws/sns"
    assert topic_attributes["DisplayName"] == "Store checkout"
    assert emails(cloud, arn) == ["shop@example.com"]


def test_what_it_prints_is_all_that_the_store_needs(
    cloud: Cloud,
    name: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, output, _ = run(capsys, "--name", name)
    for variable, value in exported(output).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("STORE_DATABASE_URL", NOWHERE)
    settings.cache_clear()
    order_queue().send(["an order"])
    topic().publish([a_notice()])
    assert cloud.bodies(queue_url(cloud, f"{name}-orders")) == ["an order"]


def test_the_second_time_nothing_is_changed(
    name: str, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--name", name, "--email", "shop@example.com")
    _, first, _ = run(capsys, *arguments)
    calls.made.clear()
    status, second, told = run(capsys, *arguments)
    assert (status, second) == (0, first)
    assert told == f"Everything is as it should be in {REGION}.\n"
    assert changing(calls) == []


def test_only_what_differs_is_changed_and_messages_stay(
    cloud: Cloud,
    name: str,
    calls: Calls,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(capsys, "--name", name, "--email", "one@example.com")
    url = queue_url(cloud, f"{name}-orders")
    cloud.sqs.send_message(QueueUrl=url, MessageBody="waiting")
    monkeypatch.setenv("STORE_VISIBILITY_TIMEOUT_SECONDS", "90")
    calls.made.clear()
    emails_wanted = ("--email", "two@example.com", "--email", "one@example.com")
    status, _, told = run(capsys, "--name", name, *emails_wanted)
    assert status == 0
    assert told.splitlines() == [
        f"done: set on queue {name}-orders: VisibilityTimeout 30 → 90",
        "done: subscribe two@example.com, who has to confirm it by a link in an e-mail",
    ]
    assert changing(calls) == ["SetQueueAttributes", "Subscribe"]
    assert cloud.attributes(url)["VisibilityTimeout"] == "90"
    assert cloud.bodies(url) == ["waiting"]


def test_what_was_changed_by_hand_is_put_right(
    cloud: Cloud, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "--name", name)
    url = queue_url(cloud, f"{name}-orders")
    cloud.sqs.set_queue_attributes(
        QueueUrl=url, Attributes={"RedrivePolicy": "", "SqsManagedSseEnabled": "false"}
    )
    arn = f"arn:aws:sns:{REGION}:{ACCOUNT}:{name}-notices"
    cloud.sns.set_topic_attributes(
        TopicArn=arn, AttributeName="DisplayName", AttributeValue="Someone else"
    )
    run(capsys, "--name", name)
    attributes = cloud.attributes(url)
    assert json.loads(attributes["RedrivePolicy"])["maxReceiveCount"] == MAX_RECEIVES
    assert attributes["SqsManagedSseEnabled"] == "true"
    topic_attributes = cloud.sns.get_topic_attributes(TopicArn=arn)["Attributes"]
    assert topic_attributes["DisplayName"] == "Store checkout"


def test_a_policy_in_the_spelling_of_sqs_is_the_same_policy() -> None:
    ours = '{"deadLetterTargetArn": "arn:dead", "maxReceiveCount": 5}'
    theirs = '{"maxReceiveCount":"5","deadLetterTargetArn":"arn:dead"}'
    assert aws_resources.means_the_same(theirs, ours)
    assert not aws_resources.means_the_same(theirs.replace("5", "6"), ours)
    assert not aws_resources.means_the_same(None, ours)
    assert not aws_resources.means_the_same("", ours)


def test_a_key_that_somebody_chose_is_left(
    cloud: Cloud, name: str, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "--name", name)
    for queue in (f"{name}-orders", f"{name}-orders-dead"):
        cloud.sqs.set_queue_attributes(
            QueueUrl=queue_url(cloud, queue),
            Attributes={"KmsMasterKeyId": "alias/ours", "SqsManagedSseEnabled": "false"},
        )
    cloud.sns.set_topic_attributes(
        TopicArn=f"arn:aws:sns:{REGION}:{ACCOUNT}:{name}-notices",
        AttributeName="KmsMasterKeyId",
        AttributeValue="alias/ours",
    )
    calls.made.clear()
    run(capsys, "--name", name)
    assert changing(calls) == []


def test_messages_are_kept_longer_than_orders_wait(
    cloud: Cloud,
    name: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    day = 24 * 3600
    monkeypatch.setenv("STORE_COURIER_TIMEOUT_SECONDS", str(6 * day))
    run(capsys, "--name", name)
    url = queue_url(cloud, f"{name}-orders")
    assert int(cloud.attributes(url)["MessageRetentionPeriod"]) == 12 * day
    monkeypatch.setenv("STORE_COURIER_TIMEOUT_SECONDS", str(14 * day))
    run(capsys, "--name", name)
    assert int(cloud.attributes(url)["MessageRetentionPeriod"]) == 14 * day
    monkeypatch.setenv("STORE_COURIER_TIMEOUT_SECONDS", str(14 * day + 1))
    status, _, told = run(capsys, "--name", name)
    assert status == provision.EXIT_FAILED
    assert told.startswith("STORE_COURIER_TIMEOUT_SECONDS: ")


def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    cloud: Cloud, name: str, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--name", name, "--email", "shop@example.com")
    status, output, told = run(capsys, *arguments, "--dry-run")
    assert (status, output) == (0, "")
    assert told.splitlines() == [
        f"would create queue {name}-orders-dead",
        f"would create queue {name}-orders",
        f"would create topic {name}-notices",
        "would subscribe shop@example.com, who has to confirm it by a link in an e-mail",
    ]
    assert changing(calls) == []
    assert exists(cloud, name) == []
    _, _, done = run(capsys, *arguments)
    assert done.replace("done: ", "would ") == told


@pytest.mark.parametrize("answer", ["", "no\n", "yes\n"])
def test_nothing_is_destroyed_without_its_name(
    cloud: Cloud,
    name: str,
    answer: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(capsys, "--name", name)
    cloud.sqs.send_message(QueueUrl=queue_url(cloud, f"{name}-orders"), MessageBody="waiting")
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    status, _, told = run(capsys, "--name", name, "--destroy")
    assert status == provision.EXIT_NOT_CONFIRMED
    assert f"would delete queue {name}-orders with about 1 messages" in told
    assert f"In account {ACCOUNT}, {REGION}." in told
    assert len(exists(cloud, name)) == 3


@pytest.mark.parametrize("arguments", [(), ("--yes",)])
def test_all_is_destroyed_once_it_is_confirmed(
    cloud: Cloud,
    name: str,
    arguments: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(capsys, "--name", name)
    run(capsys, "--name", f"{name}-kept")
    monkeypatch.setattr("sys.stdin", io.StringIO("" if arguments else f"{name}\n"))
    status, _, told = run(capsys, "--name", name, "--destroy", *arguments)
    assert status == 0, told
    assert all(found.startswith(f"{name}-kept-") for found in exists(cloud, name))
    assert len(exists(cloud, name)) == 3
    assert run(capsys, "--name", name, "--destroy") == (0, "", "There is nothing to delete.\n")


def test_a_failure_is_one_line_and_no_traceback(
    closed_url: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    no_delays: None,
) -> None:
    monkeypatch.setenv("STORE_AWS_ENDPOINT_URL", closed_url)
    status, output, told = run(capsys)
    assert (status, output) == (provision.EXIT_FAILED, "")
    assert told.startswith("AWS: EndpointConnectionError: ")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("STORE_AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    status, _, told = run(capsys)
    assert status == provision.EXIT_FAILED
    assert "set AWS_DEFAULT_REGION" in told


def test_a_name_that_aws_would_refuse_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, said = run(capsys, "--name", "no spaces")
    assert status == 2
    assert "letters, digits" in said


def test_policies_are_printed_for_each_role(
    name: str, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    status, output, _ = run(capsys, "--name", name, "--policies")
    printed: dict[str, Any] = json.loads(output)
    assert status == 0
    assert set(printed) == {"checkout", "dispatcher", "operator", "provisioner"}
    for policy in printed.values():
        assert policy["Version"] == "2012-10-17"
        for statement in policy["Statement"]:
            assert all(name in arn and "*" not in arn for arn in statement["Resource"])
            assert not any("*" in action for action in statement["Action"])
    assert calls.operations() == ["GetCallerIdentity"]


def changing(calls: Calls) -> list[str]:
    return [name for name in calls.operations() if not name.startswith(("Get", "List"))]
