"""The words in which SQLite and PostgreSQL differ, for queries that are written as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from sqlmodel import Session


@dataclass(frozen=True, slots=True)
class Dialect:
    """Gives expressions for columns, each in the database's own words."""

    is_sqlite: bool

    @classmethod
    def of(cls, session: Session) -> Self:
        """Return the dialect of the session's database."""
        return cls(session.get_bind().dialect.name == "sqlite")

    def field(self, column: str, name: str) -> str:
        """Return a field of a JSON object as text."""
        if self.is_sqlite:
            return f"json_extract({column}, '$.{name}')"
        return f"({column} ->> '{name}')"

    def number(self, column: str, name: str) -> str:
        """Return a field of a JSON object as a whole number."""
        return f"CAST({self.field(column, name)} AS BIGINT)"

    def number_at(self, column: str, name: str, key: str) -> str:
        """Return a whole number of the JSON object that is a field, by the value of ``key``."""
        if self.is_sqlite:
            return f"""json_extract({column}, '$.{name}."' || {key} || '"')"""
        return f"CAST({column} -> '{name}' ->> {key} AS BIGINT)"

    def size(self, column: str, name: str) -> str:
        """Return how many fields the JSON object has that is a field.

        Not by unfolding it into rows, for which PostgreSQL keeps some memory until the query's
        end.
        """
        if self.is_sqlite:
            return f"(SELECT COUNT(*) FROM json_each({column}, '$.{name}'))"  # noqa: S608
        pairs = f"jsonb_path_query_array(CAST({column} AS JSONB), '$.{name}.keyvalue()')"
        return f"jsonb_array_length({pairs})"

    def seconds(self, start: str, end: str) -> str:
        """Return the seconds between two times."""
        if self.is_sqlite:
            return f"((julianday({end}) - julianday({start})) * 86400)"
        return f"EXTRACT(EPOCH FROM {end} - {start})"


def sql_list(names: Sequence[str]) -> str:
    """Return names as SQL's list of texts: ``('a', 'b')``.

    They are not escaped, so they must be the code's own, never somebody's input.
    """
    quoted = ", ".join(f"'{name}'" for name in names)
    return f"({quoted})"
