"""What a check of the doctor may say: all is well, a warning, or what is to be mended."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Verdict(StrEnum):
    """How bad it is. What could not be looked at is neither good nor bad."""

    OK = "ok"
    WARNING = "warning"
    MEND = "mend"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One thing that was looked at: what is so, and what to do about it if it is not well."""

    verdict: Verdict
    says: str
    remedy: str = ""


class Check(NamedTuple):
    """A check by its name, which docs/runbook.md explains, and those that it cannot do without."""

    name: str
    look: Callable[[], Iterator[Diagnosis]]
    needs: tuple[str, ...] = ()


def ok(says: str) -> Diagnosis:
    """Say that something is well."""
    return Diagnosis(Verdict.OK, says)


def warning(says: str, remedy: str) -> Diagnosis:
    """Say that something works, but not as well as it could."""
    return Diagnosis(Verdict.WARNING, says, remedy)


def mend(says: str, remedy: str) -> Diagnosis:
    """Say that something is broken, or will cost money."""
    return Diagnosis(Verdict.MEND, says, remedy)


def not_checked(says: str) -> Diagnosis:
    """Say that something could not be looked at."""
    return Diagnosis(Verdict.NOT_CHECKED, says)
