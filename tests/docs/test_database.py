"""The table of outages is that of the code."""

from store.outages import OUTAGES
from tests.docs.test_documents import table

MANUAL = "https://www.postgresql.org/docs/18/"


def test_each_outage_has_its_row_with_its_source() -> None:
    rows = table("docs/reliability.md ## Outages of the database", "SQLSTATE")
    assert rows == {
        code: [outage.why, f"[{outage.source.partition('.html')[0]}]({MANUAL}{outage.source})"]
        for code, outage in OUTAGES.items()
    }
