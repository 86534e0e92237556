#!/usr/bin/env bash
# The answer to a resume says nothing about whether the run goes on.
# Guess: a second resume is an error (409), and the resume of a run without a process is refused.
# What happens: the second resume gets HTTP 200 like many a success, with status ABORT in its body. The
# resume of a paused run that nobody executes gets 201 ACCEPT, and the run is Running from then on,
# with no process. Seen with Prefect 3.9.1 (3.8.8 too).
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
from prefect.states import Paused, Pending, Running


@flow
def order():
    pass


with get_client(sync_client=True) as client:
    run = client.create_flow_run(order).id
    for state in (Pending(), Running(), Paused(timeout_seconds=600)):
        client.set_flow_run_state(run, state)

    def resume():
        answer = client.request("POST", "/flow_runs/{id}/resume", path_params={"id": run})
        return answer.status_code, answer.json()["status"]

    seen = resume(), resume(), client.read_flow_run(run).state_name
print("Prefect", prefect.__version__)
print("first resume", seen[0], "- second resume", seen[1], "- the run is", seen[2])
if seen != ((201, "ACCEPT"), (200, "ABORT"), "Running"):
    raise SystemExit("Not as described.")
PYTHON
