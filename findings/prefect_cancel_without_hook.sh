#!/usr/bin/env bash
# Cancelling a suspended run skips Cancelling, and with it the on_cancellation hook.
# Guess: the worker meets the Cancelling run and runs its hook, as for a paused one.
# What happens: the server answers REJECT to Cancelling and sets Cancelled at once, for a suspended, a
# resuming and a scheduled run, though its tasks may have done half of their work. A paused run does
# get Cancelling. Seen with Prefect 3.9.1 (3.8.8 too).
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
from prefect.states import Cancelling, Paused, Pending, Running, Suspended


@flow
def order():
    pass


BEGUN = [Pending(), Running()]
WAITS = {
    "Scheduled": [],
    "Suspended": [*BEGUN, Suspended(timeout_seconds=600)],
    "Paused": [*BEGUN, Paused(timeout_seconds=600)],
}
with get_client(sync_client=True) as client:
    client.create_work_pool(WorkPoolCreate(name="pool", type="process"))
    deployment = client.create_deployment(
        client.create_flow(order), "orders", work_pool_name="pool"
    )

    def cancel(name, states, resume=False):
        run = client.create_flow_run_from_deployment(deployment).id
        for state in states:
            client.set_flow_run_state(run, state)
        if resume:
            client.resume_flow_run(run)
        was = client.read_flow_run(run).state_name
        assert was == name, was
        answer = client.set_flow_run_state(run, Cancelling())
        return answer.status.value, client.read_flow_run(run).state_name

    seen = {name: cancel(name, states) for name, states in WAITS.items()}
    seen["Resuming"] = cancel("Resuming", WAITS["Suspended"], resume=True)
print("Prefect", prefect.__version__, seen)
if seen != {
    "Scheduled": ("REJECT", "Cancelled"),
    "Suspended": ("REJECT", "Cancelled"),
    "Paused": ("ACCEPT", "Cancelling"),
    "Resuming": ("REJECT", "Cancelled"),
}:
    raise SystemExit("Not as described.")
PYTHON
