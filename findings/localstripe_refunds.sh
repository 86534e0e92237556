#!/usr/bin/env bash
# More can be refunded than was paid.
# Guess: the refund that goes beyond the payment is refused, as Stripe does.
# What happens: three refunds of 3.00 for a payment of 7.00 all succeed, and the payment stays
# succeeded. A test on localstripe cannot show that no refund is too large.
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


payment = client.v1.payment_intents.create(
    {
        "amount": 700,
        "currency": "eur",
        "payment_method": card("4242424242424242"),
        "confirm": True,
    }
)
refunds = [
    client.v1.refunds.create({"payment_intent": payment.id, "amount": 300}) for _ in range(3)
]
seen = [(refund.amount, refund.status) for refund in refunds]
print("stripe", stripe.VERSION, "paid", payment.amount, "refunded", seen)
if seen != [(300, "succeeded")] * 3:
    raise SystemExit("Not as described.")
PYTHON
