#!/usr/bin/env bash
# wait and as_completed do not use the client that their futures belong to.
# Guess: a future knows its client, so wait([future]) works wherever future.result() does.
# What happens: with a client that is not the default one (set_as_default=False, as a library makes
# it) wait and as_completed raise "No clients found", while result() and done() work.
# Seen with distributed 2026.8.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=$folder/venv/bin/python
python3 -m venv "$folder/venv"
"$python" -m pip install --quiet --no-compile distributed==2026.8.0 dask==2026.8.0
timeout 300 "$python" - <<'PYTHON'
import distributed
from distributed import Client, LocalCluster


def outcome(call):
    try:
        call()
    except ValueError as error:
        return str(error).splitlines()[0]
    return "works"


with (
    LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster,
    Client(cluster, set_as_default=False) as client,
):
    future = client.submit(sum, [1, 2])
    seen = {
        "result": outcome(lambda: future.result(timeout=30)),
        "wait": outcome(lambda: distributed.wait([future], timeout=30)),
        "as_completed": outcome(lambda: list(distributed.as_completed([future]))),
    }
print("distributed", distributed.__version__, seen)
if seen != {"result": "works", "wait": "No clients found", "as_completed": "No clients found"}:
    raise SystemExit("Not as described.")
PYTHON
