"""Checks of prefect.yaml and of the flows that it deploys.

Prefect ignores unknown keys, and accepts settings with which a waiting order crashes or is charged
twice.
"""

import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType
from typing import Any

from prefect import Flow, Task, flow_runs
from prefect.cli.deploy._models import (
    ConcurrencyLimitSpec,
    DeploymentConfig,
    PrefectYamlModel,
    RawScheduleConfig,
    WorkPoolConfig,
)
from pydantic import BaseModel

_FROM_ENVIRONMENT = re.compile(r"^\{\{ *\$\w+ *\}\}")
PROJECT_DIR = Path(__file__).resolve().parent.parent
PAUSING = (
    flow_runs.pause_flow_run,
    flow_runs.apause_flow_run,
    flow_runs.suspend_flow_run,
    flow_runs.asuspend_flow_run,
)


def problems(document: Any) -> list[str]:
    """Return what is unknown or unsafe in a prefect.yaml.

    Args:
        document: The file, as YAML gives it.
    """
    if not isinstance(document, Mapping):
        return ["prefect.yaml: not a mapping"]
    found = [*_unknown("prefect.yaml", document, PrefectYamlModel)]
    if document.get("pull") != []:
        found.append("pull: must be []; left out, Prefect makes it a step to this machine's folder")
    deployments = document.get("deployments")
    if not isinstance(deployments, list) or not deployments:
        return [*found, "deployments: there are none"]
    names = set()
    for deployment in deployments:
        name = f"{deployment.get('entrypoint')} as {deployment.get('name')}"
        if name in names:
            found.append(f"{name}: deployed twice")
        names.add(name)
        found.extend(f"{name}: {problem}" for problem in _deployment_problems(deployment))
        found.extend(f"{name}: {problem}" for problem in _flow_problems(deployment))
    return found


def deployments_of(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the deployments of a sound prefect.yaml by `flow/deployment`."""
    return {
        f"{flow_of(deployment).name}/{deployment['name']}": deployment
        for deployment in document["deployments"]
    }


def variables_of(text: str) -> set[str]:
    """Return the names of the environment variables in a prefect.yaml."""
    return set(re.findall(r"\{\{ *\$(\w+) *\}\}", text))


def pauses(deployment: Mapping[str, Any]) -> bool:
    """Return whether the deployment's flow can pause or suspend its run."""
    return _pauses(flow_of(deployment).fn, set())


def flow_of(deployment: Mapping[str, Any]) -> Flow[..., Any]:
    """Import and return a deployment's flow.

    Raises:
        ImportError, AttributeError: there is no such flow.
    """
    module, _, name = str(deployment.get("entrypoint")).rpartition(".")
    flow: Flow[..., Any] = getattr(importlib.import_module(module), name)
    return flow


def _unknown(where: str, mapping: Mapping[str, Any], model: type[BaseModel]) -> Iterator[str]:
    known = {field.alias or name for name, field in model.model_fields.items()}
    for key in sorted(set(mapping) - known):
        yield f"{where}: Prefect would ignore the key {key!r}"


def _deployment_problems(deployment: Mapping[str, Any]) -> Iterator[str]:
    yield from _unknown("deployment", deployment, DeploymentConfig)
    for required in ("name", "entrypoint", "description"):
        if not deployment.get(required):
            yield f"{required} is missing"
    if deployment.get("enforce_parameter_schema") is False:
        yield "enforce_parameter_schema: false lets bad input into a run"
    pool = deployment.get("work_pool") or {}
    yield from _unknown("work_pool", pool, WorkPoolConfig)
    if not _FROM_ENVIRONMENT.match(pool.get("name") or ""):
        yield "work_pool: its name must come from the environment"
    folder = (pool.get("job_variables") or {}).get("working_dir")
    if folder is None:
        yield "working_dir: without it, runs start in an empty temporary folder"
    elif not _FROM_ENVIRONMENT.match(folder):
        yield f"working_dir: {folder!r} is a folder of one machine; take it from the environment"
    limit = deployment.get("concurrency_limit")
    if isinstance(limit, Mapping):
        yield from _unknown("concurrency_limit", limit, ConcurrencyLimitSpec)
        if limit.get("collision_strategy") not in ("ENQUEUE", "CANCEL_NEW"):
            yield "concurrency_limit: collision_strategy must be ENQUEUE or CANCEL_NEW"
    yield from _schedule_problems(
        [*(deployment.get("schedules") or ()), *filter(None, (deployment.get("schedule"),))]
    )


def _schedule_problems(schedules: list[Mapping[str, Any]]) -> Iterator[str]:
    slugs = [schedule.get("slug") for schedule in schedules]
    if len(set(slugs)) < len(slugs):
        yield "schedules: two have the same slug"
    for schedule in schedules:
        yield from _unknown("schedule", schedule, RawScheduleConfig)
        if not schedule.get("slug"):
            yield "schedule: without a slug, each deploy makes it anew"
        if len({"cron", "interval", "rrule"} & set(schedule)) != 1:
            yield "schedule: exactly one of cron, interval and rrule must be given"


def _flow_problems(deployment: Mapping[str, Any]) -> Iterator[str]:
    try:
        flow = flow_of(deployment)
    except (ImportError, AttributeError):
        yield "entrypoint: there is no such flow"
        return
    if flow.retries:
        yield "flow-level retries run after the compensation, and a resumed pause spends them"
    for name in sorted(set(deployment.get("parameters") or {}) - set(flow.parameters.properties)):
        yield f"parameters: the flow has no parameter {name!r}"
    if deployment.get("concurrency_limit") is not None and _pauses(flow.fn, set()):
        yield "concurrency_limit: its lease is lost in a pause, and the waiting run crashes"


def _pauses(function: Any, seen: set[Any]) -> bool:
    """Return whether a function, or one that it calls, pauses its run."""
    if isinstance(function, Flow | Task):
        function = function.fn
    if any(function is each for each in PAUSING):
        return True
    if not inspect.isfunction(function) or function in seen:
        return False
    seen.add(function)
    function = inspect.unwrap(function)
    if not (PROJECT_DIR / f"{function.__module__.replace('.', '/')}.py").is_file():
        return False
    names = set(_names_in(function.__code__))
    named = [function.__globals__.get(name) for name in names]
    modules = filter(inspect.ismodule, named)
    named += [getattr(module, name, None) for module in modules for name in names]
    return any(_pauses(each, seen) for each in named)


def _names_in(code: CodeType) -> Iterator[str]:
    """Yield the names that a function and its inner ones use."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
