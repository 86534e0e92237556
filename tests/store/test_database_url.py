"""A database's URL that is wrong is explained with the remedy, and no part of it is quoted."""

import pytest
from pydantic import ValidationError
from sqlalchemy import make_url

from store.database_url import checked_database_url
from store.settings import settings

PASSWORD = "hunter2"  # noqa: S105
WRONG = [
    ("", "is empty"),
    (f"'postgresql+psycopg://shop:{PASSWORD}@db/store'", "quotation marks"),
    (f'"postgresql+psycopg://shop:{PASSWORD}@db/store"', "quotation marks"),
    (f"postgres://shop:{PASSWORD}@db/store", "begin it with postgresql+psycopg://"),
    (f"postgresql://shop:{PASSWORD}@db/store", "begin it with postgresql+psycopg://"),
    (f"sqlite:////srv/{PASSWORD}.db", "names a SQLite database, but the store needs PostgreSQL"),
    (f"mysql://shop:{PASSWORD}@db/store", "it must be postgresql"),
    (f"shop:{PASSWORD}@db/store", "it must be postgresql"),
    (f"postgresql+psycopg:shop:{PASSWORD}@db/store", "it must be postgresql"),
    (f"postgresql+psycopg://shop:a@{PASSWORD}@db/store", "write @ as %40"),
    (f"postgresql+psycopg://shop:a@/{PASSWORD}@db/store", "write @ as %40"),
    (f"postgresql+psycopg://shop:a@b:{PASSWORD}@db/store", "write @ as %40"),
    (f"postgresql+psycopg://db:{PASSWORD}/store", "port that is no number"),
    (f"postgresql+psycopg://shop:x@db:{PASSWORD}/store", "port that is no number"),
    (f"postgresql+psycopg://shop:{PASSWORD}@db:99999/store", "port that is no number"),
    (f"postgresql+psycopg://shop:{PASSWORD}@[::1/store", "it must be postgresql"),
]


@pytest.mark.parametrize(("url", "said"), WRONG)
def test_a_wrong_url_is_explained_and_not_quoted(
    monkeypatch: pytest.MonkeyPatch, url: str, said: str
) -> None:
    monkeypatch.setenv("STORE_DATABASE_URL", url)
    with pytest.raises(ValidationError) as refused:
        settings()
    assert said in str(refused.value)
    assert PASSWORD not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "password", "host"),
    [
        ("postgresql+psycopg://shop:p%40ss%3A%2F@db:5432/store", "p@ss:/", "db"),
        ("postgresql+psycopg://shop:p/s?s#@db/store", "p/s?s#", "db"),
        ("\ufeff postgresql+psycopg://shop:secret@[::1]/store\n", "secret", "::1"),
        ("postgresql+psycopg://postgres@/store?host=/tmp/a b", None, None),
    ],
)
def test_a_right_url_is_read_as_it_is_meant(
    url: str, password: str | None, host: str | None
) -> None:
    read = make_url(checked_database_url(url))
    assert (read.password, read.host) == (password, host)
