#!/usr/bin/env bash
# Deleting a deployment deletes the waiting runs that people started from it.
# Guess: they stay Late, or are cancelled, so that one sees that they were never run.
# What happens: each run that waits for its first start is gone without a trace, a person's too. A run
# that has begun before (suspended, then resumed) survives, and is cancelled by the next worker that
# looks, not crashed. Seen with Prefect 3.9.1 (3.8.8 too).
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
import asyncio

import prefect
from prefect import flow, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound
from prefect.states import Pending, Running, Suspended
from prefect.workers.process import ProcessWorker


@flow
def order():
    pass


async def worker_looks():
    async with ProcessWorker(work_pool_name="pool") as worker:
        await worker.get_and_submit_flow_runs()


with get_client(sync_client=True) as client:

    def state_of(run):
        try:
            return client.read_flow_run(run).state_name
        except ObjectNotFound:
            return "not found"

    client.create_work_pool(WorkPoolCreate(name="pool", type="process"))
    deployment = client.create_deployment(
        client.create_flow(order), "orders", work_pool_name="pool"
    )
    fresh, resumed = (client.create_flow_run_from_deployment(deployment).id for _ in range(2))
    for state in (Pending(), Running(), Suspended(timeout_seconds=600)):
        client.set_flow_run_state(resumed, state)
    client.resume_flow_run(resumed)
    before = state_of(fresh), state_of(resumed)
    client.delete_deployment(deployment)
    after = state_of(fresh), state_of(resumed)
    asyncio.run(worker_looks())
    worker = state_of(fresh), state_of(resumed)
print("Prefect", prefect.__version__)
print("before", before, "- deleted", after, "- a worker looked", worker)
if (before, after, worker) != (
    ("Scheduled", "Resuming"),
    ("not found", "Resuming"),
    ("not found", "Cancelled"),
):
    raise SystemExit("Not as described.")
PYTHON
