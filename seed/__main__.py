"""Seeding of the shop's first data.

Doing it again changes nothing.
"""

import re
import sys
from typing import Annotated

from cyclopts import Parameter

from seed.catalogue import empty, put_catalogue, put_couriers, put_shop
from store.database import migrate
from store.models import ID_LENGTH
from store.settings import settings
from terminal.command_line import WRONG_USAGE, Flag, command
from terminal.numbers import WholeNumber
from terminal.output import complain, terminal


@command("python -m seed", __doc__)
def main(
    *,
    books: WholeNumber = 0,
    users: WholeNumber = 0,
    courier: Annotated[list[tuple[str, str]] | None, Parameter(negative="")] = None,
    reset: Flag = False,
    yes: Flag = False,
) -> int:
    """Seed the database that `STORE_DATABASE_URL` names.

    Args:
        books: Add so many titles for load.
        users: Add so many customers.
        courier: Put this courier, an id and how many copies it takes at a time, and no example
            data. May be given several times, and again to change the copies.
        reset: Delete everything first, orders too; asks.
        yes: Do not ask.
    """
    couriers = dict(courier or ())
    for id_, copies in couriers.items():
        is_name = 1 <= len(id_) <= ID_LENGTH and id_.isprintable() and id_ == id_.strip()
        if not is_name or not re.fullmatch("[0-9]{1,9}", copies):
            return complain(
                f"--courier takes an id of up to {ID_LENGTH} printable characters, without spaces "
                "around it, and a number",
                WRONG_USAGE,
            )
    output = terminal()
    migrate(settings().database_url)
    if reset:
        if not yes and not _is_to_be_deleted():
            return complain("Nothing was changed.")
        empty()
    if couriers:
        try:
            new = put_couriers({id_: int(copies) for id_, copies in couriers.items()})
        except ValueError as error:
            return complain(f"Nothing was changed: {error}.")
        output.print(
            f"{new} couriers are new, {len(couriers) - new} were there; each takes as many copies "
            "at a time as given."
        )
    else:
        new = put_shop()
        output.print(f"{new} rows are new; what was there already is as it was.")
    if books or users:
        new = put_catalogue(books, users)
        output.print(f"{new} rows of the catalogue for load are new.")
    return 0


def _is_to_be_deleted() -> bool:
    question = "Delete all books, customers, couriers, orders and their money records? Type yes: "
    try:
        return terminal().input(question) == "yes"
    except EOFError:
        return False


if __name__ == "__main__":
    sys.exit(main())
