"""What a start under way prints: no silence in which it seems to hang."""

import io

import pytest
from rich.console import Console

from deployments import progress
from deployments.progress import Progress
from tests.polling import wait_until


def test_what_is_under_way_is_told_again_after_some_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "SILENCE_SECONDS", 0.05)
    printed = io.StringIO()
    tell = Progress(Console(file=printed))
    with tell.unbroken():
        tell("Starting a worker (5 to 15 s) …")
        wait_until(lambda: "  still: Starting a worker (5 to 15 s) …" in printed.getvalue(), "word")
    told = printed.getvalue()
    tell("The worker is online")
    assert printed.getvalue().removeprefix(told).endswith("s  The worker is online\n")


def test_where_something_is_told_all_the_time_nothing_is_added() -> None:
    printed = io.StringIO()
    tell = Progress(Console(file=printed))
    with tell.unbroken():
        tell("one")
        tell("two")
    assert "still" not in printed.getvalue()
