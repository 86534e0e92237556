#!/usr/bin/env bash
# A hook may name its parameters as it likes, but not if a worker runs it.
# Guess: hooks are called in one way, with flow, flow run and state by position.
# What happens: on_failure, in the run's own process, is called by position; on_cancellation and
# on_crashed after a lost process are called by the worker with the names flow, flow_run and state. A
# hook (flow, run, state) works for one and ends in a logged TypeError for the other, and the run is
# Cancelled all the same. Seen with Prefect 3.9.1 (3.8.8 too).
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
import os
import sys
from pathlib import Path
from time import sleep

import prefect
from prefect import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.states import Cancelling
from prefect.workers.process import ProcessWorker

folder = Path(os.environ["PREFECT_HOME"]).parent
(folder / "orders.py").write_text(
    """
from time import sleep
from prefect import flow

def note(hook):
    with open(NOTES, "a") as notes:
        print(hook, file=notes)

def own_names(a_flow, run, its_state):
    note("own names: " + its_state.name)

def prefects_names(flow, flow_run, state):
    note("Prefect's names: " + state.name)

hooks = [own_names, prefects_names]

@flow(on_failure=hooks, on_cancellation=hooks)
def order(fails: bool):
    if fails:
        raise ValueError("always")
    sleep(300)
""".replace("NOTES", repr(str(folder / "notes")))
)
sys.path.insert(0, str(folder))
import orders  # noqa: E402

with get_client(sync_client=True) as client:
    client.create_work_pool(WorkPoolCreate(name="pool", type="process"))
    deployment = client.create_deployment(
        client.create_flow(orders.order),
        "orders",
        work_pool_name="pool",
        entrypoint="orders.py:order",
        path=str(folder),
        enforce_parameter_schema=False,
    )

    def wait_for(run, name):
        while client.read_flow_run(run).state_name != name:
            sleep(0.2)

    def start(**parameters):
        return client.create_flow_run_from_deployment(deployment, parameters=parameters).id

    def people():
        wait_for(start(fails=True), "Failed")
        run = start(fails=False)
        wait_for(run, "Running")
        client.set_flow_run_state(run, Cancelling())
        wait_for(run, "Cancelled")

    async def work():
        worker = asyncio.create_task(ProcessWorker(work_pool_name="pool").start())
        await asyncio.to_thread(people)
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)

    asyncio.run(work())
notes = (folder / "notes").read_text().splitlines()
print("Prefect", prefect.__version__, notes)
if notes != ["own names: Failed", "Prefect's names: Failed", "Prefect's names: Cancelling"]:
    raise SystemExit("Not as described.")
PYTHON
