"""The store's Prefect automation, and its recovery's first start.

A run without a heartbeat is marked as crashed; nothing depends on it, but its order goes on sooner.
The automation is created, or updated where it differs, by name.

    python -m deployments.automations      apply them to the server of PREFECT_API_URL

`recover_orders` is started unless a run of it is scheduled soon or its deployment is off; it has
the dispatcher started.

How long a run may be silent is counted in the heartbeats of the environment this is called in, so
call it with the PREFECT_FLOWS_HEARTBEAT_FREQUENCY that every run has. Runs whose heartbeats are
rarer than that would be marked as crashed while they are well. So are those of which the server has
heard nothing since it was away itself for as long: they are started again, and lose nothing.
"""

import sys
from datetime import timedelta
from typing import Any

import httpx
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import get_current_settings

from flows.runs import lost_runs, stand_by
from terminal.command_line import WRONG_USAGE, command
from terminal.numbers import WholeNumber
from terminal.output import complain, terminal

FLOWS = (*lost_runs.FLOWS, *stand_by.FLOWS, "archive-orders", "audit-books", "sales-report")
RECOVERY_DEPLOYMENT = "recover-orders/local"
DISPATCH_DEPLOYMENT = "dispatch-orders/local"
HEARTBEAT_SECONDS = 30
"""What PREFECT_FLOWS_HEARTBEAT_FREQUENCY is to be for every run; 30 is the least."""
SILENT_HEARTBEATS = 4
"""Three heartbeats may be lost, or late on a busy machine, before a run counts as dead."""
SILENCE_SECONDS = SILENT_HEARTBEATS * HEARTBEAT_SECONDS
ENDED_BADLY = {f"prefect.flow-run.{state}" for state in ("Failed", "Crashed", "Cancelled")}
OUTDATED = (
    # It would start a run for each, which waits for its slot.
    "store: recovery starts when a checkout's run has ended badly",
    "store: a run without a sign of life is marked as crashed",
)
"""Automations of earlier versions."""
OUTDATED_SCHEDULES = {
    RECOVERY_DEPLOYMENT: "every-minute",
    DISPATCH_DEPLOYMENT: "every-five-minutes",
}
"""Schedules of earlier versions. `prefect deploy` keeps a schedule whose slug is not in its file,
and `replaces` is refused when the file is applied again (Prefect 3.9.1)."""


def automations(silence_seconds: int) -> list[AutomationCore]:
    """Return the automations.

    Args:
        silence_seconds: How long a run may be silent; more than three heartbeats.
    """
    # The others as well: a dead run of theirs would keep its deployment's only slot from the next.
    of_any = {"prefect.resource.role": "flow", "prefect.resource.name": list(FLOWS)}
    return [
        AutomationCore(
            name="store: a run without heartbeats is marked as crashed",
            description="Its process is gone; recover_orders then lets its order go on.",
            trigger=EventTrigger(
                # Running as well: a process may die before its first heartbeat.
                after={"prefect.flow-run.Running", "prefect.flow-run.heartbeat"},
                # Not `prefect.flow-run.*`: the Running of a resume would end the watch for good.
                expect={
                    "prefect.flow-run.heartbeat",
                    # From these on the run has no process, which is no death: it was suspended
                    # or rescheduled.
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
                    state=StateType.CRASHED, message=f"no heartbeat for {silence_seconds} s"
                )
            ],
        )
    ]


def apply(client: SyncPrefectClient, silence_seconds: int) -> list[str]:
    """Create missing automations and update changed ones, by name.

    One that is as it should be is left alone: renewing it would give its trigger a new id, and
    Prefect would forget the runs that it is watching.

    Args:
        client: The client of the server that has them.
        silence_seconds: How long a run may be silent.

    Returns:
        Their names.

    """
    wanted = automations(silence_seconds)
    for name in OUTDATED:
        for outdated in client.read_automations_by_name(name):
            client.delete_automation(outdated.id)
    for automation in wanted:
        # Names are no keys for Prefect: creating one twice makes two.
        found = next(iter(client.read_automations_by_name(automation.name)), None)
        if found is None:
            client.create_automation(automation)
        elif _definition(found) != _definition(automation):
            client.update_automation(found.id, automation)
    return [automation.name for automation in wanted]


def start_recovery(client: SyncPrefectClient) -> None:
    """Start `recover_orders`, unless it is off or due soon.

    Raises:
        prefect.exceptions.ObjectNotFound: it or the dispatcher is not deployed yet.
    """
    for name, slug in OUTDATED_SCHEDULES.items():
        deployment = client.read_deployment_by_name(name)
        for schedule in deployment.schedules:
            if schedule.slug == slug:
                client.delete_deployment_schedule(deployment.id, schedule.id)
    stand_by.start_unless_off(client, client.read_deployment_by_name(RECOVERY_DEPLOYMENT))


def _definition(automation: AutomationCore) -> dict[str, Any]:
    """Return an automation's definition without the server's ids."""
    definition = automation.model_dump(mode="json", exclude={"id": True, "trigger": {"id"}})
    definition["trigger"]["expect"].sort()  # sets, as JSON
    definition["trigger"]["after"].sort()
    return definition


def heartbeat_seconds() -> int:
    """Return the seconds between a run's heartbeats in this environment."""
    # Without heartbeats no run is watched, so that any number is right.
    return get_current_settings().flows.heartbeat_frequency or HEARTBEAT_SECONDS


@command("python -m deployments.automations", __doc__)
def main(*, silence_seconds: WholeNumber | None = None) -> int:
    """Apply the automations.

    Args:
        silence_seconds: How long a run may be silent before it counts as dead; four heartbeats, if
            left out.
    """
    heartbeat = heartbeat_seconds()
    if silence_seconds is None:
        silence_seconds = SILENT_HEARTBEATS * heartbeat
    if silence_seconds <= heartbeat:
        return complain(
            f"--silence-seconds must be more than a heartbeat ({heartbeat} s, as "
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY says): healthy runs would be marked as crashed",
            WRONG_USAGE,
        )
    address = get_current_settings().api.url
    if not address:
        # Prefect would start a server of its own, and the automations would end with it.
        return complain(
            "PREFECT_API_URL is not set; set it to your server's address, with /api at it"
        )
    try:
        with get_client(sync_client=True) as client:
            names = apply(client, silence_seconds)
            start_recovery(client)
    except ObjectNotFound:
        return complain(
            f"{RECOVERY_DEPLOYMENT} is not deployed at {address}: `python -m deployments.apply`"
        )
    except (httpx.TransportError, PrefectHTTPStatusError) as error:
        return complain(
            f"{address} does not take them: {error!r}. Is the server running, and is "
            "PREFECT_API_AUTH_STRING what it has in PREFECT_SERVER_API_AUTH_STRING?"
        )
    for name in names:
        terminal().print(f"applied: {name}")
    terminal().print(f"a run counts as dead after {silence_seconds} s without a heartbeat")
    return 0


if __name__ == "__main__":
    sys.exit(main())
