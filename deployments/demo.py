"""The four endings of an order on a real system, each checked.

    python -m deployments.demo [--keep]

Starts the local system in a throw-away folder, sends four orders through the deployment, shows
what became of each, and exits with 0 only if every outcome and every book is as expected. The
folder is kept where something went wrong, and by `--keep`.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from uuid import UUID

import httpx
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlmodel import Session

from deployments.example_order import EXAMPLE_ORDER
from deployments.holdings import Holdings, open_store, read_holdings
from deployments.local import CHECKOUT_DEPLOYMENT, DISPATCH_DEPLOYMENT, LocalSystem
from deployments.machine import SetupError, exit_on_signals
from deployments.prefect_server import PrefectServer
from deployments.progress import Progress
from seed.catalogue import JOHN_DOE, STRIPED_PAJAMAS, TEN_X_RULE
from store.messages import NO_COURIER, money
from store.models import BEFORE_PIVOT, ENDED, Order, OrderStatus
from store.payments import DECLINED_METHOD
from terminal.command_line import Flag, command

# Four runs at once start in 20 to 30 s on two busy cores; this is for far slower machines.
_ENDING_SECONDS = 240.0
_POLL_SECONDS = 0.3


@dataclass(frozen=True)
class Case:
    """An order to send, and the ending that it must have."""

    title: str
    order: dict[str, Any]
    status: OrderStatus
    error: str | None

    def order_id(self, run: FlowRun) -> str:
        """Return the case's order id, or the run's id without one."""
        return str(self.order.get("orderId", run.id))


CASES = (
    Case("the original's example", json.loads(EXAMPLE_ORDER), OrderStatus.DISPATCHED, None),
    Case(
        "an order that no courier takes",
        {"orderId": "no-courier", "userId": JOHN_DOE, "bookId": STRIPED_PAJAMAS, "quantity": 100},
        OrderStatus.COMPENSATED,
        "NoCourierAvailable",
    ),
    Case(
        "more copies than there are",
        {"orderId": "out-of-stock", "userId": JOHN_DOE, "bookId": TEN_X_RULE, "quantity": 501},
        OrderStatus.REJECTED,
        "BookOutOfStock",
    ),
    Case(
        "a payment that is declined",
        {
            "orderId": "declined",
            "userId": JOHN_DOE,
            "bookId": STRIPED_PAJAMAS,
            "quantity": 2,
            "redeem": True,
            "paymentMethod": DECLINED_METHOD,
        },
        OrderStatus.COMPENSATED,
        "BillingError",
    ),
)

NO_COURIER_TAKES_IT = {
    "outcome": NO_COURIER,
    "reason": "all couriers are snowed in",
    "answered_by": "the demo",
}
"""A person's answer to the order that has to find no courier."""

# What the first case takes, and nothing else: 50 copies, 300 points, 700.00.
_COPIES_SOLD = {"The 10X Rule": 50}
_POINTS_SPENT = {"Eduardo Santana": 300}
_KEPT_CENTS = 70_000


@dataclass(frozen=True)
class Ending:
    """A case with its run and its order, if one was recorded."""

    case: Case
    run: FlowRun
    order: Order | None

    @property
    def is_reached(self) -> bool:
        """Whether neither the run nor the order will change any more."""
        return (
            self.run.state_type in TERMINAL_STATES
            and self.order is not None
            and self.order.status in ENDED
        )

    @property
    def asks_for_courier(self) -> bool:
        """Whether the order comes as far as the wait for a courier."""
        return self.case.error in (None, "NoCourierAvailable")

    @property
    def waits(self) -> bool:
        """Whether the order has no answer yet."""
        return self.order is None or self.order.status in BEFORE_PIVOT

    @property
    def is_as_expected(self) -> bool:
        """Whether the order ended as its case expects."""
        order = self.order
        return order is not None and (order.status, order.error) == (
            self.case.status,
            self.case.error,
        )

    @property
    def actual(self) -> str:
        """The ending in words."""
        if self.order is None:
            return "no order recorded"
        return _ending(self.order.status, self.order.error)


def demonstrate(system: LocalSystem, progress: Progress) -> list[str]:
    """Send the orders and print how each ended.

    Returns:
        What was not as expected, a line for each; empty if all was.

    Raises:
        SetupError: a part of the system has ended by itself.
    """
    with system.api() as api, open_store(system.store_url) as session:
        before = read_holdings(session)
        progress(f"Prefect UI, while this runs: {system.ui_url}/v2/runs")
        # On a slow machine a dispatcher could come before the person's answer.
        api.pause(DISPATCH_DEPLOYMENT)
        runs = []
        for case in CASES:
            runs.append(api.start_run(CHECKOUT_DEPLOYMENT, {"order": case.order}))
            progress(f"Started: {case.title}")
        endings = _wait_for_endings(system, api, session, runs, progress)
        after = read_holdings(session)
        output = progress.console
        output.print()
        output.print(_endings_table(endings))
        _print_reasons(output, endings)
        table, wrong = compare(before, after)
        output.print(table)
    return [
        *(
            f"{ending.case.title}: {ending.actual}, not "
            f"{_ending(ending.case.status, ending.case.error)}"
            for ending in endings
            if not ending.is_as_expected
        ),
        *(f"{ending.case.title}: not ended" for ending in endings if not ending.is_reached),
        *wrong,
    ]


def _wait_for_endings(
    system: LocalSystem,
    api: PrefectServer,
    session: Session,
    runs: Sequence[FlowRun],
    progress: Progress,
) -> list[Ending]:
    """Return each order's ending, or its status at the deadline.

    Raises:
        SetupError: a part of the system has ended by itself.
    """
    shown: dict[UUID, str] = {}
    is_refused = is_dispatching = False
    deadline = time.monotonic() + _ENDING_SECONDS
    while True:
        system.require_running()
        session.rollback()
        session.expire_all()
        endings = [
            Ending(case, api.read_run(run.id), session.get(Order, case.order_id(run)))
            for case, run in zip(CASES, runs, strict=True)
        ]
        for ending in endings:
            if ending.order is None and ending.run.state_type not in TERMINAL_STATES:
                continue  # its process is starting
            status = ending.order.status if ending.order else str(ending.run.state_name).lower()
            if ending.run.state_name == "Paused" and status == OrderStatus.WAITING:
                status = "waiting for a courier, its run is paused"
            if shown.get(ending.run.id) != status:
                shown[ending.run.id] = status
                progress(f"{ending.case.title}: {status}")
        # Only now, so that the pauses can be seen: a courier is found within a second.
        asking = [ending for ending in endings if ending.asks_for_courier]
        if not is_refused and all(ending.run.state_name == "Paused" for ending in asking):
            for refused in (ending for ending in asking if ending.case.error is not None):
                if api.resume(refused.run.id, NO_COURIER_TAKES_IT) == "ACCEPT":
                    is_refused = True
                    progress(f"Answered: {refused.case.title}, as a person does in the UI's form")
        # And only after the answer is recorded: the dispatcher would find a courier.
        has_answer = all(not ending.waits for ending in asking if ending.case.error is not None)
        if is_refused and has_answer and not is_dispatching:
            is_dispatching = True
            api.unpause(DISPATCH_DEPLOYMENT)
            api.start_run(DISPATCH_DEPLOYMENT, {})
            progress("Started: dispatch_orders, which finds couriers and resumes the runs")
        if all(ending.is_reached for ending in endings) or time.monotonic() > deadline:
            return endings
        time.sleep(_POLL_SECONDS)


def _endings_table(endings: Sequence[Ending]) -> Table:
    table = Table("order", "ending", "", title="Endings")
    for ending in endings:
        expected = _ending(ending.case.status, ending.case.error)
        wrong = "" if ending.is_as_expected else f", not {expected}"
        table.add_row(ending.case.title, f"{ending.actual}{wrong}", _verdict(ending.is_as_expected))
    return table


def _print_reasons(output: Console, endings: Sequence[Ending]) -> None:
    """Print each order's cost, or its error."""
    for ending in endings:
        order = ending.order
        state = ending.run.state
        message = "" if state is None else state.message or ""
        said = message.removeprefix("Flow run encountered an exception: ")
        if order is not None and order.status == OrderStatus.DISPATCHED:
            due = money(order.due_cents or 0, order.currency)
            said = f"{order.points_redeemed} points redeemed, {due} charged."
        output.print(Text.assemble((f"{ending.case.title}: ", "bold"), said))


def compare(before: Holdings, after: Holdings) -> tuple[Table, list[str]]:
    """Return the table of balances and the lines that are wrong."""
    rows = [
        *(
            (f"copies of {title}", count, after.stock[title], count - _COPIES_SOLD.get(title, 0))
            for title, count in sorted(before.stock.items())
        ),
        *(
            (f"points of {name}", count, after.points[name], count - _POINTS_SPENT.get(name, 0))
            for name, count in sorted(before.points.items())
        ),
    ]
    table = Table("", "before", "after", "expected", "", title="Stock, points and money")
    wrong = []
    for what, was, now, expected in rows:
        table.add_row(what, str(was), str(now), str(expected), _verdict(now == expected))
        if now != expected:
            wrong.append(f"{what}: {now}, not {expected}")
    kept, expected_cents = after.kept_cents, before.kept_cents + _KEPT_CENTS
    cents = (before.kept_cents, kept, expected_cents)
    table.add_row(
        "captured minus refunded", *(_amount(each) for each in cents), _verdict(kept == cents[2])
    )
    captured, refunded = _amount(after.captured_cents), _amount(after.refunded_cents)
    table.caption = f"captured {captured}, refunded {refunded}"
    if kept != expected_cents:
        wrong.append(f"captured minus refunded: {_amount(kept)}, not {_amount(expected_cents)}")
    return table, wrong


def _amount(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02d}"


def _ending(status: str, error: str | None) -> str:
    return f"{status} ({error})" if error else status


def _verdict(is_right: bool) -> Text:
    return Text("ok", style="green") if is_right else Text("WRONG", style="bold red")


@command("python -m deployments.demo", __doc__)
def main(*, keep: Flag = False) -> int:
    """Run the demonstration and return 1 if an order ended wrongly.

    Args:
        keep: Keep databases and logs at the end.
    """
    progress = Progress(Console(emoji=False, highlight=False))
    progress("This takes a minute on a quiet machine, three on a busy one.")
    data_dir = Path(mkdtemp(prefix="store-demo-"))
    try:
        with (
            exit_on_signals(),
            progress.unbroken(),
            LocalSystem(data_dir, report=progress, durable=keep) as system,
        ):
            wrong = demonstrate(system, progress)
            keep = keep or bool(wrong)
    except (SetupError, httpx.HTTPError) as error:
        keep = True  # its logs say more
        progress.console.print(Text(str(error) or repr(error), style="red"), soft_wrap=True)
        return 1
    finally:
        if keep:
            progress(f"Kept: {data_dir} (python -m deployments.up --data {data_dir})")
        else:
            shutil.rmtree(data_dir, ignore_errors=True)
    for line in wrong:
        progress.console.print(Text(line, style="bold red"))
    if not wrong:
        progress.console.print(
            Text("All four orders ended as they must, and the books balance.", style="bold green")
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
