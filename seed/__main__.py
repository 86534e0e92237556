"""``python -m seed``: puts the shop's first data; doing it again changes nothing."""

import argparse

from rich.console import Console

from seed.catalogue import empty, put_catalogue, put_shop
from store.database import migrate
from store.settings import settings


def main() -> None:
    """Read the command line and seed the database that ``STORE_DATABASE_URL`` names."""
    parser = argparse.ArgumentParser(prog="python -m seed", description=__doc__)
    parser.add_argument("--books", type=int, default=0, metavar="N", help="add N titles for load")
    parser.add_argument("--users", type=int, default=0, metavar="N", help="add N customers")
    parser.add_argument(
        "--reset", action="store_true", help="delete everything first, orders too; asks"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    arguments = parser.parse_args()
    if arguments.books < 0 or arguments.users < 0:
        parser.error("--books and --users take a number from 0")

    console = Console()
    migrate(settings().database_url)
    if arguments.reset:
        if (
            not arguments.yes
            and console.input(
                "Delete all books, customers, couriers, orders and their money records? Type yes: "
            )
            != "yes"
        ):
            parser.exit(1, "Nothing was changed.\n")
        empty()
    new = put_shop()
    if arguments.books or arguments.users:
        new += put_catalogue(arguments.books, arguments.users)
    console.print(f"{new} rows are new; what was there already is as it was.")


if __name__ == "__main__":
    main()
