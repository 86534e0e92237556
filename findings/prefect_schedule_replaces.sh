#!/usr/bin/env bash
# A schedule that `replaces` another one can be deployed once, and is refused from then on.
# Guess: the file is applied again as often as one likes, since the old schedule is gone by then.
# What happens: the second `prefect deploy` of the same file ends with 422: the new slug exists
# already, and nothing of that name is left to be replaced. Seen with Prefect 3.9.1.
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
mkdir "$folder/project"
cd "$folder/project"
cat >orders.py <<'PYTHON'
from prefect import flow


@flow
def order():
    pass
PYTHON
deploy() {
  cat >prefect.yaml <<YAML
pull: []
deployments:
  - name: local
    entrypoint: orders.py:order
    work_pool: {name: pool}
    schedules:
      - {$1, interval: 7200}
YAML
  timeout 120 "$folder/venv/bin/prefect" --no-prompt deploy --all >"$folder/deploy.log" 2>&1
}
"$folder/venv/bin/prefect" work-pool create pool --type process >/dev/null
deploy 'slug: each-minute'
deploy 'slug: each-hour, replaces: each-minute'
echo "the first deploy of the file that replaces: accepted"
if deploy 'slug: each-hour, replaces: each-minute'; then
  echo "the second: accepted; this has changed"
  exit 1
fi
grep -o '422[^:]*' "$folder/deploy.log" | head -n 1
grep -q "already exists" "$folder/deploy.log"
"$python" -c 'import prefect; print("Prefect", prefect.__version__, "refuses the same file the second time")'
