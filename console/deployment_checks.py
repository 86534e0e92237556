"""The doctor's checks of deployments, schedules, pools, workers and automations."""

import os
from collections.abc import Iterator, Mapping
from shlex import quote
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import DeploymentSchedule, WorkerStatus, WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import Automation, EventTrigger
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from console.diagnosis import Check, Diagnosis, mend, not_checked, ok, warning
from console.prefect_checks import open_server
from deployments.automations import HEARTBEAT_SECONDS, SILENCE_SECONDS, automations
from deployments.local import DISPATCH_DEPLOYMENT, PROJECT_DIR
from deployments.prefect_yaml import deployments_of, pauses, problems
from orders.listening import backlog, is_listened
from store.settings import settings
from terminal.output import duration

PREFECT_YAML = PROJECT_DIR / "prefect.yaml"
LEAST_HEARTBEATS = 3
"""Heartbeats that must fit into the silence after which a run counts as dead."""
PAGE = 200
WORK_POOL_VARIABLE = "STORE_WORK_POOL"
"""Names the pool in prefect.yaml when it is applied."""
DEPLOY_AGAIN = "apply prefect.yaml: `python -m deployments.apply`"


def _wanted() -> dict[str, Mapping[str, Any]]:
    return deployments_of(yaml.safe_load(PREFECT_YAML.read_text()))


def _prefect_yaml() -> Iterator[Diagnosis]:
    if not PREFECT_YAML.is_file():
        yield not_checked(f"there is no {PREFECT_YAML}; run the doctor where the code is")
        return
    for problem in problems(yaml.safe_load(PREFECT_YAML.read_text())):
        yield mend(problem, f"mend it in prefect.yaml, then {DEPLOY_AGAIN}")


def _deployed(client: SyncPrefectClient) -> dict[str, DeploymentResponse]:
    """Return all deployments of the server, each by its name, `flow/deployment`."""
    flows = {flow.id: flow.name for flow in _pages(client.read_flows)}
    return {f"{flows.get(d.flow_id)}/{d.name}": d for d in _pages(client.read_deployments)}


def _pages(read: Any) -> Iterator[Any]:
    offset = 0
    while page := read(limit=PAGE, offset=offset):
        yield from page
        offset += len(page)


def _deployments() -> Iterator[Diagnosis]:
    with open_server() as client:
        deployed = _deployed(client)
    for name, deployment in _wanted().items():
        found = deployed.get(name)
        if found is None:
            yield mend(f"{name} is not deployed", DEPLOY_AGAIN)
        elif found.entrypoint != deployment["entrypoint"]:
            yield mend(
                f"{name} runs {found.entrypoint}, prefect.yaml says {deployment['entrypoint']}",
                DEPLOY_AGAIN,
            )
    # Prefect takes it from them, and a new pool or queue of the same name does not give it back.
    if poolless := [n for n in _wanted() if n in deployed and not deployed[n].work_pool_name]:
        yield mend(
            f"no worker takes a run of {', '.join(poolless)}: the work pool or queue was deleted",
            DEPLOY_AGAIN,
        )


def _continuations() -> Iterator[Diagnosis]:
    with open_server() as client:
        deployed = _deployed(client)
    chosen = settings()
    for setting, name in (
        ("STORE_CHECKOUT_DEPLOYMENT", chosen.checkout_deployment),
        ("STORE_BATCH_DEPLOYMENT", chosen.batch_deployment),
    ):
        if name not in deployed:
            yield mend(
                f"{setting} is {name}, which is not deployed: an order whose run is lost goes "
                "nowhere",
                f"deploy it, or set {setting} to one that is",
            )


def _schedules() -> Iterator[Diagnosis]:
    with open_server() as client:
        deployed = _deployed(client)
    for name, deployment in _wanted().items():
        if name in deployed:
            yield from _schedules_of(name, deployment, deployed[name])


def _schedules_of(
    name: str, deployment: Mapping[str, Any], found: DeploymentResponse
) -> Iterator[Diagnosis]:
    if deployment.get("schedules") and found.paused and not deployment.get("paused"):
        yield (
            warning(
                "the dispatcher is off: each waiting order is a person's to answer",
                "where nobody is to: `checkout dispatcher on`",
            )
            if name == DISPATCH_DEPLOYMENT
            else mend(
                f"{name} is paused: none of its schedules makes a run",
                f"`prefect api POST /deployments/{found.id}/resume_deployment`",
            )
        )
    by_slug = {schedule.slug: schedule for schedule in found.schedules}
    for wanted in deployment.get("schedules") or []:
        schedule = by_slug.get(wanted["slug"])
        if schedule is None or not _is_as_wanted(schedule, wanted):
            yield mend(
                f"{name} has not the schedule {wanted['slug']} of prefect.yaml", DEPLOY_AGAIN
            )
        elif not schedule.active and wanted.get("active", True):
            yield mend(
                f"the schedule {wanted['slug']} of {name} is not active",
                f"`prefect deployment schedule resume {quote(name)} {schedule.id}`",
            )


def _is_as_wanted(schedule: DeploymentSchedule, wanted: Mapping[str, Any]) -> bool:
    cron = getattr(schedule.schedule, "cron", None)
    interval = getattr(schedule.schedule, "interval", None)
    seconds = interval.total_seconds() if interval is not None else None
    return bool(cron == wanted.get("cron") and seconds == wanted.get("interval"))


def _limits() -> Iterator[Diagnosis]:
    pausing = {name for name, found in _wanted().items() if pauses(found)}
    flows = {name.partition("/")[0] for name in pausing}
    with open_server() as client:
        deployed = _deployed(client)
    # Others may have deployed the same flows under other names.
    for name, found in deployed.items():
        if name.partition("/")[0] in flows and found.global_concurrency_limit is not None:
            yield mend(
                f"{name} has a concurrency limit: a run that pauses longer than its lease crashes",
                f"limit the work pool instead; to take this limit off, {DEPLOY_AGAIN}",
            )


def work_pools(client: SyncPrefectClient) -> dict[str, WorkPool | None]:
    """Return prefect.yaml's work pools by name, None for missing ones.

    They are those of its deployments, and STORE_WORK_POOL's.
    """
    deployed = _deployed(client)
    # The one that prefect.yaml is applied to next: without it, that fails.
    names = {os.environ.get(WORK_POOL_VARIABLE) or None}
    names |= {deployed[name].work_pool_name for name in _wanted() if name in deployed}
    return {name: _pool(client, name) for name in sorted(filter(None, names))}


def _pool(client: SyncPrefectClient, name: str) -> WorkPool | None:
    try:
        return client.read_work_pool(name)
    except ObjectNotFound:
        return None


def _work_pools() -> Iterator[Diagnosis]:
    with open_server() as client:
        pools = work_pools(client)
    for name, pool in pools.items():
        if pool is None:
            yield mend(
                f"the work pool {name} does not exist: runs stay Late for ever",
                f"`prefect work-pool create {quote(name)} --type process`",
            )
        elif pool.is_paused:
            yield mend(
                f"the work pool {name} is paused: no worker takes a run",
                f"`checkout reopen --pool {quote(name)}`, once what it was paused for is done",
            )
        else:
            yield ok(f"the work pool {name} takes runs")
    if not pools:
        yield mend(
            "no deployment of prefect.yaml has a work pool",
            f"set {WORK_POOL_VARIABLE} to the name of one, and {DEPLOY_AGAIN}",
        )


def _workers() -> Iterator[Diagnosis]:
    with open_server() as client:
        for name, pool in work_pools(client).items():
            if pool is None:
                continue
            if pool.is_push_pool or pool.is_managed_pool:
                yield ok(f"the work pool {name} needs no worker")
                continue
            online = [
                worker.name
                for worker in client.read_workers_for_work_pool(name)
                if worker.status == WorkerStatus.ONLINE
            ]
            if online:
                yield ok(f"{len(online)} workers of {name} are online: {', '.join(online)}")
            else:
                yield mend(
                    f"no worker of {name} is online: no order starts, none is looked after",
                    f"`prefect worker start --pool {quote(name)}`, with the settings of "
                    "docs/settings.md",
                )


def _online() -> Iterator[Diagnosis]:
    waiting = backlog()
    name = settings().online_deployment
    with open_server() as client:
        found = _deployed(client).get(name)
    is_off = found is None or found.paused
    late = waiting.of_front_ends if is_off else waiting.orders
    if not late:
        yield ok(
            "no order waits for the batch that listens"
            + (f", which is off ({name})" if is_off else "")
        )
        return
    says = f"{late} submitted orders wait, the oldest for {duration(waiting.oldest_seconds)}"
    if is_off:
        yield warning(
            f"{says}: front ends submit orders, and {name} is "
            + ("not deployed" if found is None else "paused"),
            DEPLOY_AGAIN if found is None else "`checkout online on`",
        )
    elif is_listened():
        yield warning(
            f"{says}, although a batch listens",
            "see its run's log: it has more than it can carry, or they fail to be claimed",
        )
    else:
        yield warning(
            f"{says}: {name} is on, and none of its runs listens",
            "see `work pools` and `workers`, then start one: "
            f"`prefect deployment run {quote(name)}`",
        )


def _automations() -> Iterator[Diagnosis]:
    remedy = "run `python -m deployments.automations`"
    with open_server() as client:
        names = [wanted.name for wanted in automations(SILENCE_SECONDS)]
        found = {name: client.read_automations_by_name(name) for name in names}
    for name, of_name in found.items():
        if not of_name:
            yield warning(f"the automation “{name}” is missing", remedy)
        elif len(of_name) > 1:
            yield warning(
                f"the automation “{name}” is there {len(of_name)} times", "delete all but one"
            )
        if of_name and not of_name[0].enabled:
            yield warning(
                f"the automation “{name}” is disabled",
                "enable it: `python -m deployments.automations`",
            )
        for each in of_name:
            yield from _unfitting(each)


def _unfitting(automation: Automation) -> Iterator[Diagnosis]:
    """Yield an automation's conflicts with the settings."""
    heartbeat = get_current_settings().flows.heartbeat_frequency
    for action in automation.actions:
        if isinstance(action, ChangeFlowRunState) and isinstance(automation.trigger, EventTrigger):
            silence = automation.trigger.within.total_seconds()
            if heartbeat is None or silence < LEAST_HEARTBEATS * heartbeat:
                yield mend(
                    f"runs count as dead after {silence:.0f} s of silence, but send a heartbeat "
                    f"every {heartbeat} s: healthy runs are marked as crashed",
                    f"set PREFECT_FLOWS_HEARTBEAT_FREQUENCY to {HEARTBEAT_SECONDS} for every "
                    "worker",
                )


NEEDED = ("prefect server", "prefect.yaml")
DEPLOYMENT_CHECKS = (
    Check(
        "prefect.yaml",
        _prefect_yaml,
        "prefect.yaml has nothing that Prefect would ignore or run unsafely",
    ),
    # Before the deployments, which are refused without their pool.
    Check("work pools", _work_pools, needs=NEEDED),
    Check("deployments", _deployments, "every deployment of prefect.yaml is there", NEEDED),
    Check(
        "continuations",
        _continuations,
        "the deployments in which orders go on after a crash are there",
        ("prefect server", "settings"),
    ),
    Check("schedules", _schedules, "every schedule of prefect.yaml is active", NEEDED),
    Check("limits", _limits, "no deployment whose run pauses has a concurrency limit", NEEDED),
    Check("workers", _workers, needs=NEEDED),
    Check("online", _online, needs=("prefect server", "migrations")),
    Check(
        "automations",
        _automations,
        "the store's automations are there, and fit the heartbeats and deployments",
        ("prefect server",),
    ),
)
