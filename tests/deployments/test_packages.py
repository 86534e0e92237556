"""What the programs import is asked for by name, not left to what another package brings along."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deployments.local import PROJECT_DIR

PROJECT = tomllib.loads((PROJECT_DIR / "pyproject.toml").read_text())
PACKAGES = [
    pattern.rstrip("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
]
OF_BOTO3 = "botocore"
"""The half of boto3 in which its errors are; it has no version of its own choosing."""


def imports(path: Path) -> Iterator[str]:
    """The names of the top-level packages that a file imports when it runs."""
    tree = ast.parse(path.read_text())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def test_every_package_that_the_programs_import_is_asked_for_by_name() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    optional = [each for extra in ("stripe", "dask", "parquet") for each in extras[extra]]
    asked_for = [*PROJECT["project"]["dependencies"], *optional]
    declared = {canonicalize_name(Requirement(each).name) for each in asked_for}
    imported = {
        name
        for package in PACKAGES
        for path in (PROJECT_DIR / package).rglob("*.py")
        for name in imports(path)
    } - {*PACKAGES, *sys.stdlib_module_names, OF_BOTO3}
    assert {"prefect", "yaml"} <= imported
    providers = packages_distributions()
    missing = {
        name
        for name in imported
        if not {canonicalize_name(each) for each in providers[name]} & declared
    }
    assert missing == set()
