"""The one place where the URL of a database is read.

It holds a password, so what is said of a wrong one quotes no part of it.
"""

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

EXPLAINED = "it must be postgresql+psycopg://USER:PASSWORD@HOST:PORT/DATABASE"
ENCODING = (
    "in a user or a password write @ as %40, : as %3A, / as %2F, ? as %3F, # as %23 and % as %25"
)
DRIVER = "postgresql+psycopg"
HIGHEST_PORT = 65_535


def checked_database_url(text: str) -> str:
    """Check the URL of a database, as a setting has it.

    Args:
        text: The URL, with space or a byte order mark around it or not.

    Returns:
        The URL without those.

    Raises:
        ValueError: it is no URL of a database that the store can use; it says why, and the remedy,
            and quotes nothing of it.
    """
    given = text.strip().removeprefix("\ufeff").strip()
    if not given:
        raise ValueError(f"is empty; {EXPLAINED}")
    if given[0] in "\"'" or given[-1] in "\"'":
        raise ValueError("has quotation marks around it; leave them out")
    if given.startswith(("postgres://", "postgresql://")):
        raise ValueError(
            f"begins with {given.partition(':')[0]}://; begin it with postgresql+psycopg://"
        )
    if given.startswith("sqlite"):
        raise ValueError(
            f"names a SQLite database, but the store needs PostgreSQL; {EXPLAINED}, and `make up` "
            "brings one along"
        )
    if given.partition("://")[0] != DRIVER:
        raise ValueError(f"is no URL of a database that the store can use; {EXPLAINED}")
    if given.count("@") > 1:
        raise ValueError(f"has more than one @; {ENCODING}")
    try:
        url = make_url(given)
        port_is_possible = url.port is None or 1 <= url.port <= HIGHEST_PORT
    except ArgumentError:
        raise ValueError(f"cannot be read; {EXPLAINED}; {ENCODING}") from None
    except ValueError:
        port_is_possible = False
    if not port_is_possible:
        raise ValueError(
            f"has a port that is no number from 1 to {HIGHEST_PORT}; {EXPLAINED}; {ENCODING}"
        )
    return given
