"""The scheduled report on sales: its period, its artifact, and nobody's data in it."""

from base64 import b64decode
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import pytest
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort
from sqlalchemy import text

from flows.sales import Span, days_of, in_words, most_copies, net_by_day, report_sales
from reports.sales import Sales
from seed.catalogue import EDUARDO_SANTANA
from store.database import transaction
from store.models import utc_now
from tests.flows.runs import Runs
from tests.shop import end_run, placed


def test_the_sales_of_yesterday_are_an_artifact_with_pictures_and_no_customer(runs: Runs) -> None:
    placed("o-1", "dispatch_order", 2, redeem=True)
    placed("o-2", "prepare_order", 20)
    end_run("o-2")
    with transaction() as session:
        day = {"day": timedelta(days=1)}
        moments = "created_at = created_at - :day, updated_at = updated_at - :day"
        session.execute(text(f"UPDATE orders SET {moments}"), day)  # noqa: S608
        moments = "at = at - :day, undone_at = undone_at - :day"
        session.execute(text(f"UPDATE saga_log SET {moments}"), day)  # noqa: S608
    placed("o-3", "dispatch_order")
    message = report_sales()
    yesterday = (utc_now() - timedelta(days=1)).date()
    title = f"Sales of {yesterday.day} {yesterday:%b %Y}"
    assert message == f"{title}: 1 orders dispatched, net 0.00 USD"
    (artifact, *_) = runs.client.read_artifacts(
        artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["sales-yesterday"])),
        sort=ArtifactSort.CREATED_DESC,
    )
    assert artifact.description == message
    shown = str(artifact.data)
    assert shown.startswith(f"### {title}")
    assert "| USD | 2 | 0 | 1 | 1 | 2 | 40 | 400.00 USD | 400.00 USD | 0.00 USD |" in shown
    pictures = [b64decode(each.split(")")[0]).decode() for each in shown.split("base64,")[1:]]
    assert ["The 10X Rule" in picture for picture in pictures] == [True, False]
    assert "CheckoutFailed" in pictures[1]
    assert EDUARDO_SANTANA not in shown
    assert "Eduardo" not in shown + "".join(pictures)
    assert report_sales("last month").startswith("Sales of ")


def test_a_day_of_refunds_has_the_nearest_whole_unit_below_nothing() -> None:
    cents = {"2026-11-01": (19_99, 0), "2026-11-02": (0, 1_01), "2026-11-03": (5_00, 5_20)}
    rows = [
        Sales(day, currency, {"captured_cents": captured, "refunded_cents": refunded}, {})
        for day, (captured, refunded) in cents.items()
        for currency in ("EUR", "USD")
    ]
    assert net_by_day(rows, "USD") == {"2026-11-01": 20, "2026-11-02": -1, "2026-11-03": 0}


def test_books_whose_titles_begin_alike_have_bars_of_their_own() -> None:
    titles = {
        "b-1": "The Lord of the Rings: The Two Towers",
        "b-2": "The Lord of the Rings: The Return of the King",
        "b-3": "The Hobbit",
    }
    rows = [
        Sales(key, currency, {"copies": 2}, {}, title)
        for key, title in titles.items()
        for currency in ("EUR", "USD")
    ]
    assert most_copies(rows) == {"b-1": 4, "b-2": 4, "The Hobbit": 4}


@pytest.mark.parametrize(
    ("span", "moment", "first", "end", "name"),
    [
        ("yesterday", datetime(2027, 1, 1, 4, tzinfo=UTC), "2026-12-31", "2027-01-01", "31 Dec"),
        ("yesterday", datetime(2026, 12, 31, 16, tzinfo=UTC), "2026-12-31", "2027-01-01", "31 Dec"),
        ("last month", datetime(2027, 3, 1, 5, tzinfo=UTC), "2027-02-01", "2027-03-01", "February"),
        ("last month", datetime(2027, 1, 31, 5, tzinfo=UTC), "2026-12-01", "2027-01-01", "Decem"),
    ],
)
def test_a_scheduled_report_is_on_the_day_or_month_before_in_the_shops_zone(
    setting: Callable[[str, object], None],
    span: Span,
    moment: datetime,
    first: str,
    end: str,
    name: str,
) -> None:
    setting("database_url", "postgresql+psycopg://nobody@/store?host=/nowhere")
    setting("timezone", "Asia/Tokyo")
    period = days_of(span, moment)
    assert period[:2] == (date.fromisoformat(first), date.fromisoformat(end))
    assert in_words(period).startswith(name)
