"""Archives in S3: whole under their names, read back from there, never replaced."""

import errno
import shutil
from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

import boto3
import pytest

from orders.archive import archive_orders
from orders.archive_check import archives_to_verify, verify
from store.archive_files import archives, read_orders
from store.database import reading
from store.errors import ArchiveRefused, ArchiveUnavailable
from tests.aws.cloud import Cloud, Faults, http
from tests.shop import LONG_AGO, end_at, end_run, place, status

pytestmark = pytest.mark.usefixtures("database", "no_delays")

YEAR = timedelta(days=365)


def disk_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_orders_are_archived_in_a_bucket_and_read_from_there(
    cloud: Cloud,
    faults: Faults,
    setting: Callable[[str, object], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setting("aws_endpoint_url", cloud.endpoint_url)
    s3 = boto3.client("s3", endpoint_url=cloud.endpoint_url)
    bucket = f"archive-{uuid4().hex}"
    place("o-1")
    end_run("o-1")
    end_at(LONG_AGO, "o-1")
    with pytest.raises(ArchiveRefused, match="NoSuchBucket"):
        list(archive_orders(f"s3://{bucket}/orders/", YEAR))
    s3.create_bucket(
        Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
    )
    faults.answer("PutObject", *[http(503, "<Error><Code>SlowDown</Code></Error>")] * 3)
    with pytest.raises(ArchiveUnavailable, match="SlowDown"):
        list(archive_orders(f"s3://{bucket}/orders/", YEAR))
    assert status("o-1") == "rejected"
    (done,) = archive_orders(f"s3://{bucket}/orders/", YEAR)
    key = "orders/orders-2024-05.jsonl.gz"
    assert done.location == f"s3://{bucket}/{key}"
    assert [found["Key"] for found in s3.list_objects_v2(Bucket=bucket)["Contents"]] == [key]
    with reading() as session:
        (archive,) = archives(session)
        assert [each["order"]["id"] for each in read_orders(session, archive)] == ["o-1"]
    assert [verify(*pair).problem for pair in archives_to_verify([done.location])] == [""]
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", disk_full)
        assert "cannot be copied here: No space left" in verify(done, done.location).problem
    s3.put_object(Bucket=bucket, Key=key, Body=b"something else")
    assert "was changed since" in verify(done, done.location).problem
    s3.put_object(Bucket=bucket, Key="orders/orders-2024-05-2.jsonl.gz", Body=b"another shop's")
    place("o-2")
    end_run("o-2")
    end_at(LONG_AGO, "o-2")
    with pytest.raises(ArchiveRefused, match="is there already"):
        list(archive_orders(f"s3://{bucket}/orders", YEAR))
