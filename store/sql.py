"""Expressions of PostgreSQL for queries that are written as text."""

from collections.abc import Sequence


def field(column: str, name: str) -> str:
    """Return a field of a JSON object as text."""
    return f"({column} ->> '{name}')"


def value(column: str, name: str) -> str:
    """Return a field of a JSON object, compared by value.

    It is NULL where the field is missing or null.
    """
    return f"NULLIF(CAST({column} -> '{name}' AS JSONB), 'null')"


def number(column: str, name: str) -> str:
    """Return a field of a JSON object as a whole number."""
    return f"CAST({field(column, name)} AS BIGINT)"


def number_at(column: str, name: str, key: str) -> str:
    """Return a whole number at ``key`` in a JSON object's field."""
    return f"CAST({column} -> '{name}' ->> {key} AS BIGINT)"


def size(column: str, name: str) -> str:
    """Return how many fields the JSON object has that is a field.

    Not by unfolding it into rows, for which PostgreSQL keeps some memory until the query's end.
    """
    pairs = f"jsonb_path_query_array(CAST({column} AS JSONB), '$.{name}.keyvalue()')"
    return f"jsonb_array_length({pairs})"


def seconds(start: str, end: str) -> str:
    """Return the seconds between two times."""
    return f"EXTRACT(EPOCH FROM {end} - {start})"


def sql_list(names: Sequence[str]) -> str:
    """Return names as an SQL list, such as ``('a', 'b')``.

    They are not escaped, so they must be the code's own, never somebody's input.
    """
    quoted = ", ".join(f"'{name}'" for name in names)
    return f"({quoted})"
