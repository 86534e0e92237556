"""The progress and report of a batch, as people see them.

Nothing of it may ever fail an order, so whatever goes wrong here is logged and left.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from pydantic import BaseModel

from flows.order.events import TIMELINES_AT_MOST, publish_timelines, timeline_url
from orders.batches import FailedOrder, count_by_status, failed_orders, sums_of_run
from orders.intake import Intake
from orders.listening import PACE_SECONDS, Pace, pace_of_run
from orders.lookup import count_orders
from store.messages import money
from store.models import ENDED, Batch, OrderStatus, utc_now
from store.settings import settings
from texts.pictures import bars
from texts.words import markdown as in_markdown
from texts.words import section, shown_id

logger = logging.getLogger("store.batch")

FAILED_SHOWN = 500
"""Failed orders in the table at the run; `checkout batch failed` gives all of them."""
MESSAGE_SHOWN = 200
GONE = 100
"""Orders without a customer that the report names; its message counts all of them."""
SHOWN_EVERY_SECONDS = 1.0
LOOKING_SHARE = 20
BARS = 12

on_progress: ContextVar[Callable[[int, int], None] | None] = ContextVar("on_progress", default=None)
"""Called with the orders that have ended and all that there are, after each chunk."""


class Progress:
    """The progress of a batch, as an artifact and a terminal bar."""

    def __init__(self, batch: Batch, *, takes_submitted: bool) -> None:
        self._run_id = batch.run_id
        self._since = batch.started_at
        self._listens = batch.listens_until is not None
        self._takes_submitted = takes_submitted
        self._artifact: UUID | None = None
        self._shown: tuple[float, str] | None = None
        self._next_look = time.monotonic()
        self.ended: list[tuple[float, int]] = []
        """Seconds since the batch began, and how many orders had ended by then."""

    def show(self, at_once: bool = False) -> None:
        """Publish the batch's progress, counting a waiting order as half.

        Every order of the batch is counted for it, so it is done every second at most, and takes
        no more than a twentieth of the time however large the batch is; unless ``at_once``.
        """
        began = time.monotonic()
        if began < self._next_look and not at_once:
            return
        try:
            self._look()
        except Exception:
            logger.exception("the batch's progress could not be shown; it is not affected")
        took = time.monotonic() - began
        self._next_look = began + max(SHOWN_EVERY_SECONDS, LOOKING_SHARE * took)

    def _look(self) -> None:
        counts = count_by_status(self._run_id)
        ended = sum(counts.get(status, 0) for status in ENDED)
        passed = ended + 0.5 * sum(
            counts.get(status, 0) for status in (OrderStatus.WAITING, OrderStatus.DISPATCHING)
        )
        to_come = count_orders(OrderStatus.SUBMITTED) if self._takes_submitted else 0
        total = max(1, sum(counts.values()) + to_come)
        self.ended.append(((utc_now() - self._since).total_seconds(), ended))
        if (listener := on_progress.get()) is not None:
            listener(int(passed), total)
        share = round(100 * passed / total, 1)
        description = "The batch's orders"
        if self._listens:
            description = f"{description}: {pace_in_words(pace_of_run(self._run_id))}"
        if (share, description) == self._shown:
            return
        if self._artifact is None:
            created: Any = create_progress_artifact(
                progress=share, key="batch-progress", description=description
            )
            self._artifact = created
        else:
            update_progress_artifact(self._artifact, progress=share, description=description)
        self._shown = share, description


def pace_in_words(pace: Pace) -> str:
    """Return a batch's rate and latencies in a sentence."""
    minutes = f"the last {PACE_SECONDS // 60} minutes"
    if not pace.dispatched:
        return f"none dispatched in {minutes}"
    return (
        f"{rate(pace.dispatched, PACE_SECONDS).removeprefix(', ')} dispatched in {minutes}, half "
        f"within {pace.median_seconds:.1f} s of their submission, 95 % within "
        f"{pace.p95_seconds:.1f} s"
    )


class BatchReport(BaseModel):
    """What a batch has done. Money is cents, times are seconds."""

    orders: int
    by_status: dict[str, int]
    by_error: dict[str, int]
    captured_cents: int
    refunded_cents: int
    points_redeemed: int
    points_restored: int
    seconds: float
    step_seconds: dict[str, float]
    slowest_step: str
    ended_by: list[tuple[float, int]] = []
    source: str | None = None
    was_read: bool = False
    new: int = 0
    known: int = 0
    rejected_lines: int = 0
    refused_orders: int = 0
    rejects_file: str | None = None
    without_customer: list[str] = []
    rejects: list[tuple[int, str, str]] = []

    @property
    def failed_share(self) -> float:
        """Return the share of orders that no courier has accepted.

        Or that of the file's orders which were rejected, if it is larger: a file that is wrong
        throughout must not end well for the few orders that are left.
        """
        accepted = sum(
            self.by_status.get(status, 0)
            for status in (OrderStatus.DISPATCHED, OrderStatus.DISPATCHING)
        )
        in_file = self.new + self.known + self.refused_orders
        return max(
            (self.orders - accepted) / self.orders if self.orders else 0.0,
            self.refused_orders / in_file if in_file else 0.0,
        )

    @property
    def message(self) -> str:
        """Return the counts in one line."""
        endings = ", ".join(f"{count} {status}" for status, count in self.by_status.items())
        lines = f"; {self.rejected_lines} lines rejected" if self.rejected_lines else ""
        gone = len(self.without_customer)
        left = f"; {gone} not taken again, their customers are gone" if gone else ""
        return f"{self.orders} orders{f': {endings}' if endings else ''}{lines}{left}"


def report_on(
    batch: Batch, seconds: Mapping[str, float], intake: Intake | None, progress: Progress
) -> BatchReport:
    """Return the report on a batch that has nothing left to do."""
    sums = sums_of_run(batch.run_id)
    slowest_first = sorted(seconds, key=lambda step: -seconds[step])
    report = BatchReport(
        orders=sum(sums.by_status.values()),
        **asdict(sums),
        seconds=(utc_now() - batch.started_at).total_seconds(),
        step_seconds={step: round(seconds[step], 3) for step in slowest_first},
        slowest_step=slowest_first[0] if slowest_first else "",
        ended_by=progress.ended,
        source=batch.source,
    )
    if intake is not None:
        report.was_read = True
        report.new, report.known = intake.new, intake.known
        report.rejected_lines, report.rejects_file = intake.rejected, intake.rejects_file
        report.refused_orders = intake.refused
        report.rejects = [(each.line, each.field, each.reason) for each in intake.rejects]
    return report


def publish(report: BatchReport, run_id: str) -> None:
    """Publish the report and the table of failed orders as artifacts."""
    try:
        failed = failed_orders(run_id, limit=FAILED_SHOWN)
        linked = failed[:TIMELINES_AT_MOST]
        publish_timelines(each.order_id for each in linked)
        create_markdown_artifact(
            markdown(report, run_id, linked), key="batch-report", description=report.message
        )
        if failed:
            create_table_artifact(
                [
                    {
                        "order": each.order_id,
                        "status": each.status,
                        "error": each.error,
                        "message": each.message[:MESSAGE_SHOWN],
                    }
                    for each in failed
                ],
                key="batch-failed-orders",
                description=f"The first {len(failed)} orders that failed",
            )
    except Exception:
        logger.exception("the batch's report could not be published; its orders are done")


def markdown(report: BatchReport, run_id: str, failed: Sequence[FailedOrder] = ()) -> str:
    """Return the report as people read it.

    Args:
        report: The report.
        run_id: The batch's run.
        failed: The failed orders whose timelines are linked.
    """
    currency = settings().currency
    step_seconds = {step: round(spent, 1) for step, spent in report.step_seconds.items()}
    return "\n".join(
        [
            f"### {report.message}",
            "",
            f"In {lasting(report.seconds)}{rate(report.orders, report.seconds)}.",
            "",
            "| | |",
            "|---|---:|",
            f"| captured | {money(report.captured_cents, currency)} |",
            f"| refunded | {money(report.refunded_cents, currency)} |",
            f"| points redeemed | {report.points_redeemed} |",
            f"| points given back | {report.points_restored} |",
            *([f"| slowest step | {report.slowest_step} |"] if report.slowest_step else []),
            "",
            *section("Endings", bars("Endings", report.by_status)),
            *section("Why orders failed", bars("Why orders failed", report.by_error)),
            *section("Failed orders", *_failed(failed)),
            *section("Orders that had ended, over time", _over_time(report.ended_by)),
            *section(
                "Seconds in each step, parallel chunks added up",
                bars("Seconds in each step", step_seconds, " s"),
            ),
            *_intake(report),
            *section(
                "Not taken again: their customers are gone",
                ", ".join(f"`{shown_id(id_)}`" for id_ in report.without_customer[:GONE]),
            ),
            *(
                [f"All failed orders as CSV: `checkout batch failed {run_id}`"]
                if report.by_error
                else []
            ),
        ]
    )


def lasting(seconds: float) -> str:
    """Return a length of time as in ``3 min 52 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def rate(orders: int, seconds: float) -> str:
    """Return the rate in a unit with at least one order."""
    for unit, length in (("a second", 1), ("a minute", 60), ("an hour", 3600)):
        if seconds and (count := orders / seconds * length) >= 1:
            return f", {count:.0f} orders {unit}"
    return ""


def _failed(failed: Sequence[FailedOrder]) -> list[str]:
    if not failed:
        return []
    return [
        "| order | why |",
        "|---|---|",
        *(
            f"| [{shown_id(each.order_id)}]({timeline_url(each.order_id)}) | {each.error}: "
            f"{in_markdown(each.message[:MESSAGE_SHOWN])} |"
            for each in failed
        ),
    ]


def _over_time(ended_by: list[tuple[float, int]]) -> str:
    """Return a picture of the orders that had ended by some moments."""
    every = max(1, -(-len(ended_by) // BARS))
    moments = [*ended_by[::-1][::every]][::-1]
    return bars("Orders that had ended", {lasting(after): ended for after, ended in moments})


def _intake(report: BatchReport) -> list[str]:
    if report.source is None:
        return []
    if not report.was_read:
        return section(report.source, "Read to its end by an earlier execution of the run.")
    rows = [
        f"| {line} | {field} | {reason} |".replace("\n", " ")
        for line, field, reason in report.rejects
    ]
    return [
        f"#### {report.source}",
        "",
        f"{report.new} new orders, {report.known} known ones, {report.rejected_lines} lines "
        "rejected.",
        "",
        *(["| line | field | reason |", "|---:|---|---|", *rows, ""] if rows else []),
        *([f"All rejected lines: `{report.rejects_file}`", ""] if report.rejects_file else []),
    ]
