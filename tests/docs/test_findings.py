"""Each finding has its row, and what a row names to show it exists."""

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

PROJECT_DIR = Path(__file__).resolve().parents[2]
DOCUMENT = (PROJECT_DIR / "docs" / "prefect.md").read_text()
FINDINGS = sorted((PROJECT_DIR / "findings").glob("*.sh"))

_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
_ROW = re.compile(r"^\|(.*)\|$", re.MULTILINE)


def rows_under(heading: str) -> list[list[str]]:
    """The cells of the rows of the table under a heading of the document, without its head."""
    _, _, text = DOCUMENT.partition(f"\n## {heading}\n")
    rows = _ROW.findall(text.partition("\n## ")[0])
    return [[cell.strip() for cell in row.split(" | ")] for row in rows[2:]]


def named_findings() -> list[str]:
    in_behaviours = set(re.findall(r"`findings/(\w+)\.sh`", DOCUMENT))
    return sorted({*in_behaviours, *(row[0].strip("`") for row in rows_under("Findings"))})


def test_every_finding_has_its_row_and_no_row_names_another() -> None:
    assert named_findings() == [path.stem for path in FINDINGS]


@pytest.mark.parametrize("row", rows_under("Behaviours"), ids=lambda row: row[0])
def test_each_behaviour_is_shown_by_a_test_or_a_finding(row: list[str]) -> None:
    assert len(row) == 5
    assert re.search(r"`(findings/\w+\.sh|tests/[\w/]+\.py::\w+)`", row[4])


def test_each_test_that_the_document_names_exists() -> None:
    named = _TEST.findall(DOCUMENT)
    assert named
    for file, test in named:
        tree = ast.parse((PROJECT_DIR / file).read_text())
        assert test in {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}, test


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda path: path.stem)
def test_a_finding_says_what_it_is_pins_its_packages_and_cleans_up(finding: Path) -> None:
    text = finding.read_text()
    subprocess.run(["/bin/bash", "-n", str(finding)], check=True)
    comment = re.match(r"#!/usr/bin/env bash\n((?:# .*\n)+)set -euo pipefail\n", text)
    assert comment
    assert all(part in comment[1] for part in ("# Guess: ", "# What happens: ", "Seen with "))
    assert re.search(r"^trap .*EXIT$", text, re.MULTILINE)
    (packages,) = re.findall(r"-m pip install --quiet --no-compile (.*)$", text, re.MULTILINE)
    assert all("==" in package for package in packages.split())
    assert os.access(finding, os.X_OK)
