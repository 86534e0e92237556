"""What the doctor says about queue and topic on AWS."""

import json
from collections.abc import Callable

import pytest

from console.diagnosis import Diagnosis, Verdict
from console.doctor import CHECKS
from store.partners import order_queue
from tests.aws.cloud import Cloud
from tests.shop import NOWHERE


def looked(name: str) -> list[Diagnosis]:
    return list(next(check for check in CHECKS if check.name == name).look())


@pytest.fixture
def chosen(
    use_aws: Callable[[], dict[str, str]], setting: Callable[[str, object], None]
) -> dict[str, str]:
    chosen = use_aws()
    setting("database_url", NOWHERE)
    return chosen


def test_a_queue_and_a_topic_that_are_as_they_should_be_are_well(chosen: dict[str, str]) -> None:
    assert [d.verdict for d in looked("queue")] == [Verdict.OK]
    assert [d.verdict for d in looked("topic")] == [Verdict.OK]


def test_dead_letters_on_sqs_are_counted(chosen: dict[str, str]) -> None:
    order_queue().send(["bad"])
    [message] = order_queue().receive(limit=1, wait_seconds=20)
    order_queue().dead_letter(message, "unreadable")
    assert "1 dead letters" in looked("queue")[1].says


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({"MessageRetentionPeriod": "3600"}, "drops messages after 3600 s"),
        ({"RedrivePolicy": ""}, "delivered for ever"),
    ],
)
def test_a_queue_that_loses_orders_or_never_gives_up_is_to_be_mended(
    chosen: dict[str, str], cloud: Cloud, attributes: dict[str, str], says: str
) -> None:
    cloud.sqs.set_queue_attributes(QueueUrl=chosen["STORE_QUEUE_URL"], Attributes=attributes)
    [_, diagnosis] = looked("queue")
    assert (diagnosis.verdict, says in diagnosis.says) == (Verdict.MEND, True)
    assert "deployments.provision" in diagnosis.remedy


def test_a_queue_that_gives_up_too_soon_is_a_warning(chosen: dict[str, str], cloud: Cloud) -> None:
    url = chosen["STORE_QUEUE_URL"]
    found = cloud.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["RedrivePolicy"])
    policy = json.loads(found["Attributes"]["RedrivePolicy"]) | {"maxReceiveCount": 1}
    cloud.sqs.set_queue_attributes(QueueUrl=url, Attributes={"RedrivePolicy": json.dumps(policy)})
    assert looked("queue")[1].verdict == Verdict.WARNING


def test_a_topic_without_a_subscriber_is_to_be_mended(
    chosen: dict[str, str], cloud: Cloud, setting: Callable[[str, object], None]
) -> None:
    arn = cloud.sns.create_topic(Name="nobody-listens")["TopicArn"]
    setting("topic_arn", arn)
    [diagnosis] = looked("topic")
    assert (diagnosis.verdict, "no confirmed subscriber" in diagnosis.says) == (Verdict.MEND, True)
