"""The doctor's checks of every part of the running shop."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict

from rich.console import Console
from sqlalchemy.exc import DBAPIError

from console.deployment_checks import DEPLOYMENT_CHECKS
from console.diagnosis import Check, Diagnosis, Verdict, mend, not_checked
from console.prefect_checks import PREFECT_CHECKS
from console.run_checks import RUN_CHECKS
from console.store_checks import STORE_CHECKS
from console.warm_start_check import WARM_START_CHECKS
from store.errors import one_line
from terminal.output import AsJson, print_json, terminal

CHECKS = (*STORE_CHECKS, *PREFECT_CHECKS, *DEPLOYMENT_CHECKS, *WARM_START_CHECKS, *RUN_CHECKS)
STYLES = {
    Verdict.OK: "green",
    Verdict.WARNING: "yellow",
    Verdict.MEND: "bold red",
    Verdict.NOT_CHECKED: "dim",
}


def doctor(*, as_json: AsJson = False) -> int:
    """Check every part of the shop and print each fault's remedy.

    It reads its own environment's settings, so run it where a worker runs, with the worker's
    environment. It changes nothing. It reports a part that is away and checks the rest.

    docs/runbook.md explains each check. The exit status is 1 if something must be mended.
    """
    has_to_mend = False
    found = []
    output = terminal()
    for name, diagnosis in diagnose(terminal(stderr=True)):
        has_to_mend |= diagnosis.verdict == Verdict.MEND
        found.append({"check": name, **asdict(diagnosis)})
        if not as_json:
            verdict = f"{diagnosis.verdict:<12}"
            output.print(verdict, style=STYLES[diagnosis.verdict], end="")
            output.print(f"{name}: {diagnosis.says}")
            if diagnosis.remedy:
                output.print(f"{'':12}-> {diagnosis.remedy}")
    if as_json:
        print_json(found)
    return 1 if has_to_mend else 0


def diagnose(progress: Console | None = None) -> Iterator[tuple[str, Diagnosis]]:
    """Carry out every check whose needs are met and yield its findings.

    Args:
        progress: Where the check under way is shown, if that is a terminal.
    """
    failed: set[str] = set()
    for check in CHECKS:
        missing = [need for need in check.needs if need in failed]
        if missing:
            failed.add(check.name)
            yield check.name, not_checked(f"it needs {' and '.join(missing)}")
            continue
        with progress.status(f"Looking at: {check.name}") if progress else nullcontext():
            said = list(_looked(check))
        for diagnosis in said:
            if diagnosis.verdict in (Verdict.MEND, Verdict.NOT_CHECKED):
                failed.add(check.name)
            yield check.name, diagnosis


def _looked(check: Check) -> Iterator[Diagnosis]:
    """Carry out one check and report its errors as findings."""
    try:
        yield from check.look()
    except Exception as error:
        reason = error.orig if isinstance(error, DBAPIError) else error
        yield mend(
            one_line(f"{type(error).__name__}: {reason}"),
            "see that it runs, and that the settings name it; then ask again",
        )
