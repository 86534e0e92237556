"""Files of orders in S3: read as a stream, and their rejected lines written beside them."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import boto3
import pytest

from orders.intake import Intake, load_orders
from seed.catalogue import EDUARDO_SANTANA, TEN_X_RULE
from store.errors import SourceUnavailable, UnreadableSource
from tests.aws.cloud import Calls, Cloud, Faults, http

pytestmark = pytest.mark.usefixtures("database", "no_delays")

KEY = "night/o.jsonl"


@dataclass
class Bucket:
    """A bucket of the test's own, with a file of orders."""

    s3: Any
    name: str

    @property
    def source(self) -> str:
        return f"s3://{self.name}/{KEY}"

    def put(self, content: bytes) -> None:
        self.s3.put_object(Bucket=self.name, Key=KEY, Body=content)

    def keys(self) -> list[str]:
        return [found["Key"] for found in self.s3.list_objects_v2(Bucket=self.name)["Contents"]]

    def rejects(self) -> str:
        got = self.s3.get_object(Bucket=self.name, Key=f"{KEY}.rejects.csv")
        rejects: str = got["Body"].read().decode()
        return rejects


@pytest.fixture
def bucket(cloud: Cloud, setting: Callable[[str, object], None]) -> Bucket:
    setting("aws_endpoint_url", cloud.endpoint_url)
    made = Bucket(boto3.client("s3", endpoint_url=cloud.endpoint_url), f"orders-{uuid4().hex}")
    made.s3.create_bucket(
        Bucket=made.name, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
    )
    return made


def lines(*quantities: object) -> bytes:
    order = {"userId": EDUARDO_SANTANA, "bookId": TEN_X_RULE}
    return "".join(
        json.dumps({**order, "orderId": f"o-{number}", "quantity": quantity}) + "\n"
        for number, quantity in enumerate(quantities)
    ).encode()


def counts(intake: Intake) -> tuple[int, int, int]:
    return intake.new, intake.known, intake.rejected


def test_a_file_in_s3_is_taken_and_its_rejected_lines_are_beside_it(bucket: Bucket) -> None:
    bucket.put(lines(1, "æ", 2, 0))
    intake = load_orders.fn(bucket.source)
    assert counts(intake) == (2, 0, 2)
    assert intake.rejects_file == f"{bucket.source}.rejects.csv"
    assert [line.split(",")[:2] for line in bucket.rejects().split("\r\n")] == [
        ["line", "field"],
        ["2", "quantity"],
        ["4", "quantity"],
        [""],
    ]


def test_a_file_without_rejected_lines_has_no_file_of_them(bucket: Bucket) -> None:
    bucket.put(lines(1))
    assert load_orders.fn(bucket.source).rejects_file is None
    assert bucket.keys() == [KEY]


def test_the_rejected_lines_are_never_held_as_a_whole(bucket: Bucket, calls: Calls) -> None:
    bucket.put(lines(0, 1))
    load_orders.fn(bucket.source)
    (body,) = (made["Body"] for _, operation, made in calls.made if operation == "PutObject")
    assert isinstance(body, io.BufferedIOBase)
    assert bucket.rejects().startswith("line,field,reason\r\n1,quantity,")


def test_a_batch_whose_rejected_lines_cannot_be_written_is_loaded_all_the_same(
    bucket: Bucket, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.put(lines(1, 0))
    faults.answer("PutObject", then=http(403, "<Error><Code>AccessDenied</Code></Error>"))
    intake = load_orders.fn(bucket.source)
    assert (counts(intake), intake.rejects_file) == ((1, 0, 1), None)
    assert "AccessDenied" in caplog.text


def test_a_file_that_is_not_there_is_refused_and_one_that_may_come_is_asked_for_again(
    bucket: Bucket, faults: Faults
) -> None:
    with pytest.raises(UnreadableSource, match="NoSuchKey"):
        load_orders.fn(bucket.source)
    bucket.put(lines(1))
    faults.answer("GetObject", then=http(503, "<Error><Code>SlowDown</Code></Error>"))
    with pytest.raises(SourceUnavailable, match="SlowDown"):
        load_orders.fn(bucket.source)
