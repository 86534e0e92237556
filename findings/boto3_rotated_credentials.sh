#!/usr/bin/env bash
# A new client made after the shared credentials file was rotated still signs with the old key.
# Guess: a client has the keys of when it was made, so a new client has the new ones.
# What happens: the session keeps the keys that it read first; each client of this session signs with
# them, however late it is made. Only a new session reads the file again.
# Seen with boto3 1.44.5 (moto 5.2.5 answers).
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
"$python" -m pip install --quiet --no-compile boto3==1.44.5 'moto[server]==5.2.5'
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export ENDPOINT=http://127.0.0.1:$port FOLDER=$folder
set -m
"$folder/venv/bin/moto_server" -p "$port" >"$folder/server.log" 2>&1 &
server=$!
set +m
until "$python" -c "import socket; socket.create_connection(('127.0.0.1', $port))" 2>/dev/null; do
  kill -0 "$server"
  sleep 0.5
done
timeout 300 "$python" - <<'PYTHON'
import os
from pathlib import Path

import boto3

for name in [name for name in os.environ if name.startswith("AWS_")]:
    del os.environ[name]
credentials = Path(os.environ["FOLDER"]) / "credentials"
os.environ["AWS_SHARED_CREDENTIALS_FILE"] = str(credentials)


def rotate(key):
    credentials.write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key=secret\n")


def key_of_a_new_client(session):
    signed = []
    client = session.client("sqs", endpoint_url=os.environ["ENDPOINT"])
    client.meta.events.register(
        "before-send", lambda request, **_: signed.append(str(request.headers["Authorization"]))
    )
    client.list_queues()
    return signed[0].partition("Credential=")[2].partition("/")[0]


rotate("OLD")
session = boto3.Session(region_name="eu-west-1")
before = key_of_a_new_client(session)
rotate("NEW")
same_session = key_of_a_new_client(session)
new_session = key_of_a_new_client(boto3.Session(region_name="eu-west-1"))
print("boto3", boto3.__version__)
print("before:", before, "- new client:", same_session, "- new session:", new_session)
if (before, same_session, new_session) != ("OLD", "OLD", "NEW"):
    raise SystemExit("Not as described.")
PYTHON
