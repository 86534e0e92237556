"""Create or update what the store needs on AWS: queue, dead letters, topic, e-mail subscription.

    python -m deployments.provision [--name store] [--email ADDRESS …] [--dry-run]
    python -m deployments.provision --destroy [--yes]
    python -m deployments.provision --policies

Creating again changes only what differs. The settings to export go to standard output and
everything else to standard error, so `python -m deployments.provision > aws.env` is usable as it
is. Region and credentials come from boto3's own chain.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from store import aws
from store.queue import MAX_RECEIVES
from store.settings import URL_OR_EMPTY, Settings
from store.wrong_input import described

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

EXIT_FAILED = 1
EXIT_NOT_CONFIRMED = 3


class ProvisionSettings(BaseSettings):
    """The store's settings that its resources depend on; no database is needed here."""

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
    """Something that is not as it should be, and what makes it so."""

    what: str
    make: Callable[[], object]


@dataclass(frozen=True)
class Provisioner:
    """Compares what there is with what there should be, and makes it so."""

    resources: Resources
    sqs: SQSClient
    sns: SNSClient
    settings: ProvisionSettings

    def changes(self, emails: Sequence[str]) -> Iterator[Change]:
        """Yield what is to be changed, in the order in which it must be; only reads."""
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
                {
                    "redrivePermission": "byQueue",
                    "sourceQueueArns": [self.resources.queue_arn],
                }
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
                f"create topic {name}",
                partial(self.sns.create_topic, Name=name, Attributes=wanted),
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
        """Return the settings by which the store uses these resources, as lines for a shell."""
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
        """Yield what there is to be deleted, each with what it holds; only reads."""
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
    """Say whether a queue's attribute is as wanted; nothing and "" are attributes not set."""
    if not present or not wanted.startswith("{"):
        return present == wanted
    # SQS gives a policy back in its own spelling, with numbers as strings in some of them.
    return _as_strings(json.loads(present)) == _as_strings(json.loads(wanted))


def _as_strings(policy: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, list) else str(value) for name, value in policy.items()
    }


def policies(resources: Resources) -> dict[str, dict[str, Any]]:
    """Return the least that each role must be allowed, as an IAM policy by the role's name.

    `checkout` are the runs of orders and of recovery, `dispatcher` those of `dispatch_orders`,
    `operator` a person who runs `checkout dead-letters`, `redrive`, `doctor` or `metrics`,
    `provisioner` one who runs this module. A batch call is allowed by its single call's action.
    `sts:GetCallerIdentity` is missing since nobody needs a right for it, and so is KMS: AWS's own
    keys, which this module chooses, let everybody through who may use the topic or queue. A key of
    your own asks for `kms:GenerateDataKey` and `kms:Decrypt` as well.
    """
    queue, dead, topic = resources.queue_arn, resources.dead_letters_arn, resources.topic_arn
    return {
        "checkout": _policy(
            ("AskForACourier", ["sqs:SendMessage"], [queue]),
            ("PublishNotices", ["sns:Publish"], [topic]),
        ),
        "dispatcher": _policy(
            (
                "WorkOffTheQueue",
                [
                    "sqs:ReceiveMessage",
                    "sqs:DeleteMessage",
                    "sqs:ChangeMessageVisibility",
                    "sqs:SendMessage",
                ],
                [queue],
            ),
            ("PutDeadLettersAside", ["sqs:SendMessage"], [dead]),
        ),
        "operator": _policy(
            (
                "TakeDeadLetters",
                ["sqs:ReceiveMessage", "sqs:ChangeMessageVisibility", "sqs:DeleteMessage"],
                [dead],
            ),
            ("SendThemAgain", ["sqs:SendMessage"], [queue]),
            ("LookAtTheQueues", ["sqs:GetQueueAttributes"], [queue, dead]),
            ("LookAtTheTopic", ["sns:ListSubscriptionsByTopic"], [topic]),
        ),
        "provisioner": _policy(
            (
                "KeepTheQueues",
                [
                    "sqs:CreateQueue",
                    "sqs:GetQueueUrl",
                    "sqs:GetQueueAttributes",
                    "sqs:SetQueueAttributes",
                    "sqs:DeleteQueue",
                ],
                [queue, dead],
            ),
            (
                "KeepTheTopic",
                [
                    "sns:CreateTopic",
                    "sns:GetTopicAttributes",
                    "sns:SetTopicAttributes",
                    "sns:ListSubscriptionsByTopic",
                    "sns:Subscribe",
                    "sns:DeleteTopic",
                ],
                [topic],
            ),
        ),
    }


def _policy(*statements: tuple[str, list[str], list[str]]) -> dict[str, Any]:
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": arns}
            for sid, actions, arns in statements
        ],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0 done, 1 failed, 3 not confirmed."""
    parser = argparse.ArgumentParser(
        prog="python -m deployments.provision", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--name", default="store", type=_name, help="begins each resource's name")
    parser.add_argument(
        "--email", action="append", default=[], help="who gets the notices; may be given again"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--dry-run", action="store_true", help="only say what would be changed")
    mode.add_argument("--destroy", action="store_true", help="delete everything, after asking")
    mode.add_argument(
        "--policies", action="store_true", help="print the IAM policy of each role, as JSON"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask before destroying")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except aws.FAILURES as error:
        _say(f"AWS: {aws.describe(error)}")
    except ValidationError as error:
        for line in described(error):
            _say(line)
    return EXIT_FAILED


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,60}", text):
        raise argparse.ArgumentTypeError("up to 60 letters, digits, dashes and underscores")
    return text


def _run(options: argparse.Namespace) -> int:
    chosen = ProvisionSettings()
    sqs, sns = aws.sqs(chosen.aws_endpoint_url), aws.sns(chosen.aws_endpoint_url)
    resources = Resources(
        name=options.name,
        partition=sqs.meta.partition,
        region=sqs.meta.region_name,
        account=aws.sts(chosen.aws_endpoint_url).get_caller_identity()["Account"],
    )
    provisioner = Provisioner(resources, sqs, sns, chosen)
    if options.policies:
        _print(json.dumps(policies(resources), indent=2))
        return 0
    if options.destroy:
        return _destroy(provisioner, confirmed=options.yes)
    changes = list(provisioner.changes(options.email))
    for change in changes:
        if options.dry_run:
            _say(f"would {change.what}")
        else:
            change.make()
            _say(f"done: {change.what}")
    if not changes:
        _say(f"Everything is as it should be in {resources.region}.")
    if not options.dry_run:
        for line in provisioner.exports():
            _print(line)
    return 0


def _destroy(provisioner: Provisioner, *, confirmed: bool) -> int:
    deletions = list(provisioner.deletions())
    if not deletions:
        _say("There is nothing to delete.")
        return 0
    for deletion in deletions:
        _say(f"would {deletion.what}")
    if not confirmed:
        resources = provisioner.resources
        _say(
            f"In account {resources.account}, {resources.region}. Type “{resources.name}” to go on:"
        )
        if sys.stdin.readline().strip() != resources.name:
            _say("Nothing was deleted.")
            return EXIT_NOT_CONFIRMED
    for deletion in deletions:
        deletion.make()
        _say(f"done: {deletion.what}")
    return 0


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
