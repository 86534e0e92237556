"""What every topic keeps to, the same tests for the table and for SNS; then what is SNS's own."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from sqlmodel import select

from store.database import reading
from store.models import Notification
from store.notifications import Notice, Topic
from store.sns import SUBJECT_LENGTH, SnsTopic, subject_line
from store.table_topic import TableTopic
from tests.aws.cloud import Calls, Cloud


@dataclass
class UnderTest:
    """A topic, and what a reader who knows the keys has got by it: order id and data by key."""

    topic: Topic
    read: Callable[[], dict[str, tuple[str, dict[str, Any]]]]


@pytest.fixture(params=["table", "sns"])
def under_test(request: pytest.FixtureRequest, database: str) -> UnderTest:
    if request.param == "table":
        return UnderTest(TableTopic(), _read_table)
    cloud: Cloud = request.getfixturevalue("cloud")
    arn, url = cloud.topic()
    return UnderTest(SnsTopic(arn, cloud.endpoint_url), lambda: _read_sns(cloud.published(url)))


def _read_table() -> dict[str, tuple[str, dict[str, Any]]]:
    with reading() as session:
        return {n.key: (n.order_id, n.data) for n in session.exec(select(Notification))}


def _read_sns(published: list[dict[str, Any]]) -> dict[str, tuple[str, dict[str, Any]]]:
    found = {}
    for notice in published:
        data = json.loads(notice["Message"])
        order_id = data.pop("orderId")
        found[data.pop("key")] = (order_id, data)
    return found


def a_notice(number: int = 1, **changed: Any) -> Notice:
    fields: dict[str, Any] = {
        "key": f"order-{number:02}:1:dispatched",
        "order_id": f"order-{number:02}",
        "subject": f"Order order-{number:02} is on its way",
        "body": f"Order order-{number:02} was handed over.\n\n3 of “Café Ünion”",
        "data": {"event": "dispatched", "copies": number},
    }
    return Notice(**{**fields, **changed})


def test_every_notice_arrives_with_its_data(under_test: UnderTest) -> None:
    notices = [a_notice(number) for number in range(25)]
    under_test.topic.publish(notices)
    assert under_test.read() == {n.key: (n.order_id, n.data) for n in notices}


def test_a_notice_published_twice_is_one_to_a_reader_who_knows_its_key(
    under_test: UnderTest,
) -> None:
    under_test.topic.publish([a_notice(1)])
    under_test.topic.publish([a_notice(1), a_notice(2)])
    assert sorted(under_test.read()) == [a_notice(1).key, a_notice(2).key]


def test_no_notices_are_no_error(under_test: UnderTest) -> None:
    under_test.topic.publish([])
    assert under_test.read() == {}


def test_people_get_the_text_and_programs_the_data(cloud: Cloud, calls: Calls) -> None:
    arn, _ = cloud.topic()
    notice = a_notice()
    SnsTopic(arn, cloud.endpoint_url).publish([notice])
    ((_, operation, params),) = calls.made
    (entry,) = params["PublishBatchRequestEntries"]
    versions = json.loads(entry["Message"])
    assert (operation, params["TopicArn"], entry["MessageStructure"]) == (
        "PublishBatch",
        arn,
        "json",
    )
    assert versions["email"] == notice.body
    assert versions["sms"] == entry["Subject"] == notice.subject
    assert json.loads(versions["default"]) == {
        "event": "dispatched",
        "copies": 1,
        "orderId": "order-01",
        "key": "order-01:1:dispatched",
    }


def test_the_order_the_key_and_the_event_are_attributes(cloud: Cloud) -> None:
    arn, url = cloud.topic()
    topic = SnsTopic(arn, cloud.endpoint_url)
    topic.publish([a_notice(1), a_notice(2, data={})])
    published = {n["MessageAttributes"]["orderId"]["Value"]: n for n in cloud.published(url)}
    assert {
        name: value["Value"] for name, value in published["order-01"]["MessageAttributes"].items()
    } == {"orderId": "order-01", "key": "order-01:1:dispatched", "event": "dispatched"}
    assert set(published["order-02"]["MessageAttributes"]) == {"orderId", "key"}
    assert published["order-01"]["Subject"] == "Order order-01 is on its way"


@pytest.mark.parametrize("fifo", [False, True])
def test_a_notice_about_no_order_has_no_order_among_its_attributes(
    cloud: Cloud, fifo: bool
) -> None:
    arn, url = cloud.topic(fifo=fifo)
    SnsTopic(arn, cloud.endpoint_url).publish([replace(a_notice(1, data={}), order_id="")])
    assert [set(n["MessageAttributes"]) for n in cloud.published(url)] == [{"key"}]


def test_a_fifo_topic_tells_a_repetition_by_itself(cloud: Cloud) -> None:
    arn, url = cloud.topic(fifo=True)
    topic = SnsTopic(arn, cloud.endpoint_url)
    long_key = f"{'o' * 64}:1:{'e' * 90}"
    topic.publish([a_notice(1), a_notice(2, key=long_key)])
    topic.publish([a_notice(1), a_notice(2, key=long_key)])
    keys = [json.loads(notice["Message"])["key"] for notice in cloud.published(url)]
    assert sorted(keys) == sorted([a_notice(1).key, long_key])


def test_a_batch_is_no_larger_than_sns_takes(cloud: Cloud, calls: Calls) -> None:
    arn, url = cloud.topic()
    notices = [a_notice(number, body="x" * 60_000) for number in range(10)]
    SnsTopic(arn, cloud.endpoint_url).publish(notices)
    sizes = [
        sum(len(entry["Message"]) for entry in params["PublishBatchRequestEntries"])
        for _, _, params in calls.made
    ]
    assert len(sizes) == 3
    assert max(sizes) <= 256 * 1024
    assert len(cloud.published(url)) == 10


@pytest.mark.parametrize(
    ("subject", "line"),
    [
        ("Order 1 is on its way", "Order 1 is on its way"),
        ("Café “Ünion”:\n 3 copies", "Cafe ?Union?: 3 copies"),
        ("\t  tab\x00bed\r\n", "tab bed"),
        ("", "Notice"),
        ("\n", "Notice"),
        ("x" * 500, "x" * SUBJECT_LENGTH),
    ],
)
def test_a_subject_is_one_line_of_ascii(subject: str, line: str) -> None:
    assert subject_line(subject) == line
