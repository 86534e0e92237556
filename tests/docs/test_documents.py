"""What the documents name exists, and what exists is named there."""

import importlib
import inspect
import pkgutil
import re
import shlex
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import pytest
from prefect import Task
from sqlmodel import SQLModel

import orders
import tasks
from console.main import commands
from deployments.demo import CASES
from deployments.example_order import FIRST_ORDER
from deployments.prefect_yaml import variables_of
from docs import tables
from flows.batch import batch_checkout
from flows.checkout import store_checkout
from store.messages import BatchAnswer, CheckoutOrder, CourierAnswer
from store.models import ENDED, OrderStatus
from tasks.retries import RETRIES
from tasks.steps import STEPS, UNDOS

PROJECT_DIR = Path(__file__).resolve().parents[2]
README = (PROJECT_DIR / "README.md").read_text()
ADR_SECTIONS = ["Context", "Decision", "Consequences", "Rejected"]
NOT_OF_THE_CHECKOUT = {"find_couriers", "load_orders"}
"""Tasks of other flows, which are no steps of an order."""

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_MAKE = re.compile(r"\bmake ([a-z-]+)\b")


def documents() -> list[Path]:
    return sorted(
        [
            *PROJECT_DIR.glob("*.md"),
            *(PROJECT_DIR / "docs").rglob("*.md"),
            *(PROJECT_DIR / folder / "README.md" for folder in ("benchmarks", "fork_server")),
        ],
        key=lambda path: path.relative_to(PROJECT_DIR).parts,
    )


def name_of(document: Path) -> str:
    return str(document.relative_to(PROJECT_DIR))


def section(place: str) -> str:
    """The text under a heading, `README.md ## Layout`, up to the next one of its level or above."""
    name, _, heading = place.partition(" ")
    level = heading.partition(" ")[0]
    text = (PROJECT_DIR / name).read_text()
    _, found, rest = f"\n{text}".partition(f"\n{heading}\n")
    assert found, f"{name} has no heading {heading!r}"
    return re.split(rf"^#{{1,{len(level)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def table(place: str, first_column: str) -> dict[str, list[str]]:
    """The cells of each row under a heading, by the code in its first cell.

    `first_column` tells the section's tables apart; all of that name are read.
    """
    rows: dict[str, list[str]] = {}
    is_wanted = False
    for line in section(place).splitlines():
        if not line.startswith("|"):
            is_wanted = False
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == first_column:
            is_wanted = True
        elif is_wanted and not cells[0].startswith("---"):
            for name in _CODE.findall(cells[0]):
                assert name not in rows, f"{name} has two rows under {place!r}"
                rows[name] = cells[1:]
    assert rows, f"no table of {first_column!r} under {place!r}"
    return rows


def code_of(text: str) -> str:
    """Everything in a document that is set as code."""
    return "\n".join([*_FENCED.findall(text), *_CODE.findall(_FENCED.sub("", text))])


def test_each_table_of_the_store_has_its_row_in_the_architecture() -> None:
    assert set(table("docs/architecture.md ## Tables", "Table")) == set(SQLModel.metadata.tables)


@cache
def task_names() -> frozenset[str]:
    return frozenset(
        member.name
        for package in (tasks, orders)
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
        for _, member in inspect.getmembers(importlib.import_module(module.name))
        if isinstance(member, Task)
    )


def make_targets() -> set[str]:
    makefile = (PROJECT_DIR / "Makefile").read_text()
    return set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def anchors(path: Path) -> set[str]:
    """The anchors that a renderer makes of the document's headings."""
    headings = re.findall(r"^#+ (.+)$", _FENCED.sub("", path.read_text()), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


def checkout_commands() -> Iterator[tuple[str, list[str]]]:
    """Each `prefect deployment run` of a document: the deployment, and its further arguments."""
    for document in documents():
        for line in code_of(document.read_text()).splitlines():
            if line.startswith("prefect deployment run "):
                deployment, *arguments = shlex.split(line)[3:]
                yield deployment, arguments


def test_every_setting_that_a_document_names_exists() -> None:
    known = {
        *table("docs/settings.md ## The store", "Setting"),
        *table("docs/settings.md ## The deployments", "Variable"),
    }
    for document in documents():
        named = set(re.findall(r"\bSTORE_[A-Z_]+\b", document.read_text()))
        assert named <= known, name_of(document)


def test_the_deployments_table_has_every_variable_of_prefect_yaml() -> None:
    variables = variables_of((PROJECT_DIR / "prefect.yaml").read_text())
    assert set(table("docs/settings.md ## The deployments", "Variable")) == variables


def test_the_prefect_table_has_every_variable_that_the_local_system_sets() -> None:
    source = (PROJECT_DIR / "deployments" / "local_settings.py").read_text()
    assert set(table("docs/settings.md ## Prefect", "Variable")) == set(
        re.findall(r'"(PREFECT_\w+)":', source)
    )


@pytest.mark.parametrize("name", ["PREFECT_CLIENT_MAX_RETRIES", "PREFECT_WORKER_QUERY_SECONDS"])
def test_the_prefect_table_gives_the_value_that_the_local_system_sets(name: str) -> None:
    source = (PROJECT_DIR / "deployments" / "local_settings.py").read_text()
    value = re.search(rf'"{name}": "(\w+)"', source)
    assert value is not None
    assert table("docs/settings.md ## Prefect", "Variable")[name][0] == f"`{value[1]}`"


def test_the_status_table_has_every_status_and_says_which_is_an_end() -> None:
    rows = table("docs/reference.md ## Statuses of an order", "Status")
    assert set(rows) == set(OrderStatus)
    assert {status for status, (ended, _) in rows.items() if ended == "yes"} == set(ENDED)


def test_the_reference_names_every_task() -> None:
    assert task_names() <= set(_CODE.findall(section("docs/reference.md ## Steps and undos")))


def test_every_task_is_a_step_an_undo_or_of_another_flow() -> None:
    undos = {undo.name for undo in UNDOS.values()}
    assert task_names() == {step.name for step in STEPS} | undos | NOT_OF_THE_CHECKOUT


def test_the_documents_give_the_order_of_undoing() -> None:
    undos = ", ".join(f"`{undo.name}`" for undo in UNDOS.values())
    steps = section("docs/reference.md ## Steps and undos")
    assert f"The undos run in the order {undos}." in " ".join(steps.split())
    assert [f"{undo.name}" for undo in UNDOS.values()] == re.findall(
        r"\w+\[\"((?:refund|restore)_\w+)\"\]", README
    )


def test_the_way_from_the_original_gives_the_number_of_retries() -> None:
    text = (PROJECT_DIR / "docs" / "migrating.md").read_text()
    assert f"task `bill_customer`, {RETRIES} retries" in text


def test_the_parameter_table_has_every_parameter_of_the_checkout_and_its_choices() -> None:
    rows = table("README.md ## Start a checkout", "Parameter")
    parameters = inspect.signature(store_checkout.fn).parameters
    assert set(rows) == set(parameters)
    assert set(get_args(parameters["wait"].annotation)) <= set(_CODE.findall(rows["wait"][0]))
    assert f"`{parameters['wait'].default}`, the default" in rows["wait"][0]


def test_the_parameter_table_has_every_parameter_of_the_batch() -> None:
    parameters = inspect.signature(batch_checkout.fn).parameters
    assert set(table("docs/batches.md # Batches", "Parameter")) == set(parameters)


def test_the_answers_to_a_batch_are_those_of_its_form() -> None:
    outcomes = get_args(BatchAnswer.model_fields["outcome"].annotation)
    assert outcomes
    assert set(table("docs/batches.md # Batches", "Answer")) == set(outcomes)


def test_the_input_table_has_every_field_of_an_order() -> None:
    fields = {field.alias for field in CheckoutOrder.model_fields.values()}
    assert set(table("docs/reference.md ## Input", "Name")) == fields


def test_the_form_table_has_every_field_of_the_answer_and_every_outcome() -> None:
    rows = table("docs/operating.md ## Answer a waiting order", "Field")
    assert set(rows) == set(CourierAnswer.model_fields)
    outcomes = get_args(CourierAnswer.model_fields["outcome"].annotation)
    assert outcomes
    assert set(outcomes) <= set(_CODE.findall(rows["outcome"][0]))


def test_each_command_that_starts_a_run_names_a_deployment_and_has_a_good_order() -> None:
    commands = list(checkout_commands())
    assert FIRST_ORDER in [value.partition("=")[2] for _, (_, value) in commands]
    for deployment, arguments in commands:
        assert deployment in tables.deployed()
        assert arguments[::2] == ["--param"] * (len(arguments) // 2)
        for argument in arguments[1::2]:
            name, _, value = argument.partition("=")
            if deployment == "batch-checkout/nightly":
                assert name in inspect.signature(batch_checkout.fn).parameters
                continue
            assert name == "order"
            CheckoutOrder.model_validate_json(value)


def test_the_demos_output_in_the_readme_has_its_cases_and_their_endings() -> None:
    for case in CASES:
        ending = re.escape(f"{case.status} ({case.error})" if case.error else case.status)
        row = rf"^│ {case.title} +│ {ending} +│ ok │"
        assert re.search(row, README, re.MULTILINE), case.title
    printed = README.partition("```text\n")[2].partition("```")[0]
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize("document", documents(), ids=name_of)
def test_each_checkout_command_that_a_document_names_exists(document: Path) -> None:
    known = {command.split()[0] for command in commands()}
    for line in code_of(document.read_text()).splitlines():
        if called := re.match(r"^`?checkout ([a-z-]+)", line):
            assert called[1] in known, line


@pytest.mark.parametrize("document", documents(), ids=name_of)
def test_each_make_target_and_module_that_a_document_names_exists(document: Path) -> None:
    code = code_of(document.read_text())
    assert set(_MAKE.findall(code)) <= make_targets()
    for module in re.findall(r"python -m ([\w.]+)", code):
        assert find_spec(module) is not None, module


def test_the_readme_names_the_two_commands() -> None:
    assert {"demo", "test", "up"} <= set(_MAKE.findall(code_of(README)))


def test_the_readme_leads_to_every_document() -> None:
    linked = {link.partition("#")[0] for link in _LINK.findall(section("README.md ## Read on"))}
    assert {f"docs/{path.name}" for path in (PROJECT_DIR / "docs").glob("*.md")} <= linked


@pytest.mark.parametrize("document", documents(), ids=name_of)
def test_each_relative_link_of_a_document_resolves(document: Path) -> None:
    for link in _LINK.findall(_FENCED.sub("", document.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = document.parent / target if target else document
        assert path.exists(), link
        if anchor:
            assert anchor in anchors(path), link


@pytest.mark.parametrize("document", documents(), ids=name_of)
def test_each_file_of_the_project_that_a_document_names_exists(document: Path) -> None:
    folders = "|".join(
        (
            *(
                "flows",
                "orders",
                "reports",
                "tasks",
                "texts",
                "store",
                "seed",
                "deployments",
                "console",
            ),
            *("tests", "docs", "benchmarks"),
        )
    )
    for name in re.findall(rf"(?<![/-])\b(?:{folders})/[\w/.@-]*\w", code_of(document.read_text())):
        assert name in tables.deployed() or (PROJECT_DIR / name).exists(), name


def test_each_decision_is_listed_and_has_its_sections() -> None:
    folder = PROJECT_DIR / "docs" / "adr"
    records = sorted(folder.glob("[0-9]*.md"))
    assert _LINK.findall((folder / "README.md").read_text()) == [path.name for path in records]
    for number, path in enumerate(records, start=1):
        text = path.read_text()
        assert path.name.startswith(f"{number:04}-")
        assert text.startswith(f"# {number}. ")
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ADR_SECTIONS
