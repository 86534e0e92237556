"""The command line ``checkout``: its subcommands, and what their errors look like.

A command returns its exit status: 0, or 1 where it was refused or has found something wrong. Wrong
usage is 2. Errors go to standard error with a remedy, never with a traceback for what may happen.

A command's module is imported when the command is called, and ``checkout --help`` imports none:
Prefect and SQLAlchemy take seconds of a slow machine.
"""

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from terminal.output import complain

WRONG_USAGE = 2
COMMANDS = {
    "submit": (
        "console.orders:submit",
        "Start the checkout of one order, and print its id and the link to its run.",
    ),
    "list": (
        "console.listing:list_orders",
        "List orders, the newest first; with several options those that fit all of them.",
    ),
    "show": (
        "console.show:show",
        "Show one order: where it stands, what happens next, and everything that happened to it.",
    ),
    "cancel": (
        "console.orders:cancel",
        "Cancel an order that no courier has accepted, and give back all that it took.",
    ),
    "retry": (
        "console.orders:retry",
        "Try a rejected or compensated order again: a new attempt, charged under a new key.",
    ),
    "compensations": (
        "console.compensations:app",
        "List what could not be given back: what is at stake, why, and when it is tried again.",
    ),
    "batch": ("console.batch:app", "Check many orders out in one run."),
    "audit": (
        "console.audit:check_books",
        "Check the books over the whole database: stock, points, money, endings and records.",
    ),
    "doctor": (
        "console.doctor:doctor",
        "Look at every part of the shop, and say for each that it is well or what to do.",
    ),
    "metrics": (
        "console.metrics:metrics",
        "Give the shop's figures to Prometheus: print them, serve them, or write them to a file.",
    ),
    "dispatcher": (
        "console.dispatcher:app",
        "Switch off or on who seeks couriers for waiting orders.",
    ),
    "dead-letters": (
        "console.queue:app",
        "Look at the order queue's dead letters, put them back or drop them.",
    ),
    "redrive": (
        "console.queue:redrive_all",
        "Put the order queue's dead letters back into it, once their cause is mended.",
    ),
    "drain": (
        "console.drain:drain",
        "Close the work pool and hand the waiting orders over, so that workers can be stopped.",
    ),
    "reopen": (
        "console.drain:reopen",
        "Open a work pool that was closed: its workers get runs, and the orders go on.",
    ),
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
    """Return every command by the words that call it, those of groups included."""
    line = of or command_line()
    found: dict[str, App] = {above: line} if line.default_command else {}
    for name in line:
        if not name.startswith("-"):
            found |= commands(line[name], f"{above} {name}".strip())
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command; return the exit status.

    Args:
        arguments: Those of the command line, where it is left out.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        status = command_line(with_summaries=not words or words[0] in ("--help", "-h"))(
            words,
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
        # Here, where it is noticed if nobody reads it any more.
        sys.stdout.flush()
    except CycloptsError as error:
        return complain(f"{error}\nSee checkout --help, or --help of the command.", WRONG_USAGE)
    except Exception as error:
        from terminal.errors import status_of

        return status_of(error)
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    sys.exit(main())
