#!/usr/bin/env bash
# The server takes null for a field that the flow then refuses, and its message names no type.
# Guess: parameters that pass the check of the deployment's schema are parameters of the flow.
# What happens: of a field with a default_factory, which has no default in the schema, the server makes
# "integer or null". So null is accepted and the run fails at its start, while "three" is refused as
# "not valid under any of the given schemas" instead of "not of type 'integer'".
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
import prefect
from prefect import flow, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ParameterTypeError, PrefectHTTPStatusError
from prefect.utilities.callables import parameter_schema
from pydantic import BaseModel, Field


class Order(BaseModel):
    copies: int = Field(default_factory=lambda: 1)


@flow
def checkout(order: Order):
    pass


with get_client(sync_client=True) as client:
    client.create_work_pool(WorkPoolCreate(name="pool", type="process"))
    deployment = client.create_deployment(
        client.create_flow(checkout),
        "orders",
        work_pool_name="pool",
        parameter_openapi_schema=parameter_schema(checkout).model_dump_for_openapi(),
        enforce_parameter_schema=True,
    )

    def server(copies):
        try:
            client.create_flow_run_from_deployment(
                deployment, parameters={"order": {"copies": copies}}
            )
        except PrefectHTTPStatusError as error:
            return error.response.json()["detail"].partition("Failure reason: ")[2]
        return "accepted"

    def flows_own(copies):
        try:
            checkout.validate_parameters({"order": {"copies": copies}})
        except ParameterTypeError:
            return "refused"
        return "accepted"

    seen = {copies: (server(copies), flows_own(copies)) for copies in (2, None, "three")}
print("Prefect", prefect.__version__, "server, flow:", seen)
if seen != {
    2: ("accepted", "accepted"),
    None: ("accepted", "refused"),
    "three": ("'three' is not valid under any of the given schemas", "refused"),
}:
    raise SystemExit("Not as described.")
PYTHON
