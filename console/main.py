"""The command line ``checkout``: its subcommands, and what their errors look like.

A command returns its exit status: 0, or 1 where it was refused or has found something wrong. Wrong
usage is 2. Errors go to standard error with a remedy, never with a traceback for what may happen.
"""

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from console import audit, batch, compensations, doctor, drain, metrics, orders, queue, show
from console.errors import complain, without_traceback

WRONG_USAGE = 2

app = App(
    name="checkout",
    help="Look after the shop's orders. Every command is safe while workers run.",
    version_flags=[],
)
app.command(orders.submit)
app.command(orders.list_orders, name="list")
app.command(show.show)
app.command(orders.cancel)
app.command(orders.retry)
app.command(compensations.app)
app.command(batch.app)
app.command(audit.check_books, name="audit")
app.command(doctor.doctor)
app.command(metrics.metrics)
app.command(queue.redrive)
app.command(drain.drain)
app.command(drain.reopen)


def commands(of: App = app, above: str = "") -> dict[str, App]:
    """Return every command by the words that call it, those of groups included."""
    found: dict[str, App] = {above: of} if of.default_command else {}
    for name in of:
        if not name.startswith("-"):
            found |= commands(of[name], f"{above} {name}".strip())
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command; return the exit status.

    Args:
        arguments: Those of the command line, where it is left out.
    """
    try:
        return without_traceback(lambda: _carry_out(arguments))
    except CycloptsError as error:
        return complain(f"{error}\nSee checkout --help, or --help of the command.", WRONG_USAGE)


def _carry_out(arguments: Sequence[str] | None) -> int:
    status = app(
        arguments,
        exit_on_error=False,
        print_error=False,
        result_action="return_value",
    )
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    sys.exit(main())
