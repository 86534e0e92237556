"""Many values at the cost of one: what Prefect and the garbage collector are spared."""

import gc

import pytest

from flows.batches.bulk import COLLECT_AFTER, few_collections


def collector() -> tuple[bool, int]:
    """Return whether objects are left out of collections, and at how many new ones it collects."""
    return gc.get_freeze_count() > 0, gc.get_threshold()[0]


def test_the_collector_leaves_out_what_is_there_until_the_end() -> None:
    usual = collector()
    assert usual != (True, COLLECT_AFTER)
    with few_collections():
        assert collector() == (True, COLLECT_AFTER)
    assert collector() == usual
    with pytest.raises(KeyError), few_collections():
        raise KeyError
    assert collector() == usual


def test_of_two_at_once_neither_leaves_the_collector_changed() -> None:
    usual = collector()
    first, second = few_collections(), few_collections()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert collector() == usual
