"""The command line `checkout` with its subcommands.

A command returns its exit status: 0, or 1 where it was refused or has found something wrong. Wrong
usage is 2. Errors go to standard error with a remedy, never with a traceback for what may happen.

A command's module is imported when the command is called, and ``checkout --help`` imports none:
Prefect and SQLAlchemy take seconds of a slow machine.
"""

import sys
from collections.abc import Sequence

from cyclopts import App

from terminal.command_line import Command

COMMANDS = {
    "submit": (
        "console.orders:submit",
        "Start the checkout of one order and print its id and link.",
    ),
    "list": ("console.listing:list_orders", "List orders, newest first, that match all options."),
    "show": ("console.show:show", "Show an order's state, next step and complete timeline."),
    "answer": ("console.answer:answer", "Answer waiting orders with a courier, or with none."),
    "form": ("console.answer:form", "Start a run with a form for a batch's waiting order."),
    "cancel": ("console.orders:cancel", "Cancel an order without a courier and compensate it."),
    "retry": ("console.orders:retry", "Begin a new attempt of a rejected or compensated order."),
    "compensations": (
        "console.compensations:app",
        "List failed undos with their amounts, errors and next tries.",
    ),
    "batch": ("console.batch:app", "Check many orders out in one run."),
    "stock": (
        "console.stock:app",
        "List books' copies, and record those that came in or are gone.",
    ),
    "audit": (
        "console.audit:check_books",
        "Audit stock, points, money, endings and records over the whole database.",
    ),
    "report": ("console.sales:report", "Report the orders, copies, points and money of a period."),
    "export": (
        "console.sales:export",
        "Print the orders accepted in a period, as CSV for a spreadsheet.",
    ),
    "archive": ("console.archive:app", "Move orders that ended long ago into files, one a month."),
    "doctor": (
        "console.doctor:doctor",
        "Check every part of the shop and print each fault's remedy.",
    ),
    "metrics": (
        "console.metrics:metrics",
        "Print the shop's metrics for Prometheus, serve them, or write a file.",
    ),
    "serve": ("console.serve:serve", "Serve the shop's front end by HTTP, until Ctrl-C."),
    "dispatcher": ("console.switches:dispatcher", "Switch the dispatcher off or on."),
    "online": (
        "console.switches:online",
        "Switch on or off the batch that carries orders as they come.",
    ),
    "dead-letters": ("console.queue:app", "List dead letters, redrive them or drop them."),
    "redrive": (
        "console.queue:redrive_all",
        "Redrive all dead letters, once their cause is mended.",
    ),
    "drain": (
        "console.drain:drain",
        "Pause the work pool and hand waiting orders over before workers stop.",
    ),
    "reopen": ("console.drain:reopen", "Resume a paused work pool and its orders."),
    "completion": (
        "console.completion:completion",
        "Print the completion of this command for a shell.",
    ),
}
"""Where each command is, and the first line of its help."""


def command_line(*, with_summaries: bool = False) -> App:
    """Return the command line.

    Args:
        with_summaries: For the help of the command line itself: its commands keep their first line
            only, and none is imported.
    """
    line = App(
        name="checkout",
        help="Look after the shop's orders. Every command is safe while workers run.",
        version_flags=[],
    )
    for name, (place, summary) in COMMANDS.items():
        line.command(place, name=name, help=summary if with_summaries else None)
    return line


def commands(of: App | None = None, above: str = "") -> dict[str, App]:
    """Return every command by its words, with those of groups."""
    line = of or command_line()
    found: dict[str, App] = {above: line} if line.default_command else {}
    for name in line:
        if not name.startswith("-"):
            found |= commands(line[name], f"{above} {name}".strip())
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command and return its exit status.

    Args:
        arguments: Those of the process's command line, if left out.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    asks_for_help = not words or words[0] in ("--help", "-h")
    return Command(command_line(with_summaries=asks_for_help))(words)


if __name__ == "__main__":
    sys.exit(main())
