"""The command line of batches: submit orders, run a batch with a progress bar, list what failed."""

import csv
import sys
from pathlib import Path

from cyclopts import App
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from flows.batch import CHUNK_SIZE, CONCURRENCY, batch_checkout
from flows.batch_report import on_progress
from store.errors import RefusedOrder, StoreError
from store.messages import CheckoutOrder
from tasks.batches import failed_orders
from tasks.intake import load_orders, submit_orders

app = App(name="python -m flows.batch", help="Many orders in one run.", version_flags=[])
console = Console(stderr=True)


@app.command
def submit(source: str) -> int:
    """Record orders ahead of a batch: one, or those of a file. Submitting twice changes nothing.

    Args:
        source: A JSONL or CSV file, `s3://bucket/key`, or one order as JSON.
    """
    if source.lstrip().startswith("{"):
        (answer,) = submit_orders([CheckoutOrder.model_validate_json(source)])
        if isinstance(answer, RefusedOrder):
            console.print(f"refused: {answer}", style="red")
            return 1
        console.print("submitted" if answer else "known already; nothing changed")
        return 0
    try:
        intake = load_orders.fn(source)
    except StoreError as error:
        console.print(str(error), style="red")
        return 1
    console.print(f"{intake.new} new, {intake.known} known, {intake.rejected} lines rejected")
    for each in intake.rejects:
        console.print(f"  line {each.line}: {each.field}: {each.reason}", highlight=False)
    if intake.rejects_file:
        console.print(f"  all of them: {intake.rejects_file}")
    return 1 if intake.rejected else 0


@app.command
def run(
    source: str | None = None,
    *,
    failed_of: str | None = None,
    chunk_size: int = CHUNK_SIZE,
    concurrency: int = CONCURRENCY,
    tolerated_failures: float = 0.25,
) -> int:
    """Carry out all submitted orders in this process, with a progress bar.

    Args:
        source: A file whose orders are submitted first.
        failed_of: A run whose failed orders are taken again, and no others.
        chunk_size: How many orders go through a step together.
        concurrency: How many chunks are under way at the same time.
        tolerated_failures: The share of orders that may fail.
    """
    columns = (TextColumn("orders"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        orders = bar.add_task("orders", total=None)
        token = on_progress.set(lambda done, total: bar.update(orders, completed=done, total=total))
        try:
            state = batch_checkout(
                source=source,
                failed_of=failed_of,
                chunk_size=chunk_size,
                concurrency=concurrency,
                tolerated_failures=tolerated_failures,
                return_state=True,
            )
        finally:
            on_progress.reset(token)
    console.print(state.message, style="green" if state.is_completed() else "red")
    return 0 if state.is_completed() else 1


@app.command
def failed(run_id: str, *, to: Path | None = None) -> int:
    """Write the failed orders of a batch's run as CSV.

    Args:
        run_id: The flow run's id.
        to: The file to write; left out, standard output.
    """
    with to.open("w", newline="") if to else sys.stdout as file:
        writer = csv.writer(file)
        writer.writerow(["orderId", "status", "error", "reason"])
        last = ""
        while page := failed_orders(run_id, after=last):
            for each in page:
                writer.writerow([each.order_id, each.status, each.error, each.message])
            last = page[-1].order_id
    return 0
