#!/usr/bin/env bash
# A deployment's limit of one lets two runs go on when one of them was paused.
# Guess: a paused run keeps its slot, or takes it again when it is resumed.
# What happens: the pause frees the slot, another run takes it, and the resume needs none: both are
# Running under a limit of 1. Seen with Prefect 3.9.1 (3.8.8 too).
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
import prefect
from prefect import flow, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.states import Paused, Pending, Running


@flow
def order():
    pass


with get_client(sync_client=True) as client:
    client.create_work_pool(WorkPoolCreate(name="pool", type="process"))
    deployment = client.create_deployment(
        client.create_flow(order), "orders", work_pool_name="pool", concurrency_limit=1
    )
    first, second, third = (
        client.create_flow_run_from_deployment(deployment).id for _ in range(3)
    )

    def set_states(run, *states):
        for state in states:
            client.set_flow_run_state(run, state)

    set_states(first, Pending(), Running(), Paused(timeout_seconds=600))
    set_states(second, Pending(), Running())
    client.resume_flow_run(first)
    set_states(third, Pending())
    seen = [client.read_flow_run(run).state_name for run in (first, second, third)]
print("Prefect", prefect.__version__, "limit 1:", seen)
if seen != ["Running", "Running", "AwaitingConcurrencySlot"]:
    raise SystemExit("Not as described.")
PYTHON
