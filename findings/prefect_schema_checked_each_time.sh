#!/usr/bin/env bash
# Prefect's server checks a deployment's own schema again for each run that is created.
# Guess: a deployment's parameter schema is checked when the deployment is saved; a new run costs the
# check of its parameters alone.
# What happens: for each new run the server first checks the whole schema against JSON Schema's own.
# With sixty rules in the schema that is half of what a run's creation costs it. Rules under a
# keyword that JSON Schema does not know are left out of that check, and a $dynamicRef to them still
# applies them to the parameters.
# Seen with Prefect 3.9.1, jsonschema 4.26.0, on Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'cd / && rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python=$folder/venv/bin/python
"$python" -m pip install --quiet --no-compile prefect==3.9.1 jsonschema==4.26.0
cd "$folder"
export PREFECT_HOME=$folder/home DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false
export PREFECT_LOGGING_LEVEL=ERROR PREFECT_SERVER_LOGGING_LEVEL=ERROR
unset PREFECT_API_URL || true
cat >runs.py <<'PYTHON'
import asyncio
import time
from importlib.metadata import version

import httpx
from prefect.server.api.server import create_app
from prefect.utilities.schema_tools import validation

RUNS = 20
RULES = [
    {"if": {"not": {"properties": {f"field{n}": {"type": "integer", "minimum": 1}}}},
     "then": {"required": [f"field{n} must be a whole number from 1"]}}
    for n in range(60)
]
FIELDS = {f"field{n}": {"type": "integer"} for n in range(60)}
SCHEMAS = {
    "in the schema": {"type": "object", "properties": FIELDS, "allOf": RULES},
    "behind a reference": {
        "type": "object", "properties": FIELDS, "rules": {"allOf": RULES},
        "allOf": [{"$dynamicRef": "#/rules"}],
    },
}
checks = 0
check_schema = validation._VALIDATOR.check_schema


def counted(*args, **options):
    global checks
    checks += 1
    return check_schema(*args, **options)


async def main():
    global checks
    app = create_app(webserver_only=True)
    cost = {}
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server/api") as api:
            flow = (await api.post("/flows/", json={"name": "checkout"})).raise_for_status().json()
            for name, schema in SCHEMAS.items():
                given = {"name": name, "flow_id": flow["id"], "enforce_parameter_schema": True,
                         "parameter_openapi_schema": schema}
                made = (await api.post("/deployments/", json=given)).raise_for_status().json()
                path = f"/deployments/{made['id']}/create_flow_run"
                refused = await api.post(path, json={"parameters": {"field7": 0}})
                assert "field7 must be a whole number from 1" in refused.text, refused.text
                await api.post(path, json={"parameters": {"field7": 1}})
                checks, began = 0, time.process_time()
                for _ in range(RUNS):
                    taken = await api.post(path, json={"parameters": {"field7": 1}})
                    taken.raise_for_status()
                cost[name] = (time.process_time() - began) / RUNS * 1000
                print(f"rules {name}: {RUNS} runs, {checks} checks of the schema, "
                      f"{cost[name]:.0f} ms of a core for each run")
                assert checks == RUNS, "the schema is not checked once for each run any more"
    print(f"prefect {version('prefect')}, jsonschema {version('jsonschema')}")
    inside, behind = cost.values()
    assert inside > 1.3 * behind, "the check of the schema costs little now"


validation._VALIDATOR.check_schema = counted
asyncio.run(main())
PYTHON
timeout 300 "$python" runs.py
