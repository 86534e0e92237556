#!/usr/bin/env bash
# A receiver whose time is over still deletes the message under its new receiver's hands.
# Guess: the receipt handle of an earlier receive is void once the message was received again.
# What happens: moto takes it: the old handle makes a message visible that another receiver holds, and
# deletes it; the newer receiver's own delete then answers success too.
# Seen with moto 5.2.5 and boto3 1.44.5.
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

import boto3
import moto

session = boto3.Session("key", "secret", region_name="eu-west-1")
sqs = session.client("sqs", endpoint_url=os.environ["ENDPOINT"])

queue = sqs.create_queue(QueueName="orders")["QueueUrl"]


def receive(seconds):
    answer = sqs.receive_message(QueueUrl=queue, VisibilityTimeout=seconds)
    return [message["ReceiptHandle"] for message in answer.get("Messages", [])]


sqs.send_message(QueueUrl=queue, MessageBody="o1")
(old,) = receive(0)
(new,) = receive(600)
hidden = len(receive(0))
sqs.change_message_visibility(QueueUrl=queue, ReceiptHandle=old, VisibilityTimeout=0)
given_again = len(receive(0))
sqs.delete_message(QueueUrl=queue, ReceiptHandle=old)
left = len(receive(0))
answer = sqs.delete_message_batch(QueueUrl=queue, Entries=[{"Id": "1", "ReceiptHandle": new}])
deleted_again = len(answer["Successful"])
seen = hidden, given_again, left, deleted_again
print("moto", moto.__version__, "boto3", boto3.__version__)
print("while held, after the old handle's release, after its delete, new handle's delete:", seen)
if seen != (0, 1, 0, 1):
    raise SystemExit("Not as described.")
PYTHON
