"""The documents' tables, which `make docs` makes from the code."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic_core import PydanticUndefined

import store.errors
from console.main import commands
from console.metrics import METRICS
from deployments.prefect_yaml import deployments_of
from store.settings import Settings
from tasks.steps import STEPS
from tasks.undo import Undo

PROJECT_DIR = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")


def settings() -> str:
    """Return the table of the store's settings."""
    return _table(
        ("Setting", "Default", "Meaning"),
        (
            (
                f"`STORE_{name.upper()}`",
                _default(field.get_default(call_default_factory=True)),
                field.description or "",
            )
            for name, field in Settings.model_fields.items()
        ),
    )


def errors(kind: str) -> str:
    """Return the table of the errors of one kind.

    Args:
        kind: `RefusedOrder`, `OrderError`, or `StoreError` for those of neither.
    """
    base = getattr(store.errors, kind)
    others = () if kind != "StoreError" else (store.errors.RefusedOrder, store.errors.OrderError)
    return _table(
        ("Error", "Meaning"),
        (
            (f"`{error.__name__}`", " ".join((error.__doc__ or "").partition("Args:")[0].split()))
            for error in errors_below(base)
            if not issubclass(error, others)
        ),
    )


def steps() -> str:
    """Return the table of the checkout's steps."""
    return _table(
        ("Step", "Effect", "Undo"),
        (
            (
                f"`{step.name}`",
                step.effect,
                f"`{step.undo.name}`" if isinstance(step.undo, Undo) else f"none: {step.undo}",
            )
            for step in STEPS
        ),
    )


def deployments() -> str:
    """Return the table of the deployments in prefect.yaml."""
    return _table(
        ("Deployment", "Starts", "What it does"),
        (
            (
                f"`{name}`",
                ", ".join(schedule["slug"] for schedule in deployment.get("schedules", ()))
                or "by hand",
                _LINK.sub(r"\1", deployment["description"].strip()),
            )
            for name, deployment in deployed().items()
        ),
    )


def console() -> str:
    """Return the table of the commands of `checkout`."""
    return _table(
        ("Command", "What it does"),
        ((f"`checkout {name}`", of.help.splitlines()[0]) for name, of in commands().items()),
    )


def metrics() -> str:
    """Return the table of the figures for Prometheus."""
    return _table(
        ("Metric", "Labels", "Meaning"),
        (
            (
                f"`{metric.name}`",
                ", ".join(f"`{label}`" for label in metric.labels) or "none",
                metric.meaning,
            )
            for metric in METRICS
        ),
    )


def deployed() -> dict[str, Mapping[str, Any]]:
    """Return each deployment of prefect.yaml by `flow/name`."""
    document = yaml.safe_load((PROJECT_DIR / "prefect.yaml").read_text())
    return deployments_of(document)


def errors_below(base: type[Exception]) -> Iterator[type[Exception]]:
    """Yield the store's errors below `base`, without mere bases."""
    for error in base.__subclasses__():
        if error.__module__ == store.errors.__name__:
            below = list(errors_below(error))
            yield from below or [error]


def _default(default: object) -> str:
    if default is PydanticUndefined:
        return "required"
    written = str(default).lower() if isinstance(default, bool) else default
    return "not set" if default is None else f"`{written}`"


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "".join(f"| {' | '.join(' '.join(cell.split()) for cell in line)} |\n" for line in lines)
