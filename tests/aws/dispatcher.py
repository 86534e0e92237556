"""The dispatcher's own two moves, without Prefect: what it would resume is noted down."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

from prefect.client.orchestration import SyncPrefectClient

from flows import dispatch
from flows.dispatch import DispatchReport, InHand
from store.partners import order_queue
from tasks.couriers import find_couriers
from tests.shop import Bare

PATIENCE_SECONDS = 0.5


@dataclass
class Dispatcher:
    """One dispatcher, with the messages that it has in hand."""

    report: DispatchReport = field(default_factory=DispatchReport)
    in_hand: dict[str, InHand] = field(default_factory=dict)
    resumed: list[dict[str, Any]] = field(default_factory=list)

    def take_in(self, messages: int) -> None:
        """Receive until so many have come; the test's own time limit ends it otherwise."""
        with closing(order_queue()) as queue:
            while self.report.received < messages:
                dispatch.take_in(queue, self.in_hand, PATIENCE_SECONDS, self.report)

    def look_after(self) -> None:
        """Look after everything in hand, due or not."""
        for held in self.in_hand.values():
            held.look_at = 0.0
        with (
            patch.object(dispatch, "find_couriers", Bare(find_couriers)),
            ThreadPoolExecutor(max_workers=2) as resumers,
        ):
            dispatch.look_after(
                order_queue(), self.in_hand, cast(SyncPrefectClient, self), resumers, self.report
            )

    def bodies(self) -> list[str]:
        return sorted(held.received.body for held in self.in_hand.values())

    def resume_flow_run(self, _run_id: object, run_input: dict[str, Any]) -> SimpleNamespace:
        """Stand in for Prefect's client."""
        self.resumed.append(run_input)
        return SimpleNamespace(status=SimpleNamespace(value="ACCEPT"))

    def read_flow_runs(self, **_: object) -> list[object]:
        """Stand in for Prefect's client: no run was cancelled."""
        return []

    def die(self) -> None:
        """Leave everything in hand alone; its visibility timeout passes at once."""
        order_queue().hide([held.received for held in self.in_hand.values()], seconds=0)
        self.in_hand.clear()
