"""Checks of prefect.yaml and of the flows that it deploys.

Prefect ignores unknown keys, and accepts settings with which a waiting order crashes or is charged
twice. These checks read files only and import no flow.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from prefect.cli.deploy._models import (
    ConcurrencyLimitSpec,
    DeploymentConfig,
    PrefectYamlModel,
    RawScheduleConfig,
    WorkPoolConfig,
)
from pydantic import BaseModel

_FROM_ENVIRONMENT = re.compile(r"^\{\{ *\$\w+ *\}\}")
_PAUSING_CALLS = {"pause_flow_run", "apause_flow_run", "suspend_flow_run", "asuspend_flow_run"}
_RETRY_ARGUMENTS = {"retries"}


def problems(document: Any, project_dir: Path) -> list[str]:
    """Return what is unknown or unsafe in a prefect.yaml.

    Args:
        document: the file, as YAML gives it.
        project_dir: the folder that its entrypoints are relative to.
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
        found.extend(f"{name}: {problem}" for problem in _flow_problems(deployment, project_dir))
    return found


def deployments_of(document: Mapping[str, Any], project_dir: Path) -> dict[str, Mapping[str, Any]]:
    """Return the deployments of a sound prefect.yaml by `flow/deployment`."""
    named = {}
    for deployment in document["deployments"]:
        path, function_name = _flow_of(deployment, project_dir)
        function = _function(path, function_name)
        arguments = {} if function is None else {a.arg: a.value for a in _flow_arguments(function)}
        name = arguments.get("name")
        # Prefect's own way where a flow is given no name.
        given = str(name.value) if isinstance(name, ast.Constant) else None
        flow = given or function_name.replace("_", "-")
        named[f"{flow}/{deployment['name']}"] = deployment
    return named


def variables_of(text: str) -> set[str]:
    """Return the names of the environment variables in a prefect.yaml."""
    return set(re.findall(r"\{\{ *\$(\w+) *\}\}", text))


def pauses(deployment: Mapping[str, Any], project_dir: Path) -> bool:
    """Return whether the deployment's flow can pause or suspend its run."""
    path, function_name = _flow_of(deployment, project_dir)
    return _pauses(path, function_name, project_dir, set())


def _flow_of(deployment: Mapping[str, Any], project_dir: Path) -> tuple[Path, str]:
    """Return the file and the name of a deployment's flow."""
    module, _, function_name = str(deployment.get("entrypoint")).rpartition(".")
    return project_dir / f"{module.replace('.', '/')}.py", function_name


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


def _flow_problems(deployment: Mapping[str, Any], project_dir: Path) -> Iterator[str]:
    path, function_name = _flow_of(deployment, project_dir)
    function = _function(path, function_name) if path.is_file() else None
    if function is None:
        yield "entrypoint: there is no such flow"
        return
    for argument in _flow_arguments(function):
        if argument.arg in _RETRY_ARGUMENTS and not _is_zero(argument.value):
            yield "flow-level retries run after the compensation, and a resumed pause spends them"
    signature = function.args
    arguments = {each.arg for each in (*signature.args, *signature.kwonlyargs)}
    for name in sorted(set(deployment.get("parameters") or {}) - arguments):
        yield f"parameters: the flow has no parameter {name!r}"
    if deployment.get("concurrency_limit") is not None and _pauses(
        path, function_name, project_dir, set()
    ):
        yield "concurrency_limit: its lease is lost in a pause, and the waiting run crashes"


def _function(path: Path, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    for node in _parsed(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            return node
    return None


def _flow_arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.keyword]:
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call):
            yield from decorator.keywords


def _is_zero(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value == 0


def _pauses(path: Path, function: str, project_dir: Path, seen: set[tuple[Path, str]]) -> bool:
    """Return whether a function, or one that it calls, pauses its run."""
    if (path, function) in seen or not path.is_file():
        return False
    seen.add((path, function))
    node = _function(path, function)
    if node is None:
        return False
    imported = _imported(path)
    # The body only: a hook named in a decorator runs when the flow has ended.
    for used in (each for statement in node.body for each in ast.walk(statement)):
        if isinstance(used, ast.Name):
            if used.id in _PAUSING_CALLS:
                return True
            module, name = imported.get(used.id, (None, used.id))
        elif isinstance(used, ast.Attribute) and isinstance(used.value, ast.Name):
            if used.attr in _PAUSING_CALLS:
                return True
            package, folder = imported.get(used.value.id, (None, used.value.id))
            module, name = f"{package}.{folder}" if package else folder, used.attr
        else:
            continue
        target = path if module is None else project_dir / f"{module.replace('.', '/')}.py"
        if _pauses(target, name, project_dir, seen):
            return True
    return False


@cache
def _parsed(text: str) -> ast.Module:
    """Return a module's tree, parsed once for all functions."""
    return ast.parse(text)


def _imported(path: Path) -> dict[str, tuple[str, str]]:
    """Return each imported name's module and name there."""
    return {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(_parsed(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and not node.level
        for alias in node.names
    }
