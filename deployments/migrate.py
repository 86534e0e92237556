"""``python -m deployments.migrate``: brings the store's database to the newest version.

Nothing else is put into it, so it may run before each rollout, and while checkouts run.
"""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from store.database import migrate, revisions
from store.settings import settings


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deployments.migrate", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; status 1 if there is something to do"
    )
    options = parser.parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False)
    url = settings().database_url
    before, newest = revisions(url)
    if before == newest:
        console.print(f"the database is at the newest version, {newest}")
    elif options.check:
        stand = f"is at version {before}" if before else "has no tables yet"
        console.print(f"the database {stand}, the newest version is {newest}")
        return 1
    else:
        migrate(url)
        console.print(f"migrated: {before or 'no tables'} -> {newest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
