"""The command line ``checkout``: its subcommands, and what their errors look like.

A command returns its exit status: 0, or 1 where it was refused or has found something wrong. Wrong
usage is 2. Errors go to standard error with a remedy, never with a traceback for what may happen.
"""

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError
from pydantic import ValidationError
from sqlalchemy.exc import ArgumentError, DBAPIError

from console import audit, batch, compensations, doctor, drain, metrics, orders, queue, show
from console.output import terminal, wrong_fields
from flows.work_pool import SERVER_AWAY
from store.errors import StoreError

REFUSED = 1
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
        status = app(
            arguments,
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
        # Here, where it is noticed if nobody reads it any more.
        sys.stdout.flush()
    except CycloptsError as error:
        return _complain(f"{error}\nSee checkout --help, or --help of the command.", WRONG_USAGE)
    except ValidationError as error:
        return _complain("\n".join(wrong_fields(error)))
    except StoreError as error:
        return _complain(str(error))
    except DBAPIError as error:
        return _complain(
            f"The store's database cannot be used: {error.orig}\n"
            "Is it running, does STORE_DATABASE_URL name it, and has "
            "`python -m deployments.migrate` been run?"
        )
    except (ArgumentError, ModuleNotFoundError) as error:
        return _complain(
            f"There is no way to the store's database: {error}\n"
            "STORE_DATABASE_URL is postgresql+psycopg://… or sqlite:////absolute/path.db."
        )
    except SERVER_AWAY as error:
        return _complain(
            f"Prefect's server does not answer as it should: {error!r}\n"
            "Is it running, and does PREFECT_API_URL name it?"
        )
    except BrokenPipeError:
        # Who reads has had enough, as `head` has. Python writes what is left when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return REFUSED
    except OSError as error:
        return _complain(
            f"{error.filename}: {error.strerror}"
            if error.filename
            else error.strerror or str(error)
        )
    return status if isinstance(status, int) else 0


def _complain(message: str, status: int = REFUSED) -> int:
    terminal(stderr=True).print(message, style="red")
    return status


if __name__ == "__main__":
    sys.exit(main())
