"""What seeding and importing say when they stop; tests/aws imports from tables of DynamoDB."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from seed import __main__, dynamodb
from store.errors import SourceUnavailable
from tests.shop import NOWHERE

TABLES = ("--book-table", "books", "--user-table", "users")
ADVICE = "What was read is kept; the same command goes on from there."


@pytest.fixture
def folder(tmp_path: Path, store_url: str, setting: Callable[[str, object], None]) -> Path:
    setting("database_url", store_url)
    return tmp_path


@pytest.mark.parametrize("module", ["seed", "seed.dynamodb"])
def test_what_stands_in_the_way_is_told_without_a_traceback(
    module: str,
    setting: Callable[[str, object], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = __main__.main if module == "seed" else dynamodb.main
    monkeypatch.setattr("sys.argv", [module, *(TABLES if module == "seed.dynamodb" else ())])
    for url, told in (
        ("", "STORE_DATABASE_URL: is empty; it must be postgresql+psycopg://"),
        (NOWHERE, "The store's database cannot be used: connection is bad"),
    ):
        setting("database_url", url)
        assert command() == 1
        assert told in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["", "4242424242424242", "a card"])
def test_what_is_no_id_of_a_payment_method_is_refused(
    wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dynamodb.main([*TABLES, "--payment-method", wrong]) == 2
    assert "--payment-method" in capsys.readouterr().err


def test_an_unknown_test_method_is_refused_before_anything_is_read(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*TABLES, "--folder", str(folder / "import"), "--payment-method", "pm_ledger_fail_x"]
    assert dynamodb.main(command) == 1
    said = capsys.readouterr().err
    assert "--payment-method: the embedded gateway has no test method pm_ledger_fail_x" in said
    assert "Nothing was changed." in said
    assert not (folder / "import").exists()


def test_a_table_that_does_not_answer_is_no_loss(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unavailable(*_: object) -> None:
        raise SourceUnavailable("no answer from [/books] :smile:")

    monkeypatch.setattr(dynamodb, "_page", unavailable)
    assert dynamodb.main([*TABLES, "--folder", str(folder)]) == 1
    assert capsys.readouterr().err == f"no answer from [/books] :smile:\n{ADVICE}\n"


def test_what_the_same_command_would_meet_again_is_not_advised_to_be_called_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished = {"what": {}, "progress": {"others": {"is_done": False}}}
    (folder / "state.json").write_text(json.dumps(unfinished))
    assert dynamodb.main([*TABLES, "--folder", str(folder)]) == 1
    said = capsys.readouterr().err
    assert "keeps an unfinished import of other tables" in said
    assert ADVICE not in said
