#!/usr/bin/env bash
# A FIFO queue takes a duplicate again as soon as the first message was deleted.
# Guess: the same MessageDeduplicationId is dropped for five minutes, received and deleted or not.
# What happens: moto drops it while the first message is in the queue; once that is deleted, the same
# id is delivered a second time. A test on moto can see a duplicate that SQS would never deliver.
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

queue = sqs.create_queue(QueueName="orders.fifo", Attributes={"FifoQueue": "true"})["QueueUrl"]


def send():
    sqs.send_message(
        QueueUrl=queue, MessageBody="o1", MessageGroupId="all", MessageDeduplicationId="o1"
    )


def receive():
    return sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages", [])


send()
send()
first = receive()
sqs.delete_message(QueueUrl=queue, ReceiptHandle=first[0]["ReceiptHandle"])
send()
after_delete = receive()
print("moto", moto.__version__, "boto3", boto3.__version__)
print("sent twice:", len(first), "- sent again after the delete:", len(after_delete))
if (len(first), len(after_delete)) != (1, 1):
    raise SystemExit("Not as described.")
PYTHON
