"""The files with which the shop is deployed agree with the code, with each other and with Prefect.

Neither systemd nor Docker nor a cluster is needed here; docs/deploying.md says what was run.
"""

import json
import re
import shlex
import ssl
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.validate import ParamValidator
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.utilities.schema_tools import is_valid_schema, validate

from deployments.automations import HEARTBEAT_SECONDS
from deployments.local import PROJECT_DIR
from deployments.local_settings import run_settings
from store.settings import Settings

DEPLOYMENTS = PROJECT_DIR / "deployments"
SYSTEMD = DEPLOYMENTS / "systemd"
UNITS = sorted(SYSTEMD.glob("*.service"))
POOLS = ["docker", "kubernetes", "ecs"]
DOCKERFILE = (PROJECT_DIR / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOYMENTS / "docker" / "compose.yaml").read_text())
DATABASE_URL_FILE = "store_database_url"
KNOWN = {
    *(f"STORE_{name.upper()}" for name in Settings.model_fields),
    *("STORE_HOME", "STORE_WORK_POOL", "STORE_IMAGE"),
}


def unit(path: Path) -> dict[str, list[str]]:
    """The settings of a unit's section [Service]."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in path.read_text().splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and line and not line.startswith("#"):
            name, equals, value = line.partition("=")
            assert equals, line
            found.setdefault(name, []).append(value)
    return found


def variables(path: Path) -> dict[str, str]:
    """What a file of systemd's kind puts into the environment."""
    lines = [each for each in path.read_text().splitlines() if each and not each.startswith("#")]
    assert all(re.fullmatch(r"[A-Z_]+=\S+", each) for each in lines)
    return dict(each.split("=", 1) for each in lines)


def set_by_make_up() -> dict[str, str]:
    """Prefect's variables that `make up` sets to the same value everywhere."""
    source = (DEPLOYMENTS / "local_settings.py").read_text()
    return dict(re.findall(r'"(PREFECT_\w+)": \(?\s*"([^"{]+)"', source))


def test_a_workers_runs_end_with_it_and_one_that_is_killed_for_memory_ends_alone() -> None:
    worker = unit(SYSTEMD / "store-worker@.service")
    assert worker["KillMode"] == ["control-group"]
    assert worker["OOMPolicy"] == ["continue"]
    assert int(worker["TimeoutStopSec"][0]) > 30
    assert "KillSignal" not in worker


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_names_files_that_are_here_and_runs_what_the_environment_has(path: Path) -> None:
    service = unit(path)
    (file,) = service["EnvironmentFile"]
    assert (SYSTEMD / Path(file).name).is_file()
    (command,) = service["ExecStart"]
    program, *arguments = shlex.split(command)
    assert program == "/opt/store-checkout/.venv/bin/prefect"
    used = set(re.findall(r"\$\{(\w+)\}", " ".join(arguments)))
    assert used <= set(variables(SYSTEMD / Path(file).name))
    assert service["User"] == ["store"]
    assert service["ProtectSystem"] == ["strict"]


def test_the_workers_secrets_are_files_of_settings_that_there_are() -> None:
    worker = unit(SYSTEMD / "store-worker@.service")
    credentials = [each.partition(":")[0] for each in worker["LoadCredential"]]
    assert credentials == [DATABASE_URL_FILE]
    assert DATABASE_URL_FILE.removeprefix("store_") in Settings.model_fields
    assert "STORE_SECRETS_FOLDER=%d" in worker["Environment"][0].split()


@pytest.mark.parametrize("name", ["store.env", "prefect.env"])
def test_an_environment_file_knows_every_variable_and_sets_them_as_make_up_does(
    name: str,
) -> None:
    found = variables(SYSTEMD / name)
    documented = (PROJECT_DIR / "docs" / "settings.md").read_text()
    for variable, value in found.items():
        if variable.startswith("STORE_"):
            assert variable in KNOWN
            assert "URL" not in variable, "the database's password belongs into a file of its own"
        else:
            assert f"`{variable}`" in documented, variable
            assert set_by_make_up().get(variable, value) == value, variable


def test_a_client_of_an_http_address_reads_one_certificate() -> None:
    settings = run_settings(
        data_dir=Path("data"),
        project_dir=PROJECT_DIR,
        api_url="http://127.0.0.1:4200/api",
        ui_url="http://127.0.0.1:4200",
        store_url="postgresql+psycopg://",
        work_pool="local",
        auth=None,
    )
    file = Path(settings["PREFECT_API_SSL_CERT_FILE"])
    assert ssl.create_default_context(cafile=file).cert_store_stats()["x509_ca"] == 1
    assert "PRIVATE KEY" not in file.read_text()
    # Prefect's clients raise where the file is missing.
    path = str(file.relative_to(PROJECT_DIR))
    assert goes_into_the_image(path)
    installed = f"/opt/store-checkout/{path}"
    assert variables(SYSTEMD / "store.env")["PREFECT_API_SSL_CERT_FILE"] == installed
    assert COMPOSE["x-store"]["environment"]["PREFECT_API_SSL_CERT_FILE"] == installed


FOR_EVERY_RUN = {
    # Rarer heartbeats than the automation counts in, and it marks healthy runs as crashed.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY",
    # Fewer, and an outage of the server reaches the waiting runs.
    "PREFECT_CLIENT_MAX_RETRIES",
    "PREFECT_LOGGING_EXTRA_LOGGERS",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW",
    # The default is a pickle, and whoever may write one runs code where it is read.
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER",
}
"""Prefect's variables that every process with a run in it must have."""


@pytest.mark.parametrize("place", ["systemd", "compose", *POOLS])
def test_whatever_starts_runs_gives_them_the_settings_that_every_run_must_have(place: str) -> None:
    match place:
        case "systemd":
            (file,) = unit(SYSTEMD / "store-worker@.service")["EnvironmentFile"]
            found = variables(SYSTEMD / Path(file).name)
        case "compose":
            found = COMPOSE["services"]["worker"]["environment"]
        case _:
            found = pool(place)["variables"]["properties"]["env"]["default"]
    # Without it a batch may be told to read any file that the worker can.
    assert found["STORE_ORDERS_FOLDER"].startswith("/var/lib/store")
    of_make_up = set_by_make_up()
    assert {name: found.get(name) for name in FOR_EVERY_RUN} == {
        name: of_make_up[name] for name in FOR_EVERY_RUN
    }


def test_the_heartbeats_of_every_run_are_those_that_the_automation_counts_in() -> None:
    assert set_by_make_up()["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == str(HEARTBEAT_SECONDS)


def test_the_containers_are_set_as_make_up_sets_its_processes() -> None:
    for service in COMPOSE["services"].values():
        for variable, value in service.get("environment", {}).items():
            if variable.startswith("STORE_"):
                assert variable in KNOWN
            elif "$" not in str(value):
                assert set_by_make_up().get(variable, value) == value, variable


def test_the_compose_file_names_secrets_services_and_files_that_there_are() -> None:
    for service in COMPOSE["services"].values():
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])
        assert set(service.get("depends_on", {})) <= set(COMPOSE["services"])
        for volume in service.get("volumes", []):
            source = str(volume).partition(":")[0]
            if source.startswith("./") and source.endswith(".sql"):
                assert (DEPLOYMENTS / "docker" / source).is_file()
    assert DATABASE_URL_FILE in COMPOSE["services"]["worker"]["secrets"]


def test_no_password_is_written_in_the_compose_file() -> None:
    for service in COMPOSE["services"].values():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|AUTH|DATABASE", variable):
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}|/run/secrets/\w+", value), variable


def test_the_databases_log_quotes_no_row() -> None:
    assert "log_error_verbosity=terse" in COMPOSE["services"]["postgres"]["command"]
    documented = (PROJECT_DIR / "docs" / "deploying.md").read_text()
    assert "ALTER ROLE store SET log_error_verbosity = terse" in documented


def instructions() -> Iterator[tuple[str, str]]:
    """The Dockerfile's instructions, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", DOCKERFILE)
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, rest = line.partition(" ")
            yield name, rest


def test_the_image_has_every_package_and_file_that_a_run_needs() -> None:
    project = tomllib.loads((PROJECT_DIR / "pyproject.toml").read_text())
    packages = {
        pattern.rstrip("*")
        for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]
    }
    needed = {*packages, "pyproject.toml", "constraints.txt", "prefect.yaml"}
    needed |= {project["project"]["readme"], *project["project"]["license-files"]}
    copied = {each for name, rest in instructions() if name == "COPY" for each in rest.split()[:-1]}
    assert copied == needed
    for path in [*needed - packages, *code_of(packages)]:
        assert goes_into_the_image(path), path
    runs = " ".join(rest for name, rest in instructions() if name == "RUN")
    compiled = re.search(r"-m compileall -q ([\w ]+?) *&&", runs)
    assert compiled is not None
    assert set(compiled[1].split()) == packages


@pytest.mark.parametrize(
    "path",
    [
        "deployments/docker/secrets/store_database_url",
        "deployments/docker/secrets/postgres_password",
        "deployments/docker/orders/night.csv",
        "deployments/docker/.env",
        "deployments/systemd/store.env",
        "deployments/pools/ecs-task-definition.json",
        *(".env", ".env.production", ".local/env", ".local/postgres/PG_VERSION"),
        *(".git/config", ".venv/bin/python", "dynamodb-import/rejects.csv", "tests/shop.py"),
        *("flows/.env", "store/secrets/stripe_key", "seed/orders/a.jsonl", "seed/customers.csv"),
    ],
)
def test_what_may_hold_a_secret_or_an_order_does_not_go_into_the_image(path: str) -> None:
    assert not goes_into_the_image(path)


def test_what_is_filled_in_beside_the_compose_file_is_no_part_of_the_repository() -> None:
    folders = {"deployments/docker/secrets/", "deployments/docker/orders/", ".env*", ".local/"}
    assert folders <= set((PROJECT_DIR / ".gitignore").read_text().splitlines())


def code_of(packages: Iterable[str]) -> Iterator[str]:
    """The files of the packages that the programs read when they run."""
    for package in packages:
        for path in (PROJECT_DIR / package).rglob("*"):
            if path.suffix in (".py", ".mako", ".typed", ".ini"):
                yield str(path.relative_to(PROJECT_DIR))


def goes_into_the_image(path: str) -> bool:
    """Whether .dockerignore lets a file in: the last line that matches it, or a parent, decides."""
    parts = path.split("/")
    above = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    is_in = True
    for line in (PROJECT_DIR / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            if any(re.fullmatch(_as_expression(pattern), each) for each in above):
                is_in = line.startswith("!")
    return is_in


def _as_expression(pattern: str) -> str:
    """A pattern of Docker's as a regular expression; `**` is any number of folders."""
    escaped = re.escape(pattern).replace(r"\*\*/", "(?:.*/)?")
    return escaped.replace(r"\*", "[^/]*")


def test_the_image_has_a_python_that_the_project_takes_and_runs_as_nobody_special() -> None:
    found = dict(instructions())
    assert re.match(r"python:3\.1[1-9]-slim-", found["FROM"])
    assert found["USER"] == "10001:10001"
    names = [name for name, _ in instructions()]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN")


def test_the_image_has_the_code_where_the_deployments_look_for_it() -> None:
    found = dict(instructions())
    assert found["WORKDIR"] == "/opt/store-checkout"
    assert "STORE_HOME=/opt/store-checkout" in found["ENV"]
    assert "STORE_HOME=/opt/store-checkout" in (SYSTEMD / "store.env").read_text()


def pool(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOYMENTS / "pools" / f"{kind}.json").read_text())
    return found


@pytest.mark.parametrize("kind", POOLS)
def test_a_pools_template_is_one_for_prefect(kind: str) -> None:
    template = pool(kind)
    # It refuses a placeholder that is no variable.
    WorkPoolCreate(name="store", type=kind, base_job_template=template)
    is_valid_schema(template["variables"])
    properties = template["variables"]["properties"]
    defaults = {name: each["default"] for name, each in properties.items() if each.get("default")}
    validate(defaults, template["variables"], raise_on_error=True)
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == set(properties)


@pytest.mark.parametrize("kind", POOLS)
def test_a_pool_has_no_secret_and_does_not_take_over_the_workers_folder(kind: str) -> None:
    environment = pool(kind)["variables"]["properties"]["env"]["default"]
    # A worker gives its own settings to the containers, this one among them.
    assert f"PREFECT_HOME={environment['PREFECT_HOME']}" in DOCKERFILE
    assert {*environment} - FOR_EVERY_RUN - {"STORE_SECRETS_FOLDER"} == {
        *("PREFECT_HOME", "STORE_ORDERS_FOLDER"),
        # Without it a run that is told to stop stays Paused with nobody behind it.
        "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR",
    }


def test_a_pod_mounts_the_secrets_where_the_settings_look_for_them() -> None:
    template = pool("kubernetes")
    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (mount,) = container["volumeMounts"]
    environment = template["variables"]["properties"]["env"]["default"]
    assert mount["mountPath"] == environment["STORE_SECRETS_FOLDER"]
    assert [volume["name"] for volume in pod["volumes"]] == [mount["name"]]
    assert pod["securityContext"]["runAsUser"] == int(dict(instructions())["USER"].split(":")[0])
    # Kubernetes must not start a run again by itself: Prefect does.
    assert template["variables"]["properties"]["backoff_limit"]["default"] == 0
    assert pod["restartPolicy"] == "Never"


def test_the_ecs_task_is_one_for_aws_and_the_one_that_the_pool_names() -> None:
    definition = json.loads((DEPLOYMENTS / "pools" / "ecs-task-definition.json").read_text())
    ecs = boto3.client("ecs", region_name="eu-central-1")
    shape = ecs.meta.service_model.operation_model("RegisterTaskDefinition").input_shape
    assert ParamValidator().validate(definition, shape).generate_report() == ""
    properties = pool("ecs")["variables"]["properties"]
    (container,) = definition["containerDefinitions"]
    assert properties["task_definition_arn"]["default"] == definition["family"]
    assert properties["container_name"]["default"] == container["name"]
    secrets = {secret["name"] for secret in container["secrets"]}
    assert secrets == {DATABASE_URL_FILE.upper(), "PREFECT_API_AUTH_STRING"}
    # Named, so that the worker does not write the password into the task's environment.
    assert properties["prefect_api_auth_string_secret_arn"]["default"]


def test_the_pinned_prefect_is_that_of_the_deployments_and_of_the_servers_image() -> None:
    pins = (PROJECT_DIR / "constraints.txt").read_text()
    (pinned,) = re.findall(r"^prefect==(\S+)$", pins, re.MULTILINE)
    deployed = yaml.safe_load((PROJECT_DIR / "prefect.yaml").read_text())
    assert deployed["prefect-version"] == pinned
    assert COMPOSE["services"]["prefect"]["image"] == f"prefecthq/prefect:{pinned}-python3.11"


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-oldest.txt"])
def test_a_file_of_constraints_holds_versions_and_no_address(file: str) -> None:
    for line in (PROJECT_DIR / file).read_text().splitlines():
        assert re.fullmatch(r"[\w.-]+==[\w.]+( ; .+)?", line), line


def test_the_oldest_constraints_hold_the_oldest_prefect_that_the_project_takes() -> None:
    project = tomllib.loads((PROJECT_DIR / "pyproject.toml").read_text())["project"]
    (bounds,) = [each for each in project["dependencies"] if each.startswith("prefect>=")]
    (oldest,) = re.findall(
        r"^prefect==(\S+)$", (PROJECT_DIR / "constraints-oldest.txt").read_text(), re.MULTILINE
    )
    assert bounds.startswith(f"prefect>={oldest},")
