"""The AWS resources of the store, from queue to e-mail subscription."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from store.queue import MAX_RECEIVES
from store.settings import URL_OR_EMPTY, Settings

if TYPE_CHECKING:
    from mypy_boto3_sns.client import SNSClient
    from mypy_boto3_sqs.client import SQSClient

LONGEST_RETENTION_SECONDS = 14 * 24 * 3600
"""The longest that SQS keeps a message."""
SHORTEST_RETENTION_SECONDS = 4 * 24 * 3600
"""A weekend without a dispatcher, and the day to notice it."""
LARGEST_MESSAGE_BYTES = 64 * 1024
"""Ours have some hundred bytes. A dead letter takes its reason along, for which there must be
room below SQS's own limit whatever a stranger has put into the queue."""
DISPLAY_NAME = "Store checkout"
"""The sender's name in the subscribers' e-mail."""
TOPIC_KEY = "alias/aws/sns"
"""AWS's own key: it needs no rights of the publisher's, unlike a key of the customer's."""


class ProvisionSettings(BaseSettings):
    """The settings on which the resources depend, without a database's."""

    model_config = SettingsConfigDict(env_prefix="STORE_", extra="ignore")

    aws_endpoint_url: str | None = Field(default=None, pattern=URL_OR_EMPTY)
    visibility_timeout_seconds: int = Field(
        default=Settings.model_fields["visibility_timeout_seconds"].default, ge=1, le=12 * 3600
    )
    courier_timeout_seconds: int = Field(
        default=Settings.model_fields["courier_timeout_seconds"].default,
        ge=1,
        # A message that SQS drops while its order waits would only come back by recovery.
        le=LONGEST_RETENTION_SECONDS,
    )


@dataclass(frozen=True)
class Resources:
    """The names of the store's resources in one account and region."""

    name: str
    partition: str
    region: str
    account: str

    @property
    def queue(self) -> str:
        """Name of the order queue."""
        return f"{self.name}-orders"

    @property
    def dead_letters(self) -> str:
        """Name of the dead-letter queue."""
        return f"{self.name}-orders-dead"

    @property
    def queue_arn(self) -> str:
        """ARN of the order queue."""
        return f"arn:{self.partition}:sqs:{self.region}:{self.account}:{self.queue}"

    @property
    def dead_letters_arn(self) -> str:
        """ARN of the dead-letter queue."""
        return f"arn:{self.partition}:sqs:{self.region}:{self.account}:{self.dead_letters}"

    @property
    def topic_arn(self) -> str:
        """ARN of the topic."""
        return f"arn:{self.partition}:sns:{self.region}:{self.account}:{self.name}-notices"


@dataclass(frozen=True)
class Change:
    """A difference from the wanted resources, with its correction."""

    what: str
    make: Callable[[], object]


@dataclass(frozen=True)
class Provisioner:
    """Compares the present resources with the wanted ones."""

    resources: Resources
    sqs: SQSClient
    sns: SNSClient
    settings: ProvisionSettings

    def changes(self, emails: Sequence[str]) -> Iterator[Change]:
        """Yield the needed changes in their order, only reading."""
        yield from self._queue_changes(self.resources.dead_letters, self._dead_letter_attributes())
        yield from self._queue_changes(self.resources.queue, self._queue_attributes())
        yield from self._topic_changes(emails)

    def _queue_attributes(self) -> dict[str, str]:
        retention = min(
            LONGEST_RETENTION_SECONDS,
            max(SHORTEST_RETENTION_SECONDS, 2 * self.settings.courier_timeout_seconds),
        )
        return {
            "VisibilityTimeout": str(self.settings.visibility_timeout_seconds),
            "MessageRetentionPeriod": str(retention),
            "MaximumMessageSize": str(LARGEST_MESSAGE_BYTES),
            "SqsManagedSseEnabled": "true",
            "RedrivePolicy": json.dumps(
                {
                    "deadLetterTargetArn": self.resources.dead_letters_arn,
                    "maxReceiveCount": MAX_RECEIVES,
                }
            ),
        }

    def _dead_letter_attributes(self) -> dict[str, str]:
        return {
            # A message keeps its age when SQS moves it, so this must be longer than the queue's.
            "MessageRetentionPeriod": str(LONGEST_RETENTION_SECONDS),
            "SqsManagedSseEnabled": "true",
            "RedriveAllowPolicy": json.dumps(
                {"redrivePermission": "byQueue", "sourceQueueArns": [self.resources.queue_arn]}
            ),
        }

    def _queue_changes(self, name: str, wanted: dict[str, str]) -> Iterator[Change]:
        sqs: Any = self.sqs  # its attributes' names are a Literal, ours come from a dict
        url = self.queue_url(name)
        if url is None:
            yield Change(
                f"create queue {name}", partial(sqs.create_queue, QueueName=name, Attributes=wanted)
            )
            return
        present = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        if "KmsMasterKeyId" in present:
            # A key that somebody chose is as good as ours, and SQS allows one kind at a time.
            del wanted["SqsManagedSseEnabled"]
        different = {
            attribute: value
            for attribute, value in wanted.items()
            if not means_the_same(present.get(attribute), value)
        }
        if different:
            told = ", ".join(
                f"{attribute} {present.get(attribute, 'unset')} → {value}"
                for attribute, value in different.items()
            )
            yield Change(
                f"set on queue {name}: {told}",
                partial(sqs.set_queue_attributes, QueueUrl=url, Attributes=different),
            )

    def _topic_changes(self, emails: Sequence[str]) -> Iterator[Change]:
        arn = self.resources.topic_arn
        present = self.topic_attributes()
        wanted = {"DisplayName": DISPLAY_NAME, "KmsMasterKeyId": TOPIC_KEY}
        if present is None:
            name = arn.rsplit(":", 1)[1]
            yield Change(
                f"create topic {name}", partial(self.sns.create_topic, Name=name, Attributes=wanted)
            )
        else:
            if present.get("KmsMasterKeyId"):
                del wanted["KmsMasterKeyId"]
            for attribute, value in wanted.items():
                if present.get(attribute) != value:
                    yield Change(
                        f"set on topic {arn}: {attribute} → {value}",
                        partial(
                            self.sns.set_topic_attributes,
                            TopicArn=arn,
                            AttributeName=attribute,
                            AttributeValue=value,
                        ),
                    )
        subscribed = {} if present is None else self._email_subscriptions()
        for email in dict.fromkeys(emails):
            if email not in subscribed:
                yield Change(
                    f"subscribe {email}, who has to confirm it by a link in an e-mail",
                    partial(self.sns.subscribe, TopicArn=arn, Protocol="email", Endpoint=email),
                )

    def _email_subscriptions(self) -> dict[str, str]:
        """Return the topic's e-mail addresses, each with its subscription's ARN or state."""
        pages = self.sns.get_paginator("list_subscriptions_by_topic")
        return {
            subscription["Endpoint"]: subscription["SubscriptionArn"]
            for page in pages.paginate(TopicArn=self.resources.topic_arn)
            for subscription in page["Subscriptions"]
            if subscription["Protocol"] == "email"
        }

    def queue_url(self, name: str) -> str | None:
        """Return the URL of the queue, or nothing if there is none."""
        try:
            return self.sqs.get_queue_url(QueueName=name)["QueueUrl"]
        except self.sqs.exceptions.QueueDoesNotExist:
            return None

    def topic_attributes(self) -> Mapping[str, str] | None:
        """Return the topic's attributes, or nothing if there is no topic."""
        try:
            return self.sns.get_topic_attributes(TopicArn=self.resources.topic_arn)["Attributes"]
        except self.sns.exceptions.NotFoundException:
            return None

    def exports(self) -> list[str]:
        """Return the settings for these resources as lines for a shell."""
        exported = {
            "STORE_QUEUE": "sqs",
            "STORE_QUEUE_URL": self.queue_url(self.resources.queue) or "",
            "STORE_DEAD_LETTER_URL": self.queue_url(self.resources.dead_letters) or "",
            "STORE_TOPIC": "sns",
            "STORE_TOPIC_ARN": self.resources.topic_arn,
            "AWS_DEFAULT_REGION": self.resources.region,
        }
        if self.settings.aws_endpoint_url:
            exported["STORE_AWS_ENDPOINT_URL"] = self.settings.aws_endpoint_url
        return [f"export {name}={shlex.quote(value)}" for name, value in exported.items()]

    def deletions(self) -> Iterator[Change]:
        """Yield what would be deleted, with its content, only reading."""
        for name in (self.resources.queue, self.resources.dead_letters):
            url = self.queue_url(name)
            if url is not None:
                held = self.sqs.get_queue_attributes(
                    QueueUrl=url,
                    AttributeNames=[
                        "ApproximateNumberOfMessages",
                        "ApproximateNumberOfMessagesNotVisible",
                    ],
                )["Attributes"]
                yield Change(
                    f"delete queue {name} with about {sum(map(int, held.values()))} messages",
                    partial(self.sqs.delete_queue, QueueUrl=url),
                )
        if self.topic_attributes() is not None:
            yield Change(
                f"delete topic {self.resources.topic_arn} with its subscriptions",
                partial(self.sns.delete_topic, TopicArn=self.resources.topic_arn),
            )


def means_the_same(present: str | None, wanted: str) -> bool:
    """Return whether a queue's attribute is as wanted.

    Nothing and "" are attributes that are not set.
    """
    if not present or not wanted.startswith("{"):
        return present == wanted
    # SQS gives a policy back in its own spelling, with numbers as strings in some of them.
    return _as_strings(json.loads(present)) == _as_strings(json.loads(wanted))


def _as_strings(policy: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, list) else str(value) for name, value in policy.items()
    }
