"""The store's Prefect automations, as code: created, or renewed where they differ, by name.

They make things faster and visible; nothing depends on them. A run without a sign of life is
marked as crashed, and a checkout's run that ended badly starts `recover_orders` at once instead of
within a minute.

    python -m deployments.automations      apply them to the server of PREFECT_API_URL
"""

import argparse
import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect import get_client
from prefect.automations import Automation
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import EventTrigger, Posture
from rich.console import Console

CHECKOUT_FLOWS = ("store-checkout", "batch-checkout")
FLOWS = (*CHECKOUT_FLOWS, "dispatch-orders", "recover-orders", "audit-books")
RECOVERY_DEPLOYMENT = "recover-orders/local"
HEARTBEAT_SECONDS = 30
"""What PREFECT_FLOWS_HEARTBEAT_FREQUENCY is to be for every worker; 30 is the least."""
SILENCE_SECONDS = 4 * HEARTBEAT_SECONDS
"""Three heartbeats may be lost, or late on a busy machine, before a run counts as dead."""
ENDED_BADLY = {f"prefect.flow-run.{state}" for state in ("Failed", "Crashed", "Cancelled")}


def automations(recovery_id: UUID, silence_seconds: int) -> list[Automation]:
    """Return the automations.

    Args:
        recovery_id: The deployment of `recover_orders`.
        silence_seconds: How long a run may be silent; more than three heartbeats.
    """
    of_checkout = {"prefect.resource.role": "flow", "prefect.resource.name": list(CHECKOUT_FLOWS)}
    # The others as well: a dead run of theirs would keep its deployment's only slot from the next.
    of_any = {"prefect.resource.role": "flow", "prefect.resource.name": list(FLOWS)}
    return [
        Automation(
            name="store: a run without a sign of life is marked as crashed",
            description="Its process is gone; recover_orders then lets its order go on.",
            trigger=EventTrigger(
                after={"prefect.flow-run.heartbeat"},
                # Not `prefect.flow-run.*`: the Running of a resume would end the watch for good.
                expect={
                    "prefect.flow-run.heartbeat",
                    # From these on the run has no process, which is no death: it was suspended,
                    # or given back to its work pool.
                    "prefect.flow-run.Suspended",
                    "prefect.flow-run.Resuming",
                    "prefect.flow-run.Completed",
                    *ENDED_BADLY,
                },
                match={"prefect.resource.id": "prefect.flow-run.*"},
                match_related=of_any,
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                threshold=1,
                within=timedelta(seconds=silence_seconds),
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.CRASHED,
                    message=f"no sign of life for {silence_seconds} s",
                )
            ],
        ),
        Automation(
            name="store: recovery starts when a checkout's run has ended badly",
            description="Hooks do most of it; this is for what they miss, before the next minute.",
            trigger=EventTrigger(
                expect=ENDED_BADLY,
                match={"prefect.resource.id": "prefect.flow-run.*"},
                match_related=of_checkout,
                posture=Posture.Reactive,
                threshold=1,
            ),
            actions=[
                RunDeployment(
                    source="selected",
                    deployment_id=recovery_id,
                    parameters=None,
                    # The hooks of the run first; recovery leaves an order to them that long.
                    schedule_after=timedelta(seconds=5),
                )
            ],
        ),
    ]


async def apply(silence_seconds: int = SILENCE_SECONDS) -> list[str]:
    """Create the automations that are missing, renew those of the same name that differ.

    One that is as it should be is left alone: renewing it would give its trigger a new id, and
    Prefect would forget the runs that it is watching.

    Returns:
        Their names.

    Raises:
        prefect.exceptions.ObjectNotFound: `recover_orders` is not deployed yet.
    """
    async with get_client() as client:
        recovery = await client.read_deployment_by_name(RECOVERY_DEPLOYMENT)
    wanted = automations(recovery.id, silence_seconds)
    for automation in wanted:
        # Names are no keys for Prefect: creating one twice makes two.
        try:
            found = await Automation.aread(name=automation.name)
        except ValueError:
            await automation.acreate()
            continue
        if _definition(found) != _definition(automation):
            automation.id = found.id
            await automation.aupdate()
    return [automation.name for automation in wanted]


def _definition(automation: Automation) -> dict[str, Any]:
    """Return what an automation does, without the ids that the server gives to it."""
    definition = automation.model_dump(mode="json", exclude={"id": True, "trigger": {"id"}})
    definition["trigger"]["expect"].sort()  # sets, as JSON
    definition["trigger"]["after"].sort()
    return definition


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m deployments.automations", description=__doc__)
    parser.add_argument(
        "--silence-seconds",
        type=int,
        default=SILENCE_SECONDS,
        help="how long a run may be silent before it counts as dead (default %(default)s)",
    )
    options = parser.parse_args(arguments)
    if options.silence_seconds <= HEARTBEAT_SECONDS:
        parser.error(f"--silence-seconds must be more than a heartbeat ({HEARTBEAT_SECONDS} s)")
    for name in asyncio.run(apply(options.silence_seconds)):
        Console().print(f"applied: {name}")


if __name__ == "__main__":
    main()
