#!/usr/bin/env bash
# A resumed pause spends one of the flow's retries.
# Guess: retries=1 runs the flow once more when it fails, however often it was paused.
# What happens: the resume counts as a run (run_count is 2), so the flow fails for good at its first
# error. Without the pause the same flow is retried. Seen with Prefect 3.9.1 (3.8.8 too).
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
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from time import sleep

import prefect
from prefect import flow, get_client, pause_flow_run
from prefect.runtime import flow_run

ids = Queue()
calls = {True: 0, False: 0}


@flow(retries=1)
def failing(pauses: bool):
    calls[pauses] += 1
    if pauses:
        ids.put(flow_run.id)
        pause_flow_run(poll_interval=1, timeout=120)
    raise ValueError("always")


with get_client(sync_client=True) as client, ThreadPoolExecutor() as threads:
    failing(pauses=False, return_state=True)
    paused = threads.submit(failing, pauses=True, return_state=True)
    run = ids.get(timeout=60)
    while client.read_flow_run(run).state_name != "Paused":
        sleep(0.2)
    client.resume_flow_run(run)
    paused.result(timeout=60)
    run_count = client.read_flow_run(run).run_count
print("Prefect", prefect.__version__)
print("calls without a pause", calls[False], "- with one", calls[True], "- run_count", run_count)
if (calls, run_count) != ({False: 2, True: 1}, 2):
    raise SystemExit("Not as described.")
PYTHON
