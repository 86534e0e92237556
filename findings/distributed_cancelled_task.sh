#!/usr/bin/env bash
# A cancelled task that has begun goes on to its end.
# Guess: future.cancel() stops the task, or at least keeps its effects away.
# What happens: the future is cancelled at once and result() raises FutureCancelledError, while the
# worker's thread finishes the function with all its effects.
# Seen with distributed 2026.8.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=$folder/venv/bin/python
python3 -m venv "$folder/venv"
"$python" -m pip install --quiet --no-compile distributed==2026.8.0 dask==2026.8.0
timeout 300 "$python" - <<'PYTHON'
import tempfile
from pathlib import Path
from time import monotonic, sleep

import distributed
from distributed import Client, LocalCluster


def appears(path):
    deadline = monotonic() + 30
    while not path.exists() and monotonic() < deadline:
        sleep(0.05)
    return path.exists()


def charge(folder):
    (folder / "begun").touch()
    if appears(folder / "cancelled"):
        (folder / "charged").touch()


with (
    tempfile.TemporaryDirectory() as folder,
    LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster,
    Client(cluster) as client,
):
    files = Path(folder)
    future = client.submit(charge, files)
    if not appears(files / "begun"):
        raise SystemExit("The task did not begin.")
    future.cancel()
    try:
        future.result(timeout=30)
        answer = "result"
    except distributed.client.FutureCancelledError as error:
        answer = type(error).__name__
    (files / "cancelled").touch()
    charged = appears(files / "charged")
print("distributed", distributed.__version__)
print("the caller gets", answer, "- the task went on to its end:", charged)
if (answer, charged) != ("FutureCancelledError", True):
    raise SystemExit("Not as described.")
PYTHON
