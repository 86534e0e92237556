#!/usr/bin/env bash
# A pause with a key that was used before in this attempt does not pause.
# Guess: the second pause waits for a second answer, or is refused.
# What happens: it returns the first answer at once. On 3.8.8 an async pause returned None there; on
# 3.9.1 it returns the answer. A retry of the run pauses again with the same key, which on 3.8.8 ended
# in "409 Conflict". Seen with Prefect 3.9.1.
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
import asyncio
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from time import sleep

import prefect
from prefect import flow, get_client, pause_flow_run
from prefect.flow_engine import run_flow
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.states import AwaitingRetry


class Answer(RunInput):
    courier: str


ids, answers = Queue(), Queue()


@flow
async def two_pauses():
    ids.put(flow_run.id)
    for _ in range(2):
        answer = await pause_flow_run(Answer, key="courier", poll_interval=1, timeout=120)
        answers.put(answer and answer.courier)
    raise ValueError("so that the run can be retried")


with get_client(sync_client=True) as client, ThreadPoolExecutor() as threads:

    def answered(run, courier):
        while client.read_flow_run(run).state_name != "Paused":
            sleep(0.2)
        while client.resume_flow_run(run, {"courier": courier}).status != "ACCEPT":
            sleep(0.2)  # the form is stored after the state

    first = threads.submit(asyncio.run, two_pauses(return_state=True))
    run = ids.get(timeout=60)
    answered(run, "Ada")
    first.result(timeout=60)
    attempt_1 = [answers.get(timeout=60) for _ in range(2)]
    client.set_flow_run_state(run, AwaitingRetry())
    again = client.read_flow_run(run)
    retry = threads.submit(
        lambda: asyncio.run(
            run_flow(two_pauses, flow_run=again, parameters={}, return_type="state")
        )
    )
    answered(run, "Bob")
    retry.result(timeout=60)
    attempt_2 = [answers.get(timeout=60) for _ in range(2)]
print("Prefect", prefect.__version__)
print("answered once, got", attempt_1, "- retried and answered once, got", attempt_2)
if (attempt_1, attempt_2) != (["Ada", "Ada"], ["Bob", "Bob"]):
    raise SystemExit("Not as described.")
PYTHON
