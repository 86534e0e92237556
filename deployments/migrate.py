"""``python -m deployments.migrate``: brings the store's database to the newest version.

Nothing else is put into it, so it may run before each rollout, and while checkouts run.
"""

import argparse
import sys
from collections.abc import Sequence

from pydantic import ValidationError
from rich.console import Console
from sqlalchemy.exc import DBAPIError

from store.database import migrate, require_known_version, revisions
from store.errors import DatabaseVersionUnknown
from store.settings import settings
from store.wrong_input import described


def bring_up_to_date(url: str, *, check: bool = False) -> tuple[str, bool]:
    """Migrate the database at ``url``, unless it is at the newest version.

    Args:
        url: The database's address.
        check: Change nothing.

    Returns:
        What was found or done, in a line, and whether the database is at the newest version now.

    Raises:
        DatabaseVersionUnknown: its version is none that this code knows.
    """
    before, newest = revisions(url)
    if before == newest:
        return f"the database is at the newest version, {newest}", True
    if check:
        require_known_version(url)
        stand = f"is at version {before}" if before else "has no tables yet"
        return f"the database {stand}, the newest version is {newest}", False
    migrate(url)
    return f"migrated: {before or 'no tables'} -> {newest}", True


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deployments.migrate", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; status 1 if there is something to do"
    )
    options = parser.parse_args(arguments)
    try:
        told, is_newest = bring_up_to_date(settings().database_url, check=options.check)
    except ValidationError as error:
        return _fail("\n".join(described(error)))
    except (DatabaseVersionUnknown, NotADirectoryError) as error:
        return _fail(str(error))
    except DBAPIError as error:
        return _fail(
            f"the store's database cannot be used: {error.orig}\n"
            "Is it running, and does STORE_DATABASE_URL name it?"
        )
    _print(told)
    return 0 if is_newest else 1


def _fail(why: str) -> int:
    _print(why, stderr=True)
    return 1


def _print(line: str, *, stderr: bool = False) -> None:
    Console(stderr=stderr, soft_wrap=True, highlight=False).print(line, markup=False)


if __name__ == "__main__":
    sys.exit(main())
