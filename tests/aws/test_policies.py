"""Each role's policy against the calls that its code really makes: none missing, none too many."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from console.doctor import CHECKS
from console.main import main as checkout
from deployments import aws_resources, provision
from deployments.aws_policies import policies
from deployments.aws_resources import Resources
from store import aws
from store.partners import order_queue
from store.settings import settings
from tests.aws.cloud import Calls, Cloud
from tests.aws.dispatcher import Dispatcher
from tests.aws.test_provision import ACCOUNT, REGION
from tests.shop import NOWHERE, carry_on, placed

BATCHES = {
    "SendMessageBatch": "SendMessage",
    "DeleteMessageBatch": "DeleteMessage",
    "ChangeMessageVisibilityBatch": "ChangeMessageVisibility",
    "PublishBatch": "Publish",
}
"""A batch call is allowed by the action of its single call; IAM knows no action of its name."""
ALLOWED_TO_EVERYBODY = {"sts:GetCallerIdentity"}
NAME = "policy"
RESOURCES = Resources(NAME, "aws", REGION, ACCOUNT)

Rights = set[tuple[str, str]]


def allowed(role: str) -> Rights:
    """Each action of the role's policy, with each resource that it is allowed on."""
    return {
        (action, arn)
        for statement in policies(RESOURCES)[role]["Statement"]
        for action in statement["Action"]
        for arn in statement["Resource"]
    }


def used(calls: Calls) -> Rights:
    """The rights that the calls needed, and nothing about those that need none."""
    return {
        (action, _resource(service, params))
        for service, operation, params in calls.made
        if (action := f"{service}:{BATCHES.get(operation, operation)}") not in ALLOWED_TO_EVERYBODY
    }


def _resource(service: str, params: Mapping[str, Any]) -> str:
    if service == "sns":
        return str(params.get("TopicArn") or f"arn:aws:sns:{REGION}:{ACCOUNT}:{params.get('Name')}")
    name = params.get("QueueName") or str(params["QueueUrl"]).rsplit("/", 1)[1]
    return f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}"


@pytest.fixture
def provisioned(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STORE_AWS_ENDPOINT_URL", cloud.endpoint_url)
    assert provision.main(["--name", NAME, "--destroy", "--yes"]) == 0
    assert provision.main(["--name", NAME]) == 0
    for line in capsys.readouterr().out.splitlines():
        name, _, value = line.removeprefix("export ").partition("=")
        monkeypatch.setenv(name, value)
    settings.cache_clear()


@pytest.mark.usefixtures("database", "provisioned")
def test_the_checkouts_policy_is_what_it_uses(calls: Calls) -> None:
    placed("order-1", "dispatch_order")
    assert used(calls) == allowed("checkout")


@pytest.mark.usefixtures("database", "provisioned")
def test_the_dispatchers_policy_is_what_it_uses(calls: Calls) -> None:
    placed("order-1", "prepare_order")
    order_queue().send(["poison"])
    calls.made.clear()
    dispatcher = Dispatcher()
    dispatcher.take_in(2)
    dispatcher.look_after()
    order_queue().hand_back([held.received for held in dispatcher.in_hand.values()])
    assert dispatcher.report.decided == dispatcher.report.dead_letters == 1
    assert used(calls) == allowed("dispatcher")
    carry_on(["order-1"], after="find_couriers")


@pytest.mark.usefixtures("provisioned", "database_url")
def test_the_operators_policy_is_what_redrive_doctor_and_metrics_use(
    calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    order_queue().send(["dead"])
    for message in order_queue().receive(limit=10, wait_seconds=20):
        order_queue().dead_letter(message, "why")
    calls.made.clear()
    assert checkout(["dead-letters", "list"]) == 0
    assert "why" in capsys.readouterr().out
    assert checkout(["redrive"]) == 0
    assert capsys.readouterr().out == "Dead letters put into the queue again: 1\n"
    assert checkout(["metrics"]) == 0
    for check in CHECKS:
        if check.name in ("queue", "topic"):
            assert list(check.look())
    assert used(calls) == allowed("operator")


@pytest.fixture
def database_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_DATABASE_URL", NOWHERE)


@pytest.mark.usefixtures("provisioned")
def test_the_provisioners_policy_is_what_it_uses(
    cloud: Cloud, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert provision.main(["--name", NAME, "--destroy", "--yes"]) == 0
    assert provision.main(["--name", NAME, "--dry-run"]) == 0
    assert provision.main(["--name", NAME, "--email", "shop@example.com"]) == 0
    monkeypatch.setenv("STORE_VISIBILITY_TIMEOUT_SECONDS", "77")
    monkeypatch.setattr(aws_resources, "LONGEST_RETENTION_SECONDS", 13 * 24 * 3600)
    cloud.sns.set_topic_attributes(
        TopicArn=RESOURCES.topic_arn, AttributeName="DisplayName", AttributeValue="Someone else"
    )
    assert provision.main(["--name", NAME, "--email", "shop@example.com"]) == 0
    assert used(calls) == allowed("provisioner")


@pytest.mark.parametrize("role", policies(RESOURCES))
def test_every_action_is_one_that_iam_knows(role: str, endpoint_url: str) -> None:
    known = (
        {
            f"{client.meta.service_model.service_name}:{operation}"
            for client in (aws.sqs(endpoint_url), aws.sns(endpoint_url))
            for operation in client.meta.service_model.operation_names
        }
        - {f"sqs:{name}" for name in BATCHES}
        - {"sns:PublishBatch"}
    )
    assert {action for action, _ in allowed(role)} <= known


def test_other_resources_are_named_otherwise() -> None:
    other = replace(RESOURCES, name="other", partition="aws-cn", region="cn-north-1")
    for policy in policies(other).values():
        for statement in policy["Statement"]:
            assert all(
                arn.startswith(("arn:aws-cn:sqs:cn-north-1:", "arn:aws-cn:sns:cn-north-1:"))
                and ":other-" in arn
                for arn in statement["Resource"]
            )
