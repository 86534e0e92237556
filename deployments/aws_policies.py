"""The rights that each role needs on AWS, as IAM policies."""

from typing import Any

from deployments.aws_resources import Resources


def policies(resources: Resources) -> dict[str, dict[str, Any]]:
    """Return the least rights of each role, as IAM policies by role.

    `checkout` are the runs of orders and of recovery, `dispatcher` those of `dispatch_orders`,
    `operator` a person who runs `checkout dead-letters`, `redrive`, `doctor` or `metrics`,
    `provisioner` one who runs `deployments.provision`. A batch call is allowed by its single call's
    action.
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
