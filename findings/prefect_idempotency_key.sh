#!/usr/bin/env bash
# An idempotency key is shared by all deployments of a flow, whatever the parameters.
# Guess: it is known per deployment, and other parameters are refused.
# What happens: the same key through another deployment of the flow answers success with the first
# deployment's run and its old parameters; nothing new is run. Seen with Prefect 3.9.1 (3.8.8 too).
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


@flow
def order(copies: int):
    pass


with get_client(sync_client=True) as client:
    client.create_work_pool(WorkPoolCreate(name="pool", type="process"))
    flow_id = client.create_flow(order)
    north, south = (
        client.create_deployment(flow_id, name, work_pool_name="pool", enforce_parameter_schema=False)
        for name in ("north", "south")
    )
    runs = [
        client.create_flow_run_from_deployment(
            deployment, parameters={"copies": copies}, idempotency_key="order-1"
        )
        for deployment, copies in ((north, 1), (south, 2))
    ]
seen = runs[1].id == runs[0].id, runs[1].deployment_id == north, runs[1].parameters
print("Prefect", prefect.__version__)
print("same run, of the first deployment, with:", seen)
if seen != (True, True, {"copies": 1}):
    raise SystemExit("Not as described.")
PYTHON
