"""Runs that belong to no single order are named in the shop's time zone."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from prefect import runtime

from flows.runs.names import name_by_day, name_by_time
from tests.shop import NOWHERE


@pytest.mark.parametrize(
    ("zone", "by_time", "by_day"),
    [
        ("UTC", "recovery 22:00", "audit 27 Nov"),
        ("Asia/Tokyo", "recovery 07:00", "audit 28 Nov"),
        ("America/New_York", "recovery 17:00", "audit 27 Nov"),
    ],
)
def test_a_run_is_named_by_its_start_in_the_time_zone_of_the_shop(
    setting: Callable[[str, object], None],
    monkeypatch: pytest.MonkeyPatch,
    zone: str,
    by_time: str,
    by_day: str,
) -> None:
    setting("database_url", NOWHERE)
    setting("timezone", zone)
    # Due later than now: a worker takes a run some seconds before it is due.
    due = datetime(2099, 11, 27, 22, tzinfo=UTC)
    monkeypatch.setitem(vars(runtime.flow_run), "scheduled_start_time", due)
    assert name_by_time("recovery") == by_time
    assert name_by_day("audit") == by_day
