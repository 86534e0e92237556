"""The flow ``audit_books``, the daily audit of I1 to I5."""

import logging
from datetime import datetime
from functools import partial

from prefect import flow, runtime
from prefect.artifacts import create_markdown_artifact
from pydantic import BaseModel

from flows.runs.names import name_by_day
from reports.audit import NOT_COMPARED, audit, is_compared_with_gateway
from reports.checkpoint import is_full_due, move_checkpoint, read_checkpoint, scope_of
from reports.notices import announce_audit
from store.checkpoint import AuditCheckpoint
from store.database import snapshot
from store.errors import BooksDoNotBalance, and_more
from store.models import utc_now

logger = logging.getLogger("store.audit")

TOLD = 100
"""Findings that an artifact and a notice show; `checkout audit` shows all of them."""


class AuditReport(BaseModel):
    """The number of findings and warnings, and the first of each.

    ``scope`` says which orders were audited.
    """

    scope: str
    findings: int = 0
    warnings: int = 0
    first_findings: list[str] = []
    first_warnings: list[str] = []


@flow(
    name="audit-books", flow_run_name=partial(name_by_day, "audit"), retries=0, persist_result=False
)
def audit_books(full: bool | None = None) -> AuditReport:
    """Check I1 to I5 in one snapshot of the database.

    Orders may be under way at the same time. Nothing of the shop is changed. What is found is
    published as the run's artifact; the shop's topic is told if something is off.

    Args:
        full: Whether to check all orders, or only those that have changed since the last clean
            audit. None checks all of them once a week. All are checked as well before anything
            is told to be off.

    Returns:
        The warnings, which are worth a look: orders that no run moves, for example. A report with
        findings is not returned.

    Raises:
        BooksDoNotBalance: something is off; the message says how much.
    """
    began_at = utc_now()
    report, since = _look(full, began_at)
    if report.findings and since is not None:
        # The checkpoint goes by the clocks of machines. Where one was hours off, it has counted too
        # little, and the shop would be told of books that balance.
        logger.warning("%d findings since the checkpoint; all orders are audited", report.findings)
        report, since = _look(True, began_at)
    _publish(report)
    if report.findings:
        raise BooksDoNotBalance(
            f"{report.findings} findings; the first is {report.first_findings[0]}"
        )
    if not move_checkpoint(since, began_at):
        logger.info("another audit or the archive moved the checkpoint; it is left as it is")
    return report


def _look(full: bool | None, began_at: datetime) -> tuple[AuditReport, AuditCheckpoint | None]:
    """Audit one snapshot and return the report with its checkpoint."""
    with snapshot() as session:
        since = None if full else read_checkpoint(session)
        if since is not None and full is None and is_full_due(since, began_at):
            since = None
        report = AuditReport(scope=scope_of(since))
        for finding in audit(session, since):
            if finding.is_warning:
                report.warnings += 1
                report.first_warnings += [str(finding)] if report.warnings <= TOLD else []
            else:
                report.findings += 1
                report.first_findings += [str(finding)] if report.findings <= TOLD else []
    return report, since


def _publish(report: AuditReport) -> None:
    """Publish the report as an artifact and a notice of its findings.

    A failure of one does not keep the other from being published.

    Whatever goes wrong here, the run still fails with what was found.
    """
    try:
        create_markdown_artifact(
            markdown=_markdown(report), key="audit", description="Audit of the books"
        )
    except Exception:
        logger.exception("the audit's report could not be published")
    if report.findings:
        try:
            announce_audit(report.first_findings, report.findings, str(runtime.flow_run.id))
        except Exception:
            logger.exception("the shop could not be told of the audit")


def _markdown(report: AuditReport) -> str:
    lines = [f"# Audit of {utc_now():%Y-%m-%d %H:%M} UTC: {report.scope}"]
    if not is_compared_with_gateway():
        lines += ["", NOT_COMPARED]
    for title, count, first in (
        ("Findings", report.findings, report.first_findings),
        ("Warnings", report.warnings, report.first_warnings),
    ):
        lines += ["", f"## {title}: {count}", "", *(f"- {line}" for line in first)]
        lines += [f"- {more}: `checkout audit`" for more in and_more(count - len(first))]
    return "\n".join(lines)
