"""Flow runs on the test server: started in threads, watched and answered through its client."""

from collections.abc import Callable, Iterator

import pytest

from flows.batches import wait
from tests.flows.batches import Batches
from tests.flows.runs import Runs
from tests.polling import PATIENCE_SECONDS


@pytest.fixture
def runs(
    prefect_server: None, database: str, setting: Callable[[str, object], None]
) -> Iterator[Runs]:
    """What a test starts and looks at flow runs with; none is left waiting at its end."""
    setting("pause_poll_seconds", 1)
    setting("courier_timeout_seconds", int(PATIENCE_SECONDS))
    with Runs() as started:
        yield started


@pytest.fixture
def batches(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> Batches:
    """What a test starts and looks at batches with; they pause at once."""
    monkeypatch.setattr(wait, "PATIENCE_SECONDS", 0.0)
    return Batches(runs)
