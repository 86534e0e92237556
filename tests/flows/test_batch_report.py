"""The report of a batch: pictures, times that agree, and links to its failed orders."""

import re
from base64 import b64decode
from typing import Any
from xml.etree import ElementTree

import pytest
from prefect.settings import PREFECT_UI_URL, temporary_settings

from flows.batches.report import BatchReport, lasting, markdown, pace_in_words, rate
from orders.batches import FailedOrder
from orders.listening import Pace
from store.settings import settings
from tests.shop import NOWHERE
from texts.pictures import bars

REPORT = BatchReport(
    orders=12,
    by_status={"dispatched": 10, "compensated": 2},
    by_error={"BillingError": 2},
    captured_cents=20_00,
    refunded_cents=0,
    points_redeemed=0,
    points_restored=0,
    seconds=232.4,
    step_seconds={"bill_customer": 1.25},
    slowest_step="bill_customer",
    ended_by=[(30.0, 4), (231.9, 12)],
)


def drawn(data: str) -> ElementTree.Element:
    return ElementTree.fromstring(b64decode(data))  # noqa: S314  (the product's own picture)


@pytest.mark.usefixtures("database_url")
def test_a_report_has_pictures_and_times_from_the_batchs_own_start() -> None:
    text = markdown(REPORT, "run")
    assert "In 3 min 52 s, 3 orders a minute." in text
    pictures = re.findall(r"!\[(.*?)\]\(data:image/svg\+xml;base64,(.*?)\)", text)
    assert [told for told, _ in pictures] == [
        "Endings: dispatched 10, compensated 2",
        "Why orders failed: BillingError 2",
        "Orders that had ended: 30.0 s 4, 3 min 52 s 12",
        "Seconds in each step: bill_customer 1.2 s",
    ]
    for _, data in pictures:
        assert drawn(data).tag.endswith("svg")
    assert "█" not in text


@pytest.mark.parametrize(
    ("counts", "share"),
    [
        ({}, 2 / 12),
        ({"new": 12, "refused_orders": 1}, 2 / 12),
        ({"new": 2, "known": 3, "refused_orders": 5}, 0.5),
        ({"orders": 0, "by_status": {}, "known": 3, "refused_orders": 1}, 0.25),
        ({"orders": 0, "by_status": {}}, 0.0),
    ],
)
def test_a_files_rejected_orders_count_as_failed_where_they_are_the_larger_share(
    counts: dict[str, Any], share: float
) -> None:
    assert REPORT.model_copy(update=counts).failed_share == share


@pytest.mark.usefixtures("database_url")
def test_a_failed_order_is_linked_to_its_timeline_and_breaks_no_table() -> None:
    failed = [FailedOrder("A.1", "compensated", "BillingError", "declined | by\nthe bank")]
    with temporary_settings({PREFECT_UI_URL: "http://127.0.0.1:4200/v2"}):
        text = markdown(REPORT, "run", failed)
    assert re.search(
        r"\n\| \[A\.1\]\(http://127\.0\.0\.1:4200/v2/artifacts/key/order-a-1--[0-9a-f]{12}\) "
        r"\| BillingError: declined \\\| by the bank \|\n",
        text,
    )


@pytest.mark.parametrize(
    ("orders", "seconds", "told"),
    [
        (600, 2.0, ", 300 orders a second"),
        (12, 26.0, ", 28 orders a minute"),
        (12, 3600.0, ", 12 orders an hour"),
        (1, 7200.0, ""),
        (0, 1.0, ""),
        (3, 0.0, ""),
    ],
)
def test_a_rate_is_told_in_a_unit_in_which_it_is_not_nothing(
    orders: int, seconds: float, told: str
) -> None:
    assert rate(orders, seconds) == told


def test_the_pace_of_a_listening_batch_is_told_as_rate_and_latencies() -> None:
    assert pace_in_words(Pace(1_200, 0.84, 1.46)) == (
        "10 orders a second dispatched in the last 2 minutes, half within 0.8 s of their "
        "submission, 95 % within 1.5 s"
    )
    assert pace_in_words(Pace(0, 0.0, 0.0)) == "none dispatched in the last 2 minutes"


def test_a_length_of_time_is_told_in_minutes_where_it_has_some() -> None:
    assert [lasting(seconds) for seconds in (0.04, 59.2, 60, 231.9)] == [
        "0.0 s",
        "59.2 s",
        "1 min 0 s",
        "3 min 52 s",
    ]


def test_a_name_of_any_origin_is_text_in_a_picture() -> None:
    (data,) = re.findall("base64,(.*?)\\)", bars("<b>", {"<script>&": 1, "none": 0}))
    texts = [each.text for each in drawn(data).iter() if each.text]
    assert texts == ["<script>&", "1", "none", "0"]
    assert bars("nothing", {}) == ""
    assert bars("Net", {"of a day": 1_234_567}, " USD").startswith("![Net: of a day 1,234,567 USD]")


def test_the_bars_of_a_picture_are_as_long_as_their_values() -> None:
    (data,) = re.findall("base64,(.*?)\\)", bars("Seconds", {"one": 4.0, "two": 1.0}, " s"))
    picture = drawn(data)
    _background, *drawn_bars = (each for each in picture.iter() if each.tag.endswith("rect"))
    first, second = (int(each.attrib["width"]) for each in drawn_bars)
    assert first == 4 * second
    assert [each.text for each in picture.iter() if each.text] == ["one", "4.0 s", "two", "1.0 s"]


@pytest.mark.usefixtures("database_url")
def test_a_long_batch_is_drawn_at_a_dozen_moments_with_its_last() -> None:
    ended_by = [(float(second), second) for second in range(1, 36)]
    text = markdown(REPORT.model_copy(update={"ended_by": ended_by}), "run")
    (told,) = re.findall(r"!\[Orders that had ended: (.*?)\]", text)
    moments = told.split(", ")
    assert (len(moments), moments[0], moments[-1]) == (12, "2.0 s 2", "35.0 s 35")


@pytest.fixture
def database_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_DATABASE_URL", NOWHERE)
    settings.cache_clear()
