#!/usr/bin/env bash
# A heartbeat that arrives after its run's suspension arms a proactive automation again.
# Guess: events are judged by when they occurred, so the Suspended that followed the heartbeat ends
# the watch, in whatever order the two arrive.
# What happens: the server emits Suspended itself, and the run's heartbeat comes by a websocket that
# may take a second to open. The late heartbeat starts a new watch that nothing ends: the suspended
# run is marked as Crashed. Another event that the run sends after its heartbeats ends the watch.
# Seen with Prefect VERSIONS.
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
"$python" -m pip install --quiet --no-compile prefect==3.8.8 fastapi==0.150.0 sqlalchemy==2.0.58
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
import datetime
import time
import uuid

import httpx
import prefect

api = httpx.Client(base_url=prefect.settings.PREFECT_API_URL.value(), timeout=60)


def post(path, body):
    # The server's SQLite is busy now and then.
    while (answer := api.post(path, json=body)).status_code == 503:
        time.sleep(1)
    answer.raise_for_status()
    return answer.json() if answer.content else None


flow = post("/flows/", {"name": "order"})["id"]
deployment = post("/deployments/", {"name": "local", "flow_id": flow})["id"]
heartbeat, suspended = "prefect.flow-run.heartbeat", "prefect.flow-run.Suspended"
trigger = {
    "type": "event",
    "posture": "Proactive",
    "after": [heartbeat],
    "expect": [heartbeat, suspended],
    "match": {"prefect.resource.id": "prefect.flow-run.*"},
    "for_each": ["prefect.resource.id"],
    "threshold": 1,
    "within": 10,
}
crash = {"type": "change-flow-run-state", "state": "CRASHED", "message": "silent"}
post("/automations/", {"name": "silent", "trigger": trigger, "actions": [crash]})


def emit(run, event, occurred):
    resource = {"prefect.resource.id": f"prefect.flow-run.{run}"}
    of = {"id": str(uuid.uuid4()), "occurred": occurred, "event": event, "resource": resource}
    post("/events", [of])


def now():
    return datetime.datetime.now(datetime.timezone.utc).isoformat()


time.sleep(3)  # until the automation is loaded
runs = {}
for order in ("in order", "late", "not suspended"):
    body = {"flow_id": flow, "deployment_id": deployment, "state": {"type": "RUNNING"}}
    run = runs[order] = post("/flow_runs/", body)["id"]
    began = now()
    if order != "late":
        emit(run, heartbeat, began)
    if order != "not suspended":
        state = {"type": "PAUSED", "name": "Suspended", "state_details": {"pause_reschedule": True}}
        answer = post(f"/flow_runs/{run}/set_state", {"state": state})
        assert answer["status"] == "ACCEPT", answer
    time.sleep(1)  # so that the server has read its own event
    if order == "late":
        emit(run, heartbeat, began)


def states():
    return {order: api.get(f"/flow_runs/{run}").json()["state_name"] for order, run in runs.items()}


deadline = time.monotonic() + 120
while states()["not suspended"] != "Crashed" and time.monotonic() < deadline:
    time.sleep(1)
time.sleep(5)
print("Prefect", prefect.__version__)
for order, state in states().items():
    print(f"{order}: {state}")
if list(states().values()) != ["Suspended", "Crashed", "Crashed"]:
    raise SystemExit("Not as described.")
PYTHON
