#!/usr/bin/env bash
# A flow run whose API is http makes several TLS contexts, each of which reads every authority.
# Guess: a client of an http:// address needs no certificates, so it reads none; or the process reads
# them once.
# What happens: each client object reads the whole of certifi's file, more than a hundred certificates, when it
# is made. An empty flow run makes several clients, at some 20 ms of a core each. A file with one
# certificate, named by PREFECT_API_SSL_CERT_FILE, takes nearly all of that away.
# Seen with Prefect 3.9.1, certifi 2026.10.19.post1, OpenSSL 3.0, on Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'cd / && rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python=$folder/venv/bin/python
"$python" -m pip install --quiet --no-compile prefect==3.9.1 certifi==2026.10.19.post1
cd "$folder"
export PREFECT_HOME=$folder/home DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false
export PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS=120 PREFECT_LOGGING_LEVEL=ERROR
unset PREFECT_API_URL PREFECT_API_SSL_CERT_FILE SSL_CERT_FILE || true
cat >certificates.py <<'PYTHON'
import ssl
import time
from importlib.metadata import version

from prefect import flow
from prefect.settings import PREFECT_API_SSL_CERT_FILE
from prefect.testing.utilities import prefect_test_harness

create, made = ssl.create_default_context, []


def counted(*args, **names):
    began = time.thread_time()
    context = create(*args, **names)
    made.append((context.cert_store_stats()["x509_ca"], time.thread_time() - began))
    return context


@flow
def nothing() -> None:
    pass


with prefect_test_harness(server_startup_timeout=120):
    ssl.create_default_context = counted
    nothing()
file = PREFECT_API_SSL_CERT_FILE.value() or "certifi's"
certificates, seconds = sum(each[0] for each in made), sum(each[1] for each in made)
print(
    f"prefect {version('prefect')}, certifi {version('certifi')}, {file}: {len(made)} contexts, "
    f"{certificates} certificates, {seconds * 1000:.0f} ms of a core"
)
print(len(made), certificates, f"{seconds:.4f}", file=open("seen", "w"))
PYTHON
timeout 300 "$python" certificates.py
read -r contexts certificates seconds <seen
"$python" - >one.pem <<'PYTHON'
import certifi

print(open(certifi.where()).read().split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----")
PYTHON
PREFECT_API_SSL_CERT_FILE=$PWD/one.pem timeout 300 "$python" certificates.py
read -r contexts_of_one certificates_of_one seconds_of_one <seen
"$python" -c "
assert $contexts >= 2 and $contexts == $contexts_of_one, 'the number of contexts has changed'
assert $certificates > 50 * $contexts, 'they read no authorities any more'
assert $certificates_of_one == $contexts, 'the setting is not used'
assert $seconds > 3 * $seconds_of_one, 'reading them costs nothing any more'
"
