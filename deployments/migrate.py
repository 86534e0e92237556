"""Migration of the store's database to the newest version.

Nothing else is put into it, so it may run before each rollout, and while checkouts run.
"""

import sys

from store.database import migrate, require_known_version, revisions
from store.settings import settings
from terminal.command_line import Flag, command
from terminal.output import terminal


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


@command("python -m deployments.migrate", __doc__)
def main(*, check: Flag = False) -> int:
    """Migrate the store's database.

    Args:
        check: Change nothing; status 1 if there is something to do.
    """
    told, is_newest = bring_up_to_date(settings().database_url, check=check)
    terminal().print(told)
    return 0 if is_newest else 1


if __name__ == "__main__":
    sys.exit(main())
