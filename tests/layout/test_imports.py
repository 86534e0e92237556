"""Imports run one way, in no circle, and no room has a module that is too long to read."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PROJECT_DIR = Path(__file__).resolve().parents[2]
BELOW_FIRST = ("fork_server", "store", "texts", "tasks", "orders", "reports", "flows", "terminal")
"""Each folder may import those before it, and nothing behind it."""
ON_TOP = ("seed", "deployments", "web", "console")
"""They may import all of these, and those before them."""
LINES_AT_MOST = 400
LINES_OF_A_FUNCTION_AT_MOST = 70
SHORT = (*BELOW_FIRST, *ON_TOP)


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text())


@cache
def modules() -> dict[str, Path]:
    """The modules of the product by their names."""
    return {
        ".".join(path.relative_to(PROJECT_DIR).with_suffix("").parts): path
        for folder in (*BELOW_FIRST, *ON_TOP)
        for path in (PROJECT_DIR / folder).rglob("*.py")
        if "migrations" not in path.parts and path.name != "__init__.py"
    }


@cache
def imported(module: str) -> frozenset[str]:
    """The product's modules that a module imports, at its top or where it needs them."""
    names: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
    return frozenset(names & modules().keys())


@cache
def reached(module: str) -> frozenset[str]:
    """All modules that a module imports, by others as well."""
    found: set[str] = set()
    new = set(imported(module))
    while new:
        found |= new
        new = {name for each in new for name in imported(each)} - found
    return frozenset(found)


def folder(module: str) -> str:
    return module.partition(".")[0]


def folders_imported() -> set[tuple[str, str]]:
    return {
        (folder(module), folder(name))
        for module in modules()
        for name in imported(module)
        if folder(module) != folder(name)
    }


def test_no_folder_imports_upwards() -> None:
    ranks = {name: rank for rank, name in enumerate((*BELOW_FIRST, *ON_TOP))}
    found = folders_imported()
    assert found
    assert {(importer, name) for importer, name in found if ranks[name] > ranks[importer]} == set()


def test_one_library_reads_all_command_lines() -> None:
    for module in modules():
        imports = [node for node in ast.walk(tree(module)) if isinstance(node, ast.Import)]
        names = {alias.name for node in imports for alias in node.names}
        assert not {"argparse", "click", "getopt", "optparse", "typer"} & names, module


def test_the_fork_server_stands_alone() -> None:
    assert {importer for importer, name in folders_imported() if name == "fork_server"} <= {*ON_TOP}
    assert not {name for importer, name in folders_imported() if importer == "fork_server"}


@pytest.mark.parametrize("module", ["console.main", "terminal.output"])
def test_the_help_of_the_command_line_does_not_wait_for_prefect_or_sqlalchemy(module: str) -> None:
    code = (
        f"import sys, {module}\n"
        "if 'console.main' in sys.modules: sys.modules['console.main'].main(['--help'])\n"
        "assert not {'prefect', 'sqlalchemy'} & sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT_DIR, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_seeding_does_not_wait_for_prefect() -> None:
    code = "import sys, seed.__main__; sys.exit('prefect' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT_DIR, check=True)


def test_no_modules_import_each_other_in_a_circle() -> None:
    circles = {
        tuple(sorted(each for each in reached(module) if module in reached(each)))
        for module in modules()
        if module in reached(module)
    }
    assert circles == set()


@pytest.mark.parametrize("module", [name for name in modules() if folder(name) in SHORT])
def test_a_room_has_no_module_and_no_function_that_is_too_long(module: str) -> None:
    assert len(modules()[module].read_text().splitlines()) <= LINES_AT_MOST
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(tree(module))
        if isinstance(node, ast.FunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= LINES_OF_A_FUNCTION_AT_MOST
    }
    assert long == {}
