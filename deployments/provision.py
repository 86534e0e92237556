"""Creation, update and deletion of the store's AWS resources.

Creating again changes only what differs. The settings to export go to standard output and
everything else to standard error, so `python -m deployments.provision > aws.env` is usable as it
is. Region and credentials come from boto3's own chain.
"""

import json
import re
import sys
from typing import Annotated, Any

from cyclopts import Group, Parameter
from cyclopts.validators import mutually_exclusive

from deployments.aws_policies import policies as policies_of
from deployments.aws_resources import Provisioner, ProvisionSettings, Resources
from store import aws
from terminal.command_line import Flag, command
from terminal.output import complain

EXIT_FAILED = 1
EXIT_NOT_CONFIRMED = 3
OneOf = Parameter(group=Group("One of", validator=mutually_exclusive))


def _is_name(_: Any, name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,60}", name):
        raise ValueError("up to 60 letters, digits, dashes and underscores")


@command("python -m deployments.provision", __doc__)
def main(
    *,
    name: Annotated[str, Parameter(validator=_is_name)] = "store",
    email: Annotated[list[str] | None, Parameter(negative="")] = None,
    dry_run: Annotated[Flag, OneOf] = False,
    destroy: Annotated[Flag, OneOf] = False,
    policies: Annotated[Flag, OneOf] = False,
    yes: Flag = False,
) -> int:
    """Carry out the command and return its exit status.

    The status is 0 done, 1 failed, 3 not confirmed.

    Args:
        name: Begins each resource's name.
        email: Who gets the notices; may be given again.
        dry_run: Only print what would be changed.
        destroy: Delete everything, after asking.
        policies: Print the IAM policy of each role, as JSON.
        yes: Do not ask before destroying.
    """
    try:
        chosen = ProvisionSettings()
        sqs, sns = aws.sqs(chosen.aws_endpoint_url), aws.sns(chosen.aws_endpoint_url)
        resources = Resources(
            name=name,
            partition=sqs.meta.partition,
            region=sqs.meta.region_name,
            account=aws.sts(chosen.aws_endpoint_url).get_caller_identity()["Account"],
        )
        provisioner = Provisioner(resources, sqs, sns, chosen)
        if policies:
            _print(json.dumps(policies_of(resources), indent=2))
            return 0
        if destroy:
            return _destroy(provisioner, confirmed=yes)
        _create(provisioner, email or [], dry_run=dry_run)
    except aws.FAILURES as error:
        return complain(f"AWS: {aws.describe(error)}", EXIT_FAILED)
    return 0


def _create(provisioner: Provisioner, emails: list[str], *, dry_run: bool) -> None:
    changes = list(provisioner.changes(emails))
    for change in changes:
        if dry_run:
            _say(f"would {change.what}")
        else:
            change.make()
            _say(f"done: {change.what}")
    if not changes:
        _say(f"Everything is as it should be in {provisioner.resources.region}.")
    if not dry_run:
        for line in provisioner.exports():
            _print(line)


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
