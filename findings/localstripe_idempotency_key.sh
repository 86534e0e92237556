#!/usr/bin/env bash
# The same payment with the same idempotency key is charged twice.
# Guess: localstripe answers the second request with the first one's payment, as Stripe does.
# What happens: two payments, both succeeded. A test of "never charged twice" passes or fails on
# localstripe by how the caller looks for its payment, not by its key.
# Seen with localstripe 1.15.10 and stripe 16.1.0.
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
import os

import stripe

client = stripe.StripeClient("sk_test_12345", base_addresses={"api": os.environ["ENDPOINT"]})


def card(number):
    return client.v1.payment_methods.create(
        {
            "type": "card",
            "card": {"number": number, "exp_month": 12, "exp_year": 2040, "cvc": "123"},
        }
    ).id


order = {"amount": 500, "currency": "eur", "payment_method": card("4242424242424242")}
payments = [
    client.v1.payment_intents.create({**order, "confirm": True}, {"idempotency_key": "order-1"})
    for _ in range(2)
]
seen = len({payment.id for payment in payments}), [payment.status for payment in payments]
print("stripe", stripe.VERSION, seen)
if seen != (2, ["succeeded", "succeeded"]):
    raise SystemExit("Not as described.")
PYTHON
