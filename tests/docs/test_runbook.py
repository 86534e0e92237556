"""The runbook has a row for whatever may call somebody out of bed, and for nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import store.errors
from console.doctor import CHECKS
from docs.tables import errors_below
from reports.audit import checks
from store.models import OrderStatus
from tests.docs.test_documents import table
from tests.shop import NOWHERE

PROJECT_DIR = Path(__file__).resolve().parents[2]


def alerts() -> set[str]:
    document = yaml.safe_load((PROJECT_DIR / "deployments/prometheus/alerts.yml").read_text())
    return {rule["alert"] for group in document["groups"] for rule in group["rules"]}


def rows(section: str, first_column: str) -> dict[str, list[str]]:
    found = table(f"docs/runbook.md ## {section}", first_column)
    for name, cells in found.items():
        assert all(cells), f"{name} has an empty cell"
    return found


def test_every_alert_has_its_row() -> None:
    assert set(rows("Alerts", "Alert")) == alerts()


def test_every_status_has_its_row() -> None:
    assert set(rows("Statuses", "Status")) == set(OrderStatus)


def test_every_error_has_its_row() -> None:
    assert set(rows("Errors", "Error")) == {
        error.__name__ for error in errors_below(store.errors.StoreError)
    }


def test_every_check_of_the_doctor_has_its_row() -> None:
    assert set(rows("What the doctor says", "Check")) == {check.name for check in CHECKS}


def test_every_finding_of_the_audit_has_its_row(setting: Callable[[str, object], None]) -> None:
    setting("database_url", NOWHERE)
    assert set(rows("What the audit finds", "Finding")) == {
        rule.invariant for check in checks() for rule in check.rules
    }


@pytest.mark.parametrize("notice", rows("What the topic tells", "Notice"))
def test_every_notice_that_is_explained_is_sent(notice: str) -> None:
    sources = [path.read_text() for path in (PROJECT_DIR / "texts").glob("*.py")]
    assert any(f'"{notice}"' in source for source in sources)
