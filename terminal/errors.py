"""Expected errors as text for people, with their remedy."""

import os
import sys

from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError

from store.database import require_known_version
from store.errors import DatabaseVersionUnknown, StoreError
from store.outages import sqlstate_of, why_it_passes
from store.settings import settings
from store.wrong_input import described
from terminal.output import complain

READER_LEFT = 141
"""What a shell shows of any program that SIGPIPE has ended; nothing was refused or found wrong."""


def status_of(error: Exception) -> int:
    """Print an expected error's remedy and return the exit status.

    Raises:
        Exception: the error is a defect.
    """
    if isinstance(error, BrokenPipeError):
        # Who reads has had enough, as `head` has. Python writes what is left when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_LEFT
    told = _explained(error)
    if told is None:
        raise error
    return complain(told)


def _unknown_version() -> str:
    """Return the text about an unknown database version, else an empty one."""
    try:
        require_known_version(settings().database_url)
    except DatabaseVersionUnknown as error:
        return str(error)
    except DBAPIError:
        return ""  # it is away, which is what has happened
    return ""


def _explained(error: Exception) -> str | None:
    match error:
        case ValidationError():
            return "\n".join(described(error))
        case StoreError():
            return str(error)
        case DBAPIError():
            why = why_it_passes(sqlstate_of(error) or "")
            return _unknown_version() or f"The store's database cannot be used: {error.orig}\n" + (
                f"It passes: {why}. Try again; `checkout doctor` looks closer."
                if why
                else "Is it running, does STORE_DATABASE_URL name it, and has "
                "`python -m deployments.migrate` been run?"
            )
        case ModuleNotFoundError():
            return f"The Python package {error.name} is missing; install it."
        case OSError() if error.filename:
            return f"{error.filename}: {error.strerror}"
        case OSError():
            return error.strerror or str(error)
    # Prefect takes a second to import, which only its own errors are worth.
    from flows.runs.work_pool import SERVER_AWAY

    if isinstance(error, SERVER_AWAY):
        return (
            f"Prefect's server does not answer as it should: {error!r}\n"
            "Is it running, and does PREFECT_API_URL name it?"
        )
    return None
