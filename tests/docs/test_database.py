"""The tables of outages and of sessions' limits are those of the code."""

from store import sessions
from store.outages import OUTAGES
from store.sessions import Limits
from tests.docs.test_documents import table

MANUAL = "https://www.postgresql.org/docs/18/"


def test_each_outage_has_its_row_with_its_source() -> None:
    rows = table("docs/reliability.md ## Outages of the database", "SQLSTATE")
    assert rows == {
        code: [outage.why, f"[{outage.source.partition('.html')[0]}]({MANUAL}{outage.source})"]
        for code, outage in OUTAGES.items()
    }


def test_each_kind_of_session_has_its_row_with_its_limits() -> None:
    rows = table("docs/settings.md ## Limits of a database session", "Session")
    assert {name: [int(cell) for cell in cells[1:]] for name, cells in rows.items()} == {
        name: list(value) for name, value in vars(sessions).items() if isinstance(value, Limits)
    }
