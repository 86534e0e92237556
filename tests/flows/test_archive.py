"""The monthly archival, and Retry on the run of an order that it has moved."""

from pathlib import Path

import pytest

from flows.archive import archive_orders
from store.errors import ArchiveRefused, OrderArchived
from tests.flows.runs import Runs
from tests.shop import LONG_AGO, an_order, end_at


def test_retry_on_the_run_of_an_archived_order_is_refused(runs: Runs, tmp_path: Path) -> None:
    order = an_order("o-1", 10_000)
    assert runs.check_out(order).result(60).is_failed()
    end_at(LONG_AGO, "o-1")
    (done,) = archive_orders(str(tmp_path))
    assert (done.month, done.orders) == ("2024-05", 1)
    run = runs.run_of("o-1")
    again = runs.retry(run, order).result(60)
    assert again.is_failed()
    with pytest.raises(OrderArchived, match="ended long ago and is archived"):
        again.result()


def test_an_archival_without_a_place_is_refused(runs: Runs) -> None:
    with pytest.raises(ArchiveRefused, match="to: there is no folder"):
        archive_orders()
