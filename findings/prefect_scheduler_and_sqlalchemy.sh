#!/usr/bin/env bash
# A Prefect 3.8.8 server with SQLAlchemy 2.1 looks healthy but schedules nothing.
# Guess: what pip resolves for prefect==3.8.8 (it allows SQLAlchemy below 3) works as a whole.
# What happens: the server starts, answers and runs what people start; but the scheduler's insert of
# runs is refused by SQLAlchemy 2.1 each time, which only the server's log says. Deployments with an
# active schedule get no run. With SQLAlchemy 2.0.58, and with Prefect 3.9.1 on 2.1.9, they do.
# Seen with Prefect 3.8.8, SQLAlchemy 2.1.9, fastapi 0.150.0.
set -euo pipefail
folder=$(mktemp -d)
server=
finish() {
  if [ -n "$server" ]; then
    kill -- "-$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
  fi
  rm -rf "$folder"
}
trap finish EXIT
python=$folder/venv/bin/python
python3 -m venv "$folder/venv"
"$python" -m pip install --quiet --no-compile prefect==3.8.8 fastapi==0.150.0 sqlalchemy==2.1.9
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export PREFECT_HOME=$folder/prefect PREFECT_SERVER_ANALYTICS_ENABLED=false
export PREFECT_API_URL=http://127.0.0.1:$port/api PREFECT_LOGGING_LEVEL=ERROR
set -m # the server gets a process group of its own
"$folder/venv/bin/prefect" server start --port "$port" >"$folder/server.log" 2>&1 &
server=$!
set +m
until "$python" -c "import urllib.request as r; r.urlopen('$PREFECT_API_URL/health')" 2>/dev/null; do
  kill -0 "$server"
  sleep 1
done
timeout 300 "$python" - <<'PYTHON'
import os
from datetime import timedelta
from pathlib import Path
from time import monotonic, sleep

import prefect
import sqlalchemy
from prefect import flow, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import IntervalSchedule

log = Path(os.environ["PREFECT_HOME"]).with_name("server.log")


@flow
def nightly():
    pass


hourly = DeploymentScheduleCreate(schedule=IntervalSchedule(interval=timedelta(hours=1)))
with get_client(sync_client=True) as client:
    client.create_deployment(client.create_flow(nightly), "hourly", schedules=[hourly])
    deadline = monotonic() + 200
    runs, refused = 0, False
    while not runs and not refused and monotonic() < deadline:
        sleep(2)
        runs = len(client.read_flow_runs())
        refused = "Can't evaluate bulk DML statement" in log.read_text()
    healthy = client.api_healthcheck() is None
print("Prefect", prefect.__version__, "SQLAlchemy", sqlalchemy.__version__)
print("healthy:", healthy, "- runs scheduled:", runs, "- refused in the log:", refused)
if (healthy, runs, refused) != (True, 0, True):
    raise SystemExit("Not as described.")
PYTHON
