"""The commands for many orders in one run."""

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from console.orders import order_from_json
from flows.batch import batch_checkout
from flows.batches.limits import (
    CHUNK_SIZE,
    CHUNK_SIZE_AT_MOST,
    CONCURRENCY,
    CONCURRENCY_AT_MOST,
    TOLERATED_FAILURES,
)
from flows.batches.report import BatchReport, on_progress
from flows.runs.order_runs import prefect_client
from orders.batches import FailedOrder, failed_orders, require_batch
from orders.intake import Intake, load_orders, submit_orders
from store.errors import RefusedOrder
from terminal.numbers import Share, WholeNumber
from terminal.output import AsJson, print_answer, print_json, terminal
from terminal.rows import write_csv

ChunkSize = Annotated[WholeNumber, Parameter(validator=Number(gte=1, lte=CHUNK_SIZE_AT_MOST))]
Concurrency = Annotated[WholeNumber, Parameter(validator=Number(gte=1, lte=CONCURRENCY_AT_MOST))]
LineItems = Annotated[bool, Parameter(negative="")]

app = App(name="batch", help="Check many orders out in one run.")


@app.command
def submit(source: str, /, *, line_items: LineItems = False, as_json: AsJson = False) -> int:
    """Submit orders for the next batch.

    One order as JSON, or those of a file. Submitting twice changes nothing.

    An invalid line is reported with its field and reason, and the others are recorded; the exit
    status is then 1.

    Args:
        source: A JSONL or CSV file, s3://bucket/key, or one order as JSON.
        line_items: The file has a line for each title: lines that follow each other with one
            orderId are one order.
    """
    if source.lstrip().startswith("{"):
        (answer,) = submit_orders([order_from_json(source)])
        if isinstance(answer, RefusedOrder):
            raise answer
        return print_answer(
            _as_data(Intake(source, new=int(answer), known=int(not answer))),
            "submitted" if answer else "known already; nothing changed",
            as_json=as_json,
        )
    intake = load_orders.fn(source, line_items=line_items)
    print_answer(
        _as_data(intake),
        f"{intake.new} new, {intake.known} known, {intake.rejected} lines rejected",
        *(
            f"  line {each.line}: {f'{each.field}: ' if each.field else ''}{each.reason}"
            for each in intake.rejects
        ),
        f"  all of them: {intake.rejects_file}" if intake.rejects_file else "",
        as_json=as_json,
    )
    return 1 if intake.rejected else 0


def _as_data(intake: Intake) -> dict[str, Any]:
    return {
        "new": intake.new,
        "known": intake.known,
        "rejected_lines": intake.rejected,
        "rejects": [asdict(each) for each in intake.rejects],
        "rejects_file": intake.rejects_file,
    }


@app.command
def run(
    source: str | None = None,
    /,
    *,
    failed_of: str | None = None,
    line_items: LineItems = False,
    chunk_size: ChunkSize = CHUNK_SIZE,
    concurrency: Concurrency = CONCURRENCY,
    tolerated_failures: Share = TOLERATED_FAILURES,
    as_json: AsJson = False,
) -> int:
    """Check out all submitted orders in this process, with a progress bar.

    It ends once every order has ended. The exit status is 1 if more orders failed than are
    tolerated; completed orders stay completed.

    Args:
        source: A file whose orders are submitted first.
        line_items: The file has a line for each title: lines that follow each other with one
            orderId are one order.
        failed_of: The id of an earlier run; only its failed orders are retried.
        chunk_size: How many orders go through a step together.
        concurrency: How many chunks are under way at the same time.
        tolerated_failures: The share of orders, from 0 to 1, that may fail.
    """
    if source and failed_of:
        raise CycloptsError(msg=f"Give {source} or --failed-of, not both.")
    if line_items and not source:
        raise CycloptsError(msg="Give --line-items with a file; it says how the file is read.")
    if failed_of:
        require_batch(failed_of)
    output = terminal(stderr=True)
    columns = (TextColumn("orders"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Where no server is named, Prefect would start one for this run alone.
    with prefect_client(patient=True), Progress(*columns, console=output) as bar:
        orders = bar.add_task("orders", total=None)
        token = on_progress.set(lambda done, total: bar.update(orders, completed=done, total=total))
        try:
            state = batch_checkout(
                source=source,
                line_items=line_items,
                failed_of=failed_of,
                chunk_size=chunk_size,
                concurrency=concurrency,
                tolerated_failures=tolerated_failures,
                return_state=True,
            )
        finally:
            on_progress.reset(token)
    output.print(state.message, style="green" if state.is_completed() else "red")
    if as_json:
        result = state.result(raise_on_failure=False)
        report = result.model_dump(mode="json") if isinstance(result, BatchReport) else None
        print_json({"state": state.name, "message": state.message, "report": report})
    return 0 if state.is_completed() else 1


@app.command
def failed(run_id: str, /, *, to: Path | None = None, as_json: AsJson = False) -> int:
    """List the failed orders of a batch's run, as CSV.

    Args:
        run_id: The id of the batch's flow run.
        to: The file to write; default: standard output.
    """
    require_batch(run_id)
    if as_json:
        print_json([asdict(each) for page in _pages(run_id) for each in page])
        return 0
    with to.open("w", newline="", encoding="utf-8") if to else nullcontext(sys.stdout) as file:
        write_csv(
            file,
            ("orderId", "status", "error", "message"),
            ({"orderId": e.order_id, **asdict(e)} for page in _pages(run_id) for e in page),
        )
    return 0


def _pages(run_id: str) -> Iterator[list[FailedOrder]]:
    last = ""
    while page := failed_orders(run_id, after=last):
        yield page
        last = page[-1].order_id
