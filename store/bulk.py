"""Bulk SQL with one statement and parameter for any number of rows.

Values travel as one JSON document that the database takes apart. A statement for each row costs
the client and the database several times as much, and so does a parameter for each value.
Statements stay the same whatever the number of rows, so they are compiled once.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any

from sqlalchemy import (
    ARRAY,
    JSON,
    ColumnElement,
    Executable,
    FromClause,
    Select,
    String,
    Table,
    Update,
    and_,
    any_,
    bindparam,
    cast,
    column,
    func,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.types import NullType
from sqlmodel import Session, SQLModel

from store.models import UtcDateTime, in_utc

Row = Mapping[str, Any]
Rows = Sequence[Row]

COMPARED_AT_MOST = 100
"""So few rows are compared with as many in a millisecond, and cost no statement more."""


def among(id_column: Any, ids: Iterable[str]) -> ColumnElement[bool]:
    """Return the condition that a text column has one of the ids."""
    given = bindparam(None, _array_literal(list(ids)), type_=NullType())
    condition: ColumnElement[bool] = id_column == any_(cast(given, ARRAY(String)))
    return condition


def _array_literal(texts: Sequence[str]) -> str:
    """Return texts as PostgreSQL writes an array of them.

    psycopg would look at each of them by itself, which takes it thirty times as long.
    """
    if not texts:
        return "{}"
    # No text of PostgreSQL has this character in it, so that it may stand between them.
    joined = "\0".join(texts)
    if joined.count("\0") != len(texts) - 1:
        raise ValueError("an id with a NUL character in it; PostgreSQL has none")
    escaped = joined.replace("\\", "\\\\").replace('"', '\\"')
    return '{"' + escaped.replace("\0", '","') + '"}'


def read_rows(session: Session, statement: Executable) -> Sequence[Any]:
    """Return all rows of a query for columns, not for models.

    It is put to the connection: the session would take every row in its hands once more.
    """
    return session.connection().execute(statement).all()


def insert_rows(session: Session, model: type[SQLModel], rows: Rows, **same: Any) -> None:
    """Insert rows.

    Args:
        session: The transaction.
        model: The table.
        rows: The rows, all with the same columns; none does nothing.
        same: The columns in which all of them have one value.

    Raises:
        IntegrityError: a key is taken, or a constraint refuses a row; nothing was inserted.
    """
    if rows:
        table = _table_of(model)
        session.connection().execute(insert(table).from_select(*_source(table, rows, same)))


def insert_missing(
    session: Session, model: type[SQLModel], rows: Iterable[Row]
) -> list[tuple[Any, ...]]:
    """Insert the rows whose primary key is free, leaving others unchanged.

    Args:
        session: The transaction.
        model: The table.
        rows: The rows, all with the same columns; a key that comes twice is inserted once.

    Returns:
        The primary keys of the rows that were inserted.
    """
    table = _table_of(model)
    key = [column.name for column in table.primary_key.columns]
    # Whoever inserts a key that another transaction has inserted waits for it, so all go by key.
    values = sorted(rows, key=itemgetter(*key))
    if not values:
        return []
    statement = (
        insert(table)
        .from_select(*_source(table, values, {}))
        .on_conflict_do_nothing()
        .returning(*table.primary_key.columns)
    )
    return [tuple(row) for row in read_rows(session, statement)]


def update_rows(session: Session, model: type[SQLModel], rows: Rows, **same: Any) -> None:
    """Update columns of the rows that exist.

    Args:
        session: The transaction, which has locked the rows.
        model: The table.
        rows: For each row its whole primary key and the columns to be set, all the same ones; none
            does nothing.
        same: The columns that get one value in all of them.
    """
    if rows:
        table = _table_of(model)
        given = _as_table(table, rows)
        keys = table.primary_key.columns.keys()
        changed = {name: given.c[name] for name in rows[0] if name not in keys} | same
        _update(session, update(table).where(_matches(table, given, rows)).values(changed), rows)


def increase(
    session: Session, model: type[SQLModel], name: str, amounts: Mapping[str, int]
) -> None:
    """Add an amount to a number of each row.

    Args:
        session: The transaction, which has locked the rows.
        model: The table, whose primary key is ``id``.
        name: The column.
        amounts: By id, what is added; negative to subtract.

    Raises:
        IntegrityError: a constraint refuses the sum, such as a stock below nothing.
    """
    table = _table_of(model)
    rows = [{"id": id_, name: amount} for id_, amount in amounts.items() if amount]
    if rows:
        given = _as_table(table, rows)
        sum_of = {name: table.c[name] + given.c[name]}
        _update(session, update(table).where(_matches(table, given, rows)).values(sum_of), rows)


def _update(session: Session, statement: Update, rows: Rows) -> None:
    """Execute an update without comparing each row with each.

    PostgreSQL would do so where it takes the table for empty, which it does for a minute if it has
    counted the table while all rows were another transaction's.
    """
    connection = session.connection()
    if len(rows) <= COMPARED_AT_MOST:
        connection.execute(statement)
    else:
        connection.execute(text("SET LOCAL enable_nestloop TO off"))
        connection.execute(statement)
        connection.execute(text("SET LOCAL enable_nestloop TO DEFAULT"))


def _source(table: Table, rows: Rows, same: Row) -> tuple[list[str], Select[Any]]:
    """Return the column names and the SELECT of an INSERT."""
    given = _as_table(table, rows)
    selected = select(
        *(given.c[name] for name in rows[0]),
        *(literal(value, table.c[name].type) for name, value in same.items()),
    )
    return [*rows[0], *same], selected


def _table_of(model: type[SQLModel]) -> Table:
    table: Table = model.__table__  # type: ignore[attr-defined]
    return table


def _as_table(table: Table, rows: Rows) -> FromClause:
    """Return rows as a table, with the types of ``table``'s columns."""
    columns = [column(name, table.c[name].type) for name in rows[0]]
    for name in (each.name for each in columns if isinstance(each.type, UtcDateTime)):
        _require_zones(row[name] for row in rows)
    given = bindparam(None, list(rows), type_=JSON)
    return (
        func.json_to_recordset(given)
        .table_valued(*columns, name="given")
        .render_derived(with_types=True)
    )


def _matches(table: Table, given: FromClause, rows: Rows) -> ColumnElement[bool]:
    """Return the condition that a row has the other row's primary key."""
    first, *others = table.primary_key.columns.keys()
    same_key = and_(*(table.c[key] == given.c[key] for key in (first, *others)))
    # PostgreSQL would read a whole table of middling size rather than look up its rows.
    return and_(among(table.c[first], [row[first] for row in rows]), same_key)


def _require_zones(moments: Iterable[datetime | None]) -> None:
    """Raise ValueError for a moment without its zone."""
    for moment in moments:
        if moment is not None:
            in_utc(moment)
