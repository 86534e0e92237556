#!/usr/bin/env bash
# The metadata of a payment looks like a dict, but has neither get nor len, and dict() refuses it.
# Guess: metadata.get("order") and dict(metadata) work, since metadata["order"] and `in` do.
# What happens: get raises AttributeError, and len, dict and json.dumps raise TypeError, so a look-up
# with a default breaks only when it runs. to_dict() gives the dict.
# Seen with stripe 16.1.0 (localstripe 1.15.10 answers).
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
"$python" -m pip install --quiet --no-compile stripe==16.1.0 localstripe==1.15.10
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export ENDPOINT=http://127.0.0.1:$port
cd "$folder"
set -m
"$folder/venv/bin/localstripe" --port "$port" --from-scratch >"$folder/server.log" 2>&1 &
server=$!
set +m
until "$python" -c "import socket; socket.create_connection(('127.0.0.1', $port))" 2>/dev/null; do
  kill -0 "$server"
  sleep 0.5
done
timeout 300 "$python" - <<'PYTHON'
import json
import os

import stripe

client = stripe.StripeClient("sk_test_12345", base_addresses={"api": os.environ["ENDPOINT"]})
metadata = client.v1.payment_intents.create(
    {"amount": 500, "currency": "eur", "metadata": {"order": "o1"}}
).metadata


def outcome(look):
    try:
        return look(metadata)
    except (AttributeError, TypeError) as error:
        return type(error).__name__


seen = {
    "[]": outcome(lambda m: m["order"]),
    "in": outcome(lambda m: "order" in m),
    "get": outcome(lambda m: m.get("order")),
    "len": outcome(len),
    "dict": outcome(dict),
    "json.dumps": outcome(json.dumps),
    "to_dict": outcome(lambda m: m.to_dict()),
}
print("stripe", stripe.VERSION, seen)
if seen != {
    "[]": "o1",
    "in": True,
    "get": "AttributeError",
    "len": "TypeError",
    "dict": "TypeError",
    "json.dumps": "TypeError",
    "to_dict": {"order": "o1"},
}:
    raise SystemExit("Not as described.")
PYTHON
