"""``python -m seed``: puts the shop's first data; doing it again changes nothing."""

import argparse
import re
import sys

from seed.catalogue import empty, put_catalogue, put_couriers, put_shop
from store.database import migrate
from store.models import ID_LENGTH
from store.settings import settings
from terminal.errors import without_traceback
from terminal.numbers import whole_argument
from terminal.output import complain, terminal


def main() -> int:
    """Read the command line and seed the database that ``STORE_DATABASE_URL`` names.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m seed", description=__doc__)
    parser.add_argument(
        "--books", type=whole_argument, default=0, metavar="N", help="add N titles for load"
    )
    parser.add_argument(
        "--users", type=whole_argument, default=0, metavar="N", help="add N customers"
    )
    parser.add_argument(
        "--courier",
        nargs=2,
        action="append",
        metavar=("ID", "COPIES"),
        help="put this courier, who takes so many copies at a time, and no example data; may be "
        "given several times, and again to change the copies",
    )
    parser.add_argument(
        "--reset", action="store_true", help="delete everything first, orders too; asks"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    arguments = parser.parse_args()
    for id_, copies in arguments.courier or ():
        if not 1 <= len(id_) <= ID_LENGTH or not re.fullmatch("[0-9]{1,9}", copies):
            parser.error(f"--courier takes an id of up to {ID_LENGTH} characters, and a number")
    return without_traceback(lambda: _seed(arguments))


def _seed(arguments: argparse.Namespace) -> int:
    couriers = {id_: int(copies) for id_, copies in arguments.courier or ()}
    output = terminal()
    migrate(settings().database_url)
    if arguments.reset:
        if not arguments.yes and not _is_to_be_deleted():
            return complain("Nothing was changed.")
        empty()
    if couriers:
        try:
            new = put_couriers(couriers)
        except ValueError as error:
            return complain(f"Nothing was changed: {error}.")
        output.print(
            f"{new} couriers are new, {len(couriers) - new} were there; each takes as many copies "
            "at a time as given."
        )
    else:
        new = put_shop()
        output.print(f"{new} rows are new; what was there already is as it was.")
    if arguments.books or arguments.users:
        new = put_catalogue(arguments.books, arguments.users)
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
