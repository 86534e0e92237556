#!/usr/bin/env bash
# One subscribed queue that is gone fails the publish for its caller.
# Guess: SNS takes the message and delivers later; a broken subscription is not the publisher's matter.
# What happens: moto delivers inside of Publish. It answers AWS.SimpleQueueService.NonExistentQueue to
# the publisher, and the other subscriber has or lacks the message by the order of subscription.
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

sns = session.client("sns", endpoint_url=os.environ["ENDPOINT"])
topic = sns.create_topic(Name="dispatched")["TopicArn"]
queues = {}
for name in ("first", "lost", "last"):
    queues[name] = sqs.create_queue(QueueName=name)["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queues[name], AttributeNames=["QueueArn"])
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn["Attributes"]["QueueArn"])
sqs.delete_queue(QueueUrl=queues.pop("lost"))
try:
    sns.publish(TopicArn=topic, Message="o1")
    code = None
except sns.exceptions.ClientError as error:
    code = error.response["Error"]["Code"]
got = {
    name: len(sqs.receive_message(QueueUrl=queue).get("Messages", []))
    for name, queue in queues.items()
}
print("moto", moto.__version__, "boto3", boto3.__version__)
print("the publisher gets", code, "- the other queues have", got)
if code != "AWS.SimpleQueueService.NonExistentQueue" or got != {"first": 1, "last": 0}:
    raise SystemExit("Not as described.")
PYTHON
