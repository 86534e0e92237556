"""The documents' tables are those that the code makes."""

from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from cogapp import Cog

from store.settings import Settings

PROJECT_DIR = Path(__file__).resolve().parents[2]
WITH_TABLES = sorted(
    path for path in (PROJECT_DIR / "docs").glob("*.md") if "[[[cog" in path.read_text()
)


@pytest.mark.parametrize("document", WITH_TABLES, ids=lambda path: str(path.name))
def test_the_tables_of_a_document_are_those_of_the_code(
    document: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stale = Cog().main(["cog", "--check", "--diff", str(document)])
    assert not stale, f"run make docs:\n{capsys.readouterr().out}"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_a_setting_is_described_with_each_of_its_choices(name: str) -> None:
    field = Settings.model_fields[name]
    assert field.description
    if get_origin(field.annotation) is Literal:
        assert all(f"`{choice}`" in field.description for choice in get_args(field.annotation))
