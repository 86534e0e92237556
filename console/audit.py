"""The audit of the books, while the shop is open."""

from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

from reports.audit import NOT_COMPARED, Finding, audit, is_compared_with_gateway
from reports.checkpoint import read_checkpoint, scope_of
from store.database import snapshot
from terminal.output import AsJson, print_json, terminal


def check_books(
    *, changed: Annotated[bool, Parameter(negative=())] = False, as_json: AsJson = False
) -> int:
    """Audit stock, points, money, endings and records over the whole database.

    It sees one moment and holds up nobody. Each line is a book, a customer, an order, a charge or
    a courier that is off, with the invariant that it breaks (docs/runbook.md says what to do).
    A warning is an order that nobody seems to move any more. The exit status is 1 if something
    is off, 0 if there are warnings at most.

    Args:
        changed: Check only orders that have changed since the last clean run of `audit-books`,
            which takes as long after years of orders as after a day.
    """
    output = terminal()
    found: dict[bool, list[Finding]] = {False: [], True: []}
    counts = {False: 0, True: 0}
    with snapshot() as session:
        since = read_checkpoint(session) if changed else None
        for finding in audit(session, since):
            counts[finding.is_warning] += 1
            if as_json:
                found[finding.is_warning].append(finding)
            else:
                # At once, so that a million of them take no memory.
                output.print(str(finding))
    findings, warnings = counts[False], counts[True]
    if as_json:
        print_json(
            {
                "scope": scope_of(since),
                "findings": [asdict(finding) for finding in found[False]],
                "warnings": [asdict(warning) for warning in found[True]],
                "compared_with_gateway": is_compared_with_gateway(),
            }
        )
    else:
        if not is_compared_with_gateway():
            output.print(NOT_COMPARED)
        output.print(f"Audited: {scope_of(since)}. Findings: {findings}. Warnings: {warnings}.")
    return 1 if findings else 0
