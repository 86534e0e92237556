"""What a start under way prints: no silence in which it seems to hang."""

import io
import threading
from types import SimpleNamespace

import pytest
from rich.console import Console

from deployments import progress
from deployments.progress import Progress
from tests.polling import wait_until

SILENCE_SECONDS = 0.04


class Clock:
    """Stands still at one moment, and counts how often it was read."""

    def __init__(self) -> None:
        self.now = 0.0
        self.reads = 0

    def __call__(self) -> float:
        self.reads += 1
        return self.now

    def go_to(self, moment: float) -> None:
        """Let the watcher read this moment several times."""
        self.now = moment
        enough = self.reads + 5
        wait_until(lambda: self.reads > enough, "looks at the clock")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "SILENCE_SECONDS", SILENCE_SECONDS)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=clock))
    return clock


def test_what_is_under_way_is_told_again_once_after_each_silence(clock: Clock) -> None:
    printed = io.StringIO()
    tell = Progress(Console(file=printed))
    threads = threading.active_count()

    def repeats() -> int:
        return printed.getvalue().count("  still: Starting a worker (5 to 15 s) …")

    with tell.unbroken():
        tell("Starting a worker (5 to 15 s) …")
        clock.go_to(0.9 * SILENCE_SECONDS)
        assert repeats() == 0
        clock.go_to(1.0)
        assert repeats() == 1
        clock.go_to(1.0 + 1.1 * SILENCE_SECONDS)
        assert repeats() == 2
    assert threading.active_count() == threads
    told = printed.getvalue()
    tell("The worker is online")
    assert printed.getvalue().removeprefix(told).endswith("s  The worker is online\n")


def test_a_line_begins_the_silence_again(clock: Clock) -> None:
    printed = io.StringIO()
    tell = Progress(Console(file=printed))
    with tell.unbroken():
        for line in range(1, 4):
            clock.now = line * 0.9 * SILENCE_SECONDS
            tell(f"line {line}")
            clock.go_to(clock.now)
    assert "still" not in printed.getvalue()
