# The store: worker, flow runs and tools. Built by: docker build --tag store-checkout:0.1.0 .
FROM python:3.11-slim-bookworm

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PATH=/opt/store-checkout/.venv/bin:$PATH \
    STORE_HOME=/opt/store-checkout \
    PREFECT_HOME=/var/lib/store/prefect

WORKDIR /opt/store-checkout

# Compiled once, here: a flow run's process, which writes nothing, would compile Prefect each time.
# The packages are a layer of their own: a change of the code does not install them again.
COPY pyproject.toml constraints.txt ./
RUN python -m venv .venv \
    && pip install --no-cache-dir --constraint constraints.txt uv setuptools \
    && uv pip install --no-cache --compile-bytecode --python .venv/bin/python \
        --constraint constraints.txt --build-constraint constraints.txt \
        --requirement pyproject.toml --extra stripe

COPY LICENSE README.md prefect.yaml ./
COPY console console
COPY deployments deployments
COPY flows flows
COPY fork_server fork_server
COPY orders orders
COPY reports reports
COPY seed seed
COPY store store
COPY tasks tasks
COPY terminal terminal
COPY texts texts
COPY web web
RUN uv pip install --no-cache --python .venv/bin/python --no-deps \
        --build-constraint constraints.txt --editable . \
    && .venv/bin/python -m compileall -q console deployments flows fork_server orders reports seed store tasks \
        terminal texts web \
    && useradd --uid 10001 --user-group --create-home --home-dir /var/lib/store store

USER 10001:10001
# Flow runs: the work pool gives the command. A worker: deployments/docker/compose.yaml.
CMD ["prefect", "version"]
