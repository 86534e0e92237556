"""What the doctor looks at in Prefect: settings, server, work pools, workers, deployments."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import requires
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import prefect
import psutil
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import DeploymentSchedule, WorkerStatus
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import Automation, EventTrigger
from prefect.exceptions import ObjectNotFound
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED,
    get_current_settings,
    temporary_settings,
)

from console.diagnosis import Check, Diagnosis, mend, not_checked, ok, warning
from deployments.automations import (
    HEARTBEAT_SECONDS,
    RECOVERY_DEPLOYMENT,
    SILENCE_SECONDS,
    automations,
)
from deployments.local import PROJECT_DIR
from deployments.prefect_yaml import deployments_of, pauses, problems
from store.settings import settings

PREFECT_YAML = PROJECT_DIR / "prefect.yaml"
LEAST_RETRIES = 10
"""With Prefect's own 5, an outage of the server over about 68 s reaches the waiting runs."""
LEAST_HEARTBEATS = 3
"""Heartbeats that must fit into the silence after which a run counts as dead."""
LEAST_PAUSES_INTERVAL_SECONDS = 30.0
"""With Prefect's own 5, its server is busy with reading paused runs while thousands wait."""
PATIENCE_SECONDS = 10.0
THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
PAGE = 200
DEPLOY_AGAIN = "apply prefect.yaml: `prefect deploy --all`"


@contextmanager
def prefect_server() -> Iterator[SyncPrefectClient]:
    """Give a client that says soon if the server does not answer; a worker's would try on."""
    quick = {
        PREFECT_CLIENT_MAX_RETRIES: 0,
        PREFECT_API_REQUEST_TIMEOUT: PATIENCE_SECONDS,
        # Which versions go together is the doctor's own question.
        PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED: False,
    }
    with temporary_settings(quick), get_client(sync_client=True) as client:
        yield client


def _prefect_settings() -> Iterator[Diagnosis]:
    chosen = get_current_settings()
    well = True
    for diagnosis in _unsafe(chosen):
        well = False
        yield diagnosis
    if well:
        yield ok("Prefect's settings are safe for orders that wait")


def _unsafe(chosen: prefect.settings.Settings) -> Iterator[Diagnosis]:
    if chosen.client.max_retries < LEAST_RETRIES:
        yield mend(
            f"PREFECT_CLIENT_MAX_RETRIES is {chosen.client.max_retries}: an outage of the server "
            "over a minute reaches the waiting runs",
            f"set it to {LEAST_RETRIES} for every worker",
        )
    if chosen.runner.crash_on_cancellation_failure:
        yield mend(
            "PREFECT_RUNNER_CRASH_ON_CANCELLATION_FAILURE is true: an outage of the server over "
            "30 s crashes every waiting run",
            "unset it",
        )
    if behaviour := os.environ.get("PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"):
        yield warning(
            f"PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR is {behaviour}: a run that is told to stop "
            "does not tell its hook",
            "unset it; the hook starts the run again at once",
        )
    if chosen.api.auth_string and chosen.api.key:
        yield warning(
            "PREFECT_API_AUTH_STRING and PREFECT_API_KEY are both set; only one can be meant",
            "unset PREFECT_API_KEY, unless Prefect Cloud is used",
        )
    if not (chosen.ui_url or "").rstrip("/").endswith("/v2"):
        yield warning(
            "PREFECT_UI_URL does not end in /v2: links in notices lead to the old UI, in whose "
            "forms a mouse cannot choose an answer",
            "set it to the UI's address with /v2 at its end",
        )
    if "store" not in (chosen.logging.extra_loggers or []):
        yield warning(
            "PREFECT_LOGGING_EXTRA_LOGGERS lacks `store`: what the store logs is not shown with "
            "its run",
            "set it to store",
        )


def _prefect_server() -> Iterator[Diagnosis]:
    chosen = get_current_settings()
    if not chosen.api.url:
        yield mend(
            "PREFECT_API_URL is not set: each command and worker would start a server of its own",
            "set it to the address of your server, with /api at its end",
        )
        return
    with prefect_server() as client:
        try:
            version = client.api_version()
        except httpx.HTTPStatusError as error:
            if error.response.status_code not in (401, 403):
                raise
            yield mend(
                f"{chosen.api.url} does not let us in ({error.response.status_code})",
                "set PREFECT_API_AUTH_STRING to what the server has in "
                "PREFECT_SERVER_API_AUTH_STRING",
            )
            return
        except httpx.TransportError as error:
            yield mend(
                f"{chosen.api.url} does not answer: {error}",
                "start the server; waiting orders wait on meanwhile",
            )
            return
    yield ok(f"{chosen.api.url} answers, with Prefect {version}")


def _prefect_version() -> Iterator[Diagnosis]:
    with prefect_server() as client:
        server = client.api_version()
    here = prefect.__version__
    tested = next(
        requirement.specifier
        for requirement in map(Requirement, requires("store-checkout") or [])
        if requirement.name == "prefect"
    )
    wrong = [version for version in {server, here} if version not in tested]
    if server != here:
        yield mend(
            f"the server has Prefect {server}, this installation {here}",
            "install the same version on both",
        )
    if wrong:
        yield mend(
            f"Prefect {', '.join(sorted(wrong))} is not tested with the store ({tested})",
            "install the version of constraints.txt",
        )
    sqlalchemy = installed("sqlalchemy")
    if schedules_nothing(here, sqlalchemy):
        wrong.append(here)
        yield mend(
            f"Prefect {here} with SQLAlchemy {sqlalchemy}: a server of this installation starts no "
            "scheduled run",
            "install what constraints.txt has, or constraints-oldest.txt",
        )
    if server == here and not wrong:
        yield ok(f"server and client have Prefect {here}, which is tested")


def schedules_nothing(prefect_version: str, sqlalchemy_version: str) -> bool:
    """Return whether a server with these two inserts no scheduled runs, without an error.

    Seen with Prefect 3.8.8 and SQLAlchemy 2.1.9, not with Prefect 3.9.1. No bound in pyproject.toml
    excludes the pair and allows each.
    """
    old, new = Version(prefect_version), Version(sqlalchemy_version)
    return old < Version("3.9") and new >= Version("2.1")


def _prefect_database() -> Iterator[Diagnosis]:
    url = urlsplit(get_current_settings().api.url or "")
    opened = _opened_by_server(url.port) if url.hostname in THIS_MACHINE and url.port else None
    if opened is None:
        yield not_checked(
            "a server does not tell its database, and its process cannot be looked into from here; "
            "make sure that it is PostgreSQL"
        )
    elif database := next((path for path in opened if path.suffix == ".db"), None):
        yield mend(
            f"Prefect's server keeps its data in SQLite ({database}): it answers 503 at a handful "
            "of concurrent runs",
            "give it PostgreSQL: PREFECT_API_DATABASE_CONNECTION_URL",
        )
    else:
        yield ok("Prefect's server has no SQLite file open")
    with prefect_server() as client:
        of_server = client.request("GET", "/admin/settings").json()
    storage = of_server["server"]["concurrency"]["lease_storage"]
    if storage.endswith(".memory"):
        yield warning(
            "Prefect's server keeps concurrency leases in memory: a slot that is taken when it "
            "stops stays taken, and dispatch-orders or recover-orders wait for it",
            "set PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE as docs/settings.md says",
        )
    seconds = of_server["server"]["services"]["pause_expirations"]["loop_seconds"]
    if seconds < LEAST_PAUSES_INTERVAL_SECONDS:
        yield warning(
            f"Prefect's server reads every paused run each {seconds:g} s: ten thousand waiting "
            "orders keep a good part of a core busy with it",
            "set PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_LOOP_SECONDS as docs/settings.md says",
        )


def _opened_by_server(port: int) -> list[Path] | None:
    """Return the files that the Prefect server on a port of this machine has open.

    None if that cannot be seen: the process is another user's, or in a container, so that what
    listens here is something in front of it.
    """
    try:
        for connection in psutil.net_connections("tcp"):
            here = connection.laddr and connection.laddr.port == port
            if here and connection.status == psutil.CONN_LISTEN and connection.pid:
                process = psutil.Process(connection.pid)
                if any("prefect" in word for word in process.cmdline()):
                    return [Path(file.path) for file in process.open_files()]
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        return None
    return None


def _wanted() -> dict[str, Mapping[str, Any]]:
    return deployments_of(yaml.safe_load(PREFECT_YAML.read_text()), PROJECT_DIR)


def _prefect_yaml() -> Iterator[Diagnosis]:
    if not PREFECT_YAML.is_file():
        yield not_checked(f"there is no {PREFECT_YAML}; run the doctor where the code is")
        return
    found = problems(yaml.safe_load(PREFECT_YAML.read_text()), PROJECT_DIR)
    for problem in found:
        yield mend(problem, "mend it in prefect.yaml, then apply it: `prefect deploy --all`")
    if not found:
        yield ok("prefect.yaml has nothing that Prefect would ignore or run unsafely")


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
    wanted = _wanted()
    with prefect_server() as client:
        deployed = _deployed(client)
    well = True
    for name, deployment in wanted.items():
        found = deployed.get(name)
        if found is None:
            well = False
            yield mend(f"{name} is not deployed", DEPLOY_AGAIN)
        elif found.entrypoint != deployment["entrypoint"]:
            well = False
            yield mend(
                f"{name} runs {found.entrypoint}, prefect.yaml says {deployment['entrypoint']}",
                DEPLOY_AGAIN,
            )
    if well:
        yield ok(f"the {len(wanted)} deployments of prefect.yaml are there")


def _continuations() -> Iterator[Diagnosis]:
    with prefect_server() as client:
        deployed = _deployed(client)
    chosen = settings()
    missing = {
        "STORE_CHECKOUT_DEPLOYMENT": chosen.checkout_deployment,
        "STORE_BATCH_DEPLOYMENT": chosen.batch_deployment,
    }
    missing = {setting: name for setting, name in missing.items() if name not in deployed}
    for setting, name in missing.items():
        yield mend(
            f"{setting} is {name}, which is not deployed: an order whose run is lost goes nowhere",
            f"deploy it, or set {setting} to one that is",
        )
    if not missing:
        yield ok("the deployments in which orders go on after a crash are there")


def _schedules() -> Iterator[Diagnosis]:
    with prefect_server() as client:
        deployed = _deployed(client)
    problems = [
        diagnosis
        for name, deployment in _wanted().items()
        if name in deployed
        for diagnosis in _schedules_of(name, deployment, deployed[name])
    ]
    yield from problems
    if not problems:
        yield ok("every schedule of prefect.yaml is active")


def _schedules_of(
    name: str, deployment: Mapping[str, Any], found: DeploymentResponse
) -> Iterator[Diagnosis]:
    if deployment.get("schedules") and found.paused:
        yield mend(
            f"{name} is paused: none of its schedules makes a run",
            f"`prefect deployment schedule resume '{name}'`, or in the UI",
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
                "activate it on the deployment's page in the UI",
            )


def _is_as_wanted(schedule: DeploymentSchedule, wanted: Mapping[str, Any]) -> bool:
    cron = getattr(schedule.schedule, "cron", None)
    interval = getattr(schedule.schedule, "interval", None)
    seconds = interval.total_seconds() if interval is not None else None
    return bool(cron == wanted.get("cron") and seconds == wanted.get("interval"))


def _limits() -> Iterator[Diagnosis]:
    pausing = {name for name, found in _wanted().items() if pauses(found, PROJECT_DIR)}
    flows = {name.partition("/")[0] for name in pausing}
    with prefect_server() as client:
        deployed = _deployed(client)
    # Others may have deployed the same flows under other names.
    limited = [
        name
        for name, found in deployed.items()
        if name.partition("/")[0] in flows and found.global_concurrency_limit is not None
    ]
    for name in limited:
        yield mend(
            f"{name} has a concurrency limit: a run that pauses longer than its lease crashes",
            "take the limit off the deployment; limit the work pool instead",
        )
    if not limited:
        yield ok("no deployment whose run pauses has a concurrency limit")


def pool_names(client: SyncPrefectClient) -> set[str]:
    """Return the work pools of the deployments of prefect.yaml."""
    deployed = _deployed(client)
    return {
        pool
        for name in _wanted()
        if name in deployed and (pool := deployed[name].work_pool_name) is not None
    }


def _work_pools() -> Iterator[Diagnosis]:
    with prefect_server() as client:
        names = pool_names(client)
        for name in sorted(names):
            try:
                pool = client.read_work_pool(name)
            except ObjectNotFound:
                yield mend(
                    f"the work pool {name} does not exist: runs stay Late for ever",
                    f"`prefect work-pool create {name} --type process`",
                )
                continue
            if pool.is_paused:
                yield mend(
                    f"the work pool {name} is paused: no worker takes a run",
                    f"`prefect work-pool resume {name}`, once what it was paused for is done",
                )
            else:
                yield ok(f"the work pool {name} takes runs")
    if not names:
        yield mend("no deployment of prefect.yaml has a work pool", DEPLOY_AGAIN)


def _workers() -> Iterator[Diagnosis]:
    with prefect_server() as client:
        for name in sorted(pool_names(client)):
            try:
                pool = client.read_work_pool(name)
            except ObjectNotFound:
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
                    f"`prefect worker start --pool {name}`, with the settings of docs/settings.md",
                )


def _automations() -> Iterator[Diagnosis]:
    remedy = "run `python -m deployments.automations`"
    with prefect_server() as client:
        names = [wanted.name for wanted in automations(UUID(int=0), SILENCE_SECONDS)]
        found = {name: client.read_automations_by_name(name) for name in names}
        recovery = _deployed(client).get(RECOVERY_DEPLOYMENT)
    problems = []
    for name, of_name in found.items():
        if not of_name:
            problems.append(warning(f"the automation “{name}” is missing", remedy))
        elif len(of_name) > 1:
            problems.append(
                warning(
                    f"the automation “{name}” is there {len(of_name)} times", "delete all but one"
                )
            )
        if of_name and not of_name[0].enabled:
            problems.append(warning(f"the automation “{name}” is disabled", "enable it in the UI"))
        problems += [unfit for each in of_name for unfit in _unfitting(each, recovery)]
    yield from problems
    if not problems:
        yield ok("the store's automations are there, and fit the heartbeats and deployments")


def _unfitting(automation: Automation, recovery: DeploymentResponse | None) -> list[Diagnosis]:
    """Return what of an automation does not go with the settings here and the deployments."""
    found = []
    heartbeat = get_current_settings().flows.heartbeat_frequency
    for action in automation.actions:
        match action:
            case ChangeFlowRunState() if isinstance(automation.trigger, EventTrigger):
                silence = automation.trigger.within.total_seconds()
                if heartbeat is None or silence < LEAST_HEARTBEATS * heartbeat:
                    found.append(
                        mend(
                            f"runs count as dead after {silence:.0f} s of silence, but send a "
                            f"heartbeat every {heartbeat} s: healthy runs are marked as crashed",
                            f"set PREFECT_FLOWS_HEARTBEAT_FREQUENCY to {HEARTBEAT_SECONDS} for "
                            "every worker",
                        )
                    )
            case RunDeployment() if recovery is None or action.deployment_id != recovery.id:
                found.append(
                    mend(
                        f"the automation “{automation.name}” starts a deployment that is not "
                        f"{RECOVERY_DEPLOYMENT}",
                        "run `python -m deployments.automations`",
                    )
                )
    return found


PREFECT_CHECKS = (
    Check("prefect settings", _prefect_settings),
    Check("prefect server", _prefect_server),
    Check("prefect version", _prefect_version, needs=("prefect server",)),
    Check("prefect database", _prefect_database, needs=("prefect server",)),
    Check("prefect.yaml", _prefect_yaml),
    Check("deployments", _deployments, needs=("prefect server", "prefect.yaml")),
    Check("continuations", _continuations, needs=("prefect server", "settings")),
    Check("schedules", _schedules, needs=("prefect server", "prefect.yaml")),
    Check("limits", _limits, needs=("prefect server", "prefect.yaml")),
    Check("work pools", _work_pools, needs=("prefect server", "prefect.yaml")),
    Check("workers", _workers, needs=("prefect server", "prefect.yaml")),
    Check("automations", _automations, needs=("prefect server",)),
)
