"""The results of the doctor's checks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Verdict(StrEnum):
    """The severity of a diagnosis.

    What could not be looked at is neither good nor bad.
    """

    OK = "ok"
    WARNING = "warning"
    MEND = "mend"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One finding of a check, with its remedy."""

    verdict: Verdict
    says: str
    remedy: str = ""


class Check(NamedTuple):
    """A named check, with the checks that it needs.

    docs/runbook.md has a row for each name. ``well`` is said where ``find`` yields nothing.
    """

    name: str
    find: Callable[[], Iterator[Diagnosis]]
    well: str = ""
    needs: tuple[str, ...] = ()

    def look(self) -> Iterator[Diagnosis]:
        """Yield what was found, or that all is well."""
        is_well = True
        for diagnosis in self.find():
            is_well = False
            yield diagnosis
        if is_well:
            yield ok(self.well)


def ok(says: str) -> Diagnosis:
    """Report that something is well."""
    return Diagnosis(Verdict.OK, says)


def warning(says: str, remedy: str) -> Diagnosis:
    """Report that something works, but not as well as it could."""
    return Diagnosis(Verdict.WARNING, says, remedy)


def mend(says: str, remedy: str) -> Diagnosis:
    """Report that something is broken, or will cost money."""
    return Diagnosis(Verdict.MEND, says, remedy)


def not_checked(says: str) -> Diagnosis:
    """Report that something could not be looked at."""
    return Diagnosis(Verdict.NOT_CHECKED, says)
