"""Pausing and resuming of the work pool."""

from shlex import quote
from typing import Annotated

from cyclopts import Parameter

from flows.actions import drain as pools
from flows.runs.order_runs import prefect_client
from terminal.numbers import WholeNumber
from terminal.output import AsJson, print_answer, print_json, print_table, terminal

Pool = Annotated[
    str | None, Parameter(help="The work pool; without it, that of the checkout's deployment.")
]
NOT_DRAINED = 1


def drain(
    *,
    pool: Pool = None,
    timeout: Annotated[WholeNumber, Parameter(help="How many seconds to wait at most.")] = 600,
    as_json: AsJson = False,
) -> int:
    """Pause the work pool and hand waiting orders over before workers stop.

    It ends once no run of the pool has a process, or with status 1 at the time limit. The pool
    stays paused until `checkout reopen`.
    """
    progress = terminal(stderr=True)
    with prefect_client(patient=True) as client:
        name = pool or pools.pool_of_checkouts(client)
        again = f"checkout reopen --pool {quote(name)}"
        progress.print(f"Pausing work pool {name}; `{again}` resumes it.")
        report = pools.drain(
            client, name, timeout, lambda what: progress.print(f"Under way: {what}")
        )
    if as_json:
        print_json(report.model_dump())
    else:
        _print(report)
    return 0 if report.drained else NOT_DRAINED


def reopen(*, pool: Pool = None, as_json: AsJson = False) -> int:
    """Resume a paused work pool and its orders."""
    with prefect_client() as client:
        report = pools.reopen(client, pool or pools.pool_of_checkouts(client))
    said = (
        f"Work pool {report.pool} is resumed. Orders whose wait was prolonged: {report.prolonged}"
        if report.was_closed
        else f"Work pool {report.pool} was not paused."
    )
    return print_answer(report.model_dump(), said, as_json=as_json)


def _print(report: pools.DrainReport) -> None:
    if not report.drained:
        print_table(
            "Still under way",
            ["run", "flow", "state", "id"],
            ([run.name, run.flow, run.state, run.id] for run in report.under_way),
            empty="No run has a process, but not for long enough.",
            expendable=["id", "flow"],
        )
    lines = [
        f"Work pool {report.pool} is paused"
        + ("; its workers can be stopped." if report.drained else ", and NOT drained: time is up."),
        f"Suspended runs, open to an answer: {report.suspended}",
        f"Runs that start when it is resumed: {report.scheduled}",
    ]
    if report.giving_back:
        lines.append(f"Orders that are being compensated: {report.giving_back}")
    if report.first_wait_ends is not None:
        lines.append(
            f"The first order waits for its courier until {report.first_wait_ends:%Y-%m-%d %H:%M} "
            "UTC."
        )
    terminal().print("\n".join(lines))
