"""Every command that a document or a remedy names is taken by its program; none is run."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import boto3
import pytest
from botocore import xform_name
from cyclopts import App, CycloptsError
from prefect.cli._app import _app as prefect_commands
from uv import find_uv_bin

from console.doctor import CHECKS
from console.main import command_line
from tests.docs.test_documents import PROJECT_DIR, documents, make_targets

OF_THE_SYSTEM = {
    *("createdb", "createuser", "docker", "git", "install", "kubectl", "psql", "systemctl"),
    *("pg_dump", "useradd", "zcat"),
}
"""Of the arguments of these, only files of the project are looked at."""
INSTALLERS = {"pip": [sys.executable, "-m", "pip"], "uv": [find_uv_bin()]}
OF_PYTHON = {"venv"}
OF_THE_SHELL = {".", "cd", "export", "set"}
_BLOCK = re.compile(r"^ *```sh\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_PLACEHOLDER = re.compile(r"<[a-z ]+>")
_INLINE = re.compile(r"`((?:checkout|prefect|make|python -m) [^`]+)`")
PRODUCT = (
    *("console", "deployments", "flows", "fork_server", "orders", "reports", "seed", "store"),
    *("tasks", "terminal", "texts", "web"),
)
CHECKS_LIKE_COMMANDS = {check.name for check in CHECKS}
"""Such as `prefect server`, in the runbook."""
PLACEHOLDER = str(UUID(int=0))
"""What stands for a value: it may be a name or an id."""
IN_PLACE_OF = {"PORT": "9100", "STEP": "bill_customer"}
"""What stands for a placeholder that not every word can replace."""
_ASSIGNMENT = re.compile(r"^[A-Z_]+=")


def commands() -> Iterator[tuple[str, list[str]]]:
    """Each command of the documents' shell blocks: its document, and its words."""
    for document in documents():
        for block in _BLOCK.findall(document.read_text()):
            for line in block.splitlines():
                words = shlex.split(_PLACEHOLDER.sub("placeholder", line), comments=True)
                while words:
                    end = words.index("&&") if "&&" in words else len(words)
                    yield str(document.relative_to(PROJECT_DIR)), words[:end]
                    words = words[end + 1 :]


def remedies() -> set[tuple[str, str]]:
    """Each command within a sentence of the runbook or of the product's texts, and its place."""
    runbook = PROJECT_DIR / "docs" / "runbook.md"
    return {
        (str(path.relative_to(PROJECT_DIR)), command)
        for path, text in [(runbook, runbook.read_text()), *texts_of_product()]
        for command in (" ".join(found.split()) for found in _INLINE.findall(text))
        if command not in CHECKS_LIKE_COMMANDS
    }


def texts_of_product() -> Iterator[tuple[Path, str]]:
    """Each text of the product's code, with a placeholder for each value."""
    for folder in PRODUCT:
        for path in sorted((PROJECT_DIR / folder).rglob("*.py")):
            tree = ast.parse(path.read_text())
            within = {
                id(part)
                for each in ast.walk(tree)
                if isinstance(each, ast.JoinedStr)
                for part in each.values
            }
            for each in ast.walk(tree):
                if isinstance(each, ast.JoinedStr):
                    yield path, "".join(map(text_of, each.values))
                elif isinstance(each, ast.Constant) and id(each) not in within:
                    yield path, str(each.value)


def text_of(part: ast.expr) -> str:
    return str(part.value) if isinstance(part, ast.Constant) else PLACEHOLDER


def program(words: list[str]) -> tuple[str, list[str]]:
    """The command's program, and its arguments."""
    while _ASSIGNMENT.match(words[0]):
        words = words[1:]
    return words[0].removeprefix(".venv/bin/"), words[1:]


COMMANDS = [(document, *program(words)) for document, words in commands()]


def parse_module(module: str, arguments: list[str]) -> None:
    if module in OF_PYTHON:
        return
    if module in INSTALLERS:
        parse_installation(module, arguments)
        return
    found = importlib.import_module(f"{module}.__main__" if is_package(module) else module)
    parse(found.main.app, arguments)


def is_package(module: str) -> bool:
    return Path(PROJECT_DIR, *module.split("."), "__main__.py").exists()


def parse(app: App, arguments: list[str]) -> None:
    app.parse_args(arguments, exit_on_error=False, print_error=False)


def parse_installation(installer: str, arguments: list[str]) -> None:
    """Have the installer read its arguments, and then show its help instead of installing.

    The pip is the one that a fresh virtual environment has, which is old.
    """
    command = [*INSTALLERS[installer], *arguments, "--help"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def parse_aws(arguments: list[str]) -> None:
    service, operation, *options = arguments
    model = boto3.session.Session()._session.get_service_model(service)
    names = {xform_name(name, "-"): name for name in model.operation_names}
    shape = model.operation_model(names[operation]).input_shape
    assert shape is not None
    known = {xform_name(member, "-") for member in shape.members} | {"cli-input-json"}
    for option in options:
        if option.startswith("--"):
            assert option.removeprefix("--").removeprefix("no-") in known, option


def check(name: str, arguments: list[str]) -> None:
    """Have a program read its arguments."""
    match name:
        case "make":
            assert {each for each in arguments if "=" not in each} <= make_targets()
        case "python" | "python3":
            assert arguments[0] == "-m"
            parse_module(arguments[1], arguments[2:])
        case "prefect":
            parse(prefect_commands, arguments)
        case "checkout":
            parse(command_line(), arguments)
        case "aws":
            parse_aws(arguments)
        case "pip" | "uv":
            parse_installation(name, arguments)
        case _:
            assert name in OF_THE_SYSTEM | OF_THE_SHELL, name


@pytest.mark.parametrize(
    ("document", "name", "arguments"),
    COMMANDS,
    ids=[f"{document}: {name} {' '.join(rest)}"[:90] for document, name, rest in COMMANDS],
)
def test_a_command_that_a_document_shows_is_taken_by_its_program(
    document: str, name: str, arguments: list[str]
) -> None:
    check(name, arguments)
    for argument in arguments:
        path = argument.removeprefix("file://")
        if path.startswith("deployments/"):
            assert (PROJECT_DIR / path).exists(), path


@pytest.mark.parametrize(("place", "command"), sorted(remedies()))
def test_a_command_that_a_remedy_names_is_taken_by_its_program(place: str, command: str) -> None:
    words = shlex.split(command.partition(" > ")[0])
    name, *arguments = [IN_PLACE_OF.get(word, word) for word in words]
    app = {"checkout": command_line, "prefect": lambda: prefect_commands}.get(name)
    # One that is only named, without its arguments, has to exist.
    if app is None or app().parse_commands(arguments)[2]:
        check(name, arguments)


RUN_BY = {
    "checkout answer": "console/test_answer.py::test_an_answer_dispatches_the_orders",
    "checkout archive verify": "console/test_archive.py::test_verify_finds_a_file",
    "checkout audit": "console/test_audit.py::test_audit_prints_what_is_off",
    "checkout batch failed": "console/test_batch.py::test_the_failed_orders_of_a_run",
    "checkout cancel": "console/test_cancel.py::test_with_a_yes_all_that_was_shown",
    "checkout compensations": "console/test_compensations.py::test_what_could_not_be_given_back",
    "checkout compensations retry": "console/test_compensations.py::test_what_failed_is_tried",
    "checkout compensations settle": "console/test_compensations.py::test_what_a_person_settles",
    "checkout dead-letters": "console/test_main.py::test_a_dead_letter_is_listed",
    "checkout dead-letters drop": "console/test_main.py::test_a_dead_letter_is_listed",
    "checkout dead-letters list": "console/test_main.py::test_a_dead_letter_is_listed",
    "checkout dead-letters redrive": "console/test_main.py::test_a_dead_letter_is_listed",
    "checkout dispatcher on": "flows/test_switches.py::test_the_command_says_which_holds",
    "checkout doctor": "console/test_doctor.py::test_what_is_to_be_mended",
    "checkout export": "console/test_sales.py::test_an_export_has_a_row",
    "checkout list": "console/test_orders.py::test_the_list_has_the_newest_first",
    "checkout metrics": "console/test_metrics.py::test_they_are_served_until_a_signal",
    "checkout online": "console/test_doctor.py::test_submitted_orders_that_no_batch",
    "checkout online on": "console/test_doctor.py::test_submitted_orders_that_no_batch",
    "checkout online status": "console/test_doctor.py::test_submitted_orders_that_no_batch",
    "checkout redrive": "console/test_main.py::test_redrive_puts_dead_letters_back",
    "checkout reopen": "console/test_doctor.py::test_the_remedies_of_work_pools",
    "checkout report": "console/test_sales.py::test_a_report_is_the_same",
    "checkout retry": "console/test_orders.py::test_a_failed_order_is_tried_again",
    "checkout serve": "web/test_door.py::test_an_order_is_accepted_once",
    "checkout show": "console/test_show.py::test_one_timeline_holds",
    "checkout stock add": "console/test_stock.py::test_what_came_in",
    "checkout stock list": "console/test_stock.py::test_the_list_begins",
    "make demo": "e2e/test_local_system.py::test_the_four_endings",
    "make up": "e2e/test_up.py::test_up_takes_the_printed_order",
    "prefect api": "console/test_doctor.py::test_the_remedies_of_paused_deployments",
    "prefect deploy": "e2e/conftest.py::local_system",
    "prefect deployment run": "e2e/test_local_system.py::test_a_file_of_orders_is_carried_out",
    "prefect deployment schedule resume": "console/test_doctor.py::test_the_remedies_of_paused",
    "prefect work-pool create": "console/test_doctor.py::test_the_remedies_of_work_pools",
    "prefect worker start": "console/test_doctor.py::test_the_remedies_of_work_pools",
    "python -m deployments.apply": "deployments/test_apply.py::test_the_command_says",
    "python -m deployments.automations": "console/test_doctor.py::test_the_remedy_of_missing",
    "python -m deployments.migrate": "deployments/test_migrate.py::test_a_database_with_all",
    "python -m deployments.provision": "aws/test_provision.py::test_what_was_changed_by_hand",
    "python -m deployments.warm_start": "deployments/test_warm_start.py::test_the_command_line",
    "python -m seed": "seed/test_seed.py::test_seeding_makes_the_tables",
}
"""The test that runs the command of a remedy, by the beginning of its name."""
NOT_RUN = {"checkout --help", "prefect deployment ls"}
"""Commands that change nothing."""


def command_of(remedy: str) -> str:
    """The command of a remedy without its arguments."""
    program, *arguments = shlex.split(remedy.partition(" > ")[0])
    match program:
        case "checkout" | "prefect":
            app = command_line() if program == "checkout" else prefect_commands
            return " ".join([program, *app.parse_commands(arguments)[0]])
        case "make":
            return " ".join([program, *(each for each in arguments if "=" not in each)])
        case _:
            return " ".join([program, *arguments[:2]])


def test_each_command_that_a_remedy_names_is_run_by_a_test() -> None:
    assert {command_of(command) for _, command in remedies()} == {*RUN_BY, *NOT_RUN}
    for command, test in RUN_BY.items():
        file, _, name = test.partition("::")
        source = Path(PROJECT_DIR, "tests", file).read_text()
        assert f"\ndef {name}" in source, f"{command}: {test}"


def test_a_command_that_its_program_does_not_take_is_found() -> None:
    with pytest.raises(CycloptsError):
        parse(prefect_commands, ["worker", "start", "--pol", "store"])
    with pytest.raises(CycloptsError):
        parse_module("seed.dynamodb", ["--book-table", "books"])
    with pytest.raises(AssertionError):
        parse_aws(["ecs", "register-task-definition", "--famly", "x"])
    with pytest.raises(AssertionError):
        parse_installation("pip", ["install", "--constrict", "constraints.txt", "uv"])
