"""Searches for runs in Prefect, with its filters and its pages."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort

PAGE = 200
"""The most runs that Prefect's API returns at once."""


def in_state(*types: StateType, not_named: Sequence[str] = (), **more: Any) -> FlowRunFilter:
    """Return the filter of runs in states of these types.

    Args:
        types: The types.
        not_named: Names of states of these types that are left out.
        more: Other parts of the filter.
    """
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))
    if not_named:
        state.name = FlowRunFilterStateName(not_any_=list(not_named))
    return FlowRunFilter(state=state, **more)


def in_state_named(*names: str) -> FlowRunFilter:
    """Return the filter of runs in states of these names."""
    return FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=list(names))))


def of_flows(*names: str) -> FlowFilter:
    """Return the filter of these flows."""
    return FlowFilter(name=FlowFilterName(any_=list(names)))


def of_pool(name: str) -> WorkPoolFilter:
    """Return the filter of this work pool."""
    return WorkPoolFilter(name=WorkPoolFilterName(any_=[name]))


def all_runs(
    client: SyncPrefectClient, *, sort: FlowRunSort = FlowRunSort.ID_DESC, **filters: Any
) -> Iterator[FlowRun]:
    """Yield the runs of all pages.

    Args:
        client: Prefect's client.
        sort: Their order.
        filters: As for Prefect's `read_flow_runs`.
    """
    for offset in count(step=PAGE):
        page = client.read_flow_runs(sort=sort, limit=PAGE, offset=offset, **filters)
        yield from page
        if len(page) < PAGE:
            return


def runs_among(
    client: SyncPrefectClient, run_ids: Sequence[str], *types: StateType
) -> Iterator[FlowRun]:
    """Yield those of the runs that Prefect has.

    Args:
        client: Prefect's client.
        run_ids: The runs.
        types: The types of their states; left out, any.
    """
    for start in range(0, len(run_ids), PAGE):
        among = FlowRunFilterId(any_=[UUID(id_) for id_ in run_ids[start : start + PAGE]])
        wanted = in_state(*types, id=among) if types else FlowRunFilter(id=among)
        yield from client.read_flow_runs(flow_run_filter=wanted, limit=PAGE)
