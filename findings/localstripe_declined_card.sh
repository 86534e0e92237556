#!/usr/bin/env bash
# Stripe's test card that is always declined pays, as long as it belongs to no customer.
# Guess: 4000 0000 0000 0002 is declined when it is charged.
# What happens: localstripe declines that card only when it is attached to a customer; charged
# directly it succeeds. The card 4000 0000 0000 0341 is the one declined at the charge.
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



def charge(number):
    try:
        return client.v1.payment_intents.create(
            {
                "amount": 700,
                "currency": "eur",
                "payment_method": card(number),
                "confirm": True,
            }
        ).status
    except stripe.CardError as error:
        return error.code


def attach(number):
    customer = client.v1.customers.create({}).id
    try:
        client.v1.payment_methods.attach(card(number), {"customer": customer})
    except stripe.CardError as error:
        return error.code
    return "attached"


seen = {n: (charge(n), attach(n)) for n in ("4000000000000002", "4000000000000341")}
print("stripe", stripe.VERSION, "charged, attached:", seen)
if seen != {
    "4000000000000002": ("succeeded", "card_declined"),
    "4000000000000341": ("card_declined", "attached"),
}:
    raise SystemExit("Not as described.")
PYTHON
