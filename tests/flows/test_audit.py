"""The daily audit: its run, its artifact, and who is told."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort
from sqlalchemy import text, update
from sqlmodel import Session

import console.audit
import flows.audit
from flows.audit import audit_books
from reports.checkpoint import MARGIN, move_checkpoint, read_checkpoint
from store.checkpoint import AuditCheckpoint
from store.database import reading, snapshot, transaction
from store.errors import BooksDoNotBalance
from store.models import utc_now
from store.table_topic import TableTopic
from tests.flows.runs import Runs
from tests.shop import notices, placed, set_order


def last_artifact(runs: Runs) -> str:
    found = runs.client.read_artifacts(
        artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["audit"])),
        sort=ArtifactSort.CREATED_DESC,
    )
    return str(found[0].data)


def test_an_audit_that_finds_nothing_completes_with_its_artifact(runs: Runs) -> None:
    placed("o-1", "dispatch_order")
    report = audit_books()
    assert (report.scope, report.findings, report.warnings) == ("all orders", 0, 0)
    assert "## Findings: 0" in last_artifact(runs)
    assert [key for key in notices() if key.startswith("audit")] == []


def test_all_orders_are_audited_once_a_week_and_otherwise_the_changed_ones(runs: Runs) -> None:
    placed("o-1", "dispatch_order")
    audit_books()
    with reading() as session:
        first = read_checkpoint(session)
    assert first is not None
    scope = f"orders changed since {first.before:%Y-%m-%d %H:%M} UTC"
    assert audit_books().scope == scope
    assert f": {scope}\n" in last_artifact(runs)
    assert audit_books(full=True).scope == "all orders"
    with transaction() as session:
        session.execute(update(AuditCheckpoint).values(full_at=utc_now() - timedelta(days=7)))
    assert audit_books(full=False).scope.startswith("orders changed since")
    assert audit_books().scope == "all orders"


def test_an_audit_counts_from_the_checkpoint_of_its_own_snapshot(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed("o-1", "dispatch_order", 3, redeem=True)
    audit_books()

    @contextmanager
    def after_another_audit() -> Iterator[Session]:
        with snapshot() as session:
            since = read_checkpoint(session)
        assert move_checkpoint(since, utc_now() + 2 * MARGIN)
        with snapshot() as session:
            yield session

    monkeypatch.setattr(flows.audit, "snapshot", after_another_audit)
    monkeypatch.setattr(console.audit, "snapshot", after_another_audit)
    assert console.audit.check_books(changed=True) == 0
    assert audit_books(full=False).findings == 0


def test_a_checkpoint_that_a_wrong_clock_has_set_makes_no_finding(runs: Runs) -> None:
    audit_books()
    with snapshot() as session:
        since = read_checkpoint(session)
    assert move_checkpoint(since, utc_now() + 3 * MARGIN)
    placed("o-1", "dispatch_order", 3, redeem=True)
    report = audit_books(full=False)
    assert (report.scope, report.findings) == ("all orders", 0)
    assert audit_books().scope.startswith("orders changed since")


def test_what_is_off_fails_the_run_and_the_shop_is_told(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed("o-1", "prepare_order")
    set_order("o-1", due_cents=7)
    try:
        state = audit_books(return_state=True)
        with monkeypatch.context() as fault:
            fault.setattr(TableTopic, "publish", _away)
            with pytest.raises(BooksDoNotBalance, match="2 findings"):
                audit_books()
    finally:
        set_order("o-1", due_cents=20_00)
    assert state.is_failed()
    assert "2 findings; the first is I3 due: order o-1 total 2000, 0 points" in (
        state.message or ""
    )
    assert "- I3 recorded: order o-1 billed" in last_artifact(runs)
    with transaction() as session:
        told = session.execute(
            text("SELECT subject, body FROM notifications WHERE key LIKE 'audit%'")
        ).all()
    assert [subject for subject, _ in told] == ["The books are off: 2 findings"]
    assert "I3 due: order o-1" in told[0][1]


def _away(*_: object) -> None:
    raise ConnectionError("the topic is away")
