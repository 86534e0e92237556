#!/usr/bin/env bash
# A work pool that is deleted and created again never runs what waited in it.
# Guess: runs and deployments name their pool, so a pool of the same name gets them back.
# What happens: the runs stay Scheduled but belong to no queue any more, and no worker of the new pool
# is ever given one; the deployment has lost its pool too. Nothing says so but the empty fields.
# Seen with Prefect 3.9.1 (3.8.8 too).
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
"$python" -m pip install --quiet --no-compile prefect==3.9.1 fastapi==0.150.0 sqlalchemy==2.1.9
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export PREFECT_HOME=$folder/prefect PREFECT_SERVER_ANALYTICS_ENABLED=false
export PREFECT_API_URL=http://127.0.0.1:$port/api PREFECT_LOGGING_LEVEL=CRITICAL
set -m # the server gets a process group of its own
"$folder/venv/bin/prefect" server start --port "$port" >"$folder/server.log" 2>&1 &
server=$!
set +m
until "$python" -c "import urllib.request as r; r.urlopen('$PREFECT_API_URL/health')" 2>/dev/null; do
  kill -0 "$server"
  sleep 1
done
timeout 300 "$python" - <<'PYTHON'
from datetime import UTC, datetime

import prefect
from prefect import flow, get_client
from prefect.client.schemas.actions import WorkPoolCreate


@flow
def order():
    pass


with get_client(sync_client=True) as client:

    def handed_out():
        given = client.get_scheduled_flow_runs_for_work_pool(
            "pool", scheduled_before=datetime.now(UTC)
        )
        return len(given)

    client.create_work_pool(WorkPoolCreate(name="pool", type="process"))
    deployment = client.create_deployment(
        client.create_flow(order), "orders", work_pool_name="pool"
    )
    run = client.create_flow_run_from_deployment(deployment)
    before = handed_out()
    client.delete_work_pool("pool")
    client.create_work_pool(WorkPoolCreate(name="pool", type="process"))
    after = handed_out()
    run = client.read_flow_run(run.id)
    pool = client.read_deployment(deployment).work_pool_name
print("Prefect", prefect.__version__)
print("handed out before", before, "- after", after)
print("the run:", run.state_name, run.work_queue_name, "- its deployment's pool:", pool)
if (before, after, run.state_name, run.work_queue_name, pool) != (1, 0, "Scheduled", None, None):
    raise SystemExit("Not as described.")
PYTHON
