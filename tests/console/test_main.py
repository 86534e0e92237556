"""What every command has in common: its help, its exit status, and what its errors say."""

import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App, CycloptsError
from prefect.logging.handlers import PrefectConsoleHandler
from rich.text import Text
from sqlalchemy import text

from console.main import COMMANDS, command_line, commands, main
from deployments.migrate import main as migrate_command
from seed.__main__ import main as seed
from seed.catalogue import TEN_X_RULE
from seed.dynamodb import main as import_tables
from store.database import engine, migrate, transaction
from store.messages import OrderMessage
from store.models import Book, OrderStatus, QueuedMessage, utc_now
from store.partners import order_queue
from store.queue import QueueDepth
from store.settings import settings
from terminal.command_line import Command
from terminal.output import duration, print_json, print_table, quiet_runs, terminal
from tests.shop import placed


@pytest.mark.parametrize("name", commands())
def test_every_command_says_what_it_is_for(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*name.split(), "--help"]) == 0
    first, *_ = commands()[name].help.splitlines()
    assert first.endswith(".")
    assert first.split()[0] in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary_of_a_command_is_the_first_line_of_its_help(name: str) -> None:
    *_, summary = COMMANDS[name]
    assert command_line()[name].help.splitlines()[0] == summary


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["dead-l"], "dead-letters"),
        (["dead-letters", "dr"], "drop"),
        (["list", "--older"], "--older-than"),
        (["list", "--status", "wait"], "waiting"),
        (["completion", "z"], "zsh"),
    ],
)
def test_bash_completes_commands_options_and_their_values(
    words: list[str], completed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    press_tab = (
        'eval "$0"; COMP_WORDS=(checkout "$@"); COMP_CWORD=$#; _checkout; echo "${COMPREPLY[@]}"'
    )
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    said = subprocess.run(
        ["/bin/bash", "-c", press_tab, script, *words], capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == [completed]


def test_the_completion_of_each_shell_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("#compdef checkout\n")
    assert all(f"'{name}:" in printed for name in COMMANDS)
    assert main(["completion", "fish"]) == 2


def test_an_unknown_command_is_wrong_usage_and_names_those_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["nonsense"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert next(iter(commands())) in said.err


def test_a_missing_setting_is_named_as_its_variable(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["redrive"]) == 1
    assert (
        "STORE_DATABASE_URL: is missing. For the system of `make up`: . .local/env"
        in capsys.readouterr().err
    )


def test_a_database_without_tables_is_told_with_the_remedy(
    empty_url: str, setting: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    setting("database_url", empty_url)
    assert main(["redrive"]) == 1
    assert "python -m deployments.migrate" in capsys.readouterr().err


def test_an_outage_of_the_database_is_told_as_what_passes(
    database: str, setting: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    url = settings().database_url
    setting("database_url", f"{url}&options=-c%20default_transaction_read_only%3Don")
    assert main(["redrive"]) == 1
    setting("database_url", url)
    said = capsys.readouterr().err
    assert "read-only transaction\nIt passes: the server takes no writes" in said


def test_a_database_that_is_newer_than_the_code_is_told_in_a_sentence(
    empty_url: str,
    tmp_path: Path,
    setting: Callable[[str, object], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    setting("database_url", empty_url)
    migrate(empty_url)
    with engine(empty_url).begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'newer'"))
        connection.execute(text("ALTER TABLE orders RENAME TO otherwise"))
    tables = ["--book-table", "b", "--user-table", "u", "--folder", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["seed"])
    commands_: list[tuple[Callable[..., int], list[list[str]]]] = [
        (main, [["list"]]),
        (main, [["show", "o-1"]]),
        (migrate_command, [[]]),
        (seed, []),
        (import_tables, [tables]),
    ]
    for command, arguments in commands_:
        assert command(*arguments) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert "version newer, which this code does not know" in said.err
        assert "; bring in that version of the code. Nothing was changed" in said.err
        assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("list --limit 0", "Must be >= 1"),
        ("list -n -1", "is no whole number"),
        ("compensations --limit 0", "Must be >= 1"),
        ("list --older-than 900000d", "no length of time from 0s to 36500d; give one such as 90m"),
        ("list --older-than 99999999999d", "'99999999999d' is no length of time"),
        ("list --younger-than=-1d", "'-1d' is no length of time"),
        ("archive --older-than year", "'year' is no length of time"),
        ("metrics --port 9000 --file metrics.prom", "Give --port or --file, not both."),
        ("submit --user u --order o-1", "there is no option --order\nSee checkout submit --help"),
        ("batch run --chunk-size 0", "Must be >= 1"),
        ("batch run --chunk-size 5001", "Must be <= 5000"),
        ("batch run --concurrency 33", "Must be <= 32"),
        ("batch run --tolerated-failures 25", "give a number from 0 to 1"),
        ("batch run --line-items", "Give --line-items with a file"),
        ("batch run orders.csv --failed-of x", "Give orders.csv or --failed-of, not both."),
    ],
)
def test_an_option_that_makes_no_sense_is_wrong_usage(
    command: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.split()) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert said in told.err


@pytest.mark.parametrize(
    ("command", "own"),
    [
        ("nonsense", "checkout"),
        ("dispatcher offf", "checkout dispatcher"),
        ("list --bogus", "checkout list"),
        ("compensations retry", "checkout compensations retry"),
        # The command itself refuses these.
        ("answer o-1 --by Ada", "checkout answer"),
        ("batch run --line-items", "checkout batch run"),
    ],
)
def test_wrong_usage_leads_to_the_help_of_the_command_that_was_called(
    command: str, own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.split()) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"See {own} --help."


@pytest.mark.usefixtures("database")
def test_a_status_is_named_and_taken_as_tables_write_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["list", "--status", "nonsense"]) == 2
    said = capsys.readouterr().err
    assert all(f'"{status}"' in said for status in OrderStatus)
    for written in ("compensation_failed", "compensation-failed"):
        assert main(["list", "--status", written]) == 0


@pytest.mark.parametrize(
    "url", ["nonsense", "nosuch://ada:secret@db/store", "mysql://ada:secret@db/store"]
)
def test_a_database_that_there_is_no_way_to_is_told_with_the_remedy(
    url: str, setting: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> None:
    setting("database_url", url)
    assert main(["redrive"]) == 1
    said = capsys.readouterr().err
    assert "STORE_DATABASE_URL: is no URL of a database" in said
    assert "secret" not in said


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://ada:a@secret@db/store",
        "postgresql+psycopg://ada:x@db:secret/store",
        "postgres://ada:secret@db/store",
        "'postgresql+psycopg://ada:secret@db/store'",
        "sqlite:////srv/secret.db",
    ],
)
def test_every_command_tells_of_a_wrong_url_without_quoting_it(
    url: str,
    setting: Callable[[str, object], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    setting("database_url", url)
    monkeypatch.setattr("sys.argv", ["seed"])
    commands_: list[tuple[Callable[..., int], list[list[str]]]] = [
        (main, [["list"]]),
        (migrate_command, [[]]),
        (seed, []),
        (import_tables, [["--book-table", "b", "--user-table", "u"]]),
    ]
    for command, arguments in commands_:
        assert command(*arguments) == 1
        said = capsys.readouterr().err
        assert said.startswith("STORE_DATABASE_URL: ")
        assert said.count("\n") == 1
        assert "secret" not in said


@pytest.mark.usefixtures("database")
def test_a_file_that_cannot_be_written_and_a_port_that_is_taken_are_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = str(tmp_path / "none" / "metrics.prom")
    assert main(["metrics", "--file", nowhere]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"{nowhere}.")
    assert said.err.endswith(": No such file or directory\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["metrics", "--port", str(taken.getsockname()[1])]) == 1
    assert capsys.readouterr().err == "Address already in use\n"


def test_a_missing_folder_of_secrets_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STORE_SECRETS_FOLDER", "/nowhere")
    assert main(["redrive"]) == 1
    assert capsys.readouterr().err == "STORE_SECRETS_FOLDER: there is no folder /nowhere\n"


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("command", ["list", "list --json"])
def test_a_reader_that_has_had_enough_is_no_error(command: str) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "console.main", *command.split()],
            stdout=write_end,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(write_end)
    # As a shell shows it of other programs; 1 is for what was refused or found wrong.
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.usefixtures("database")
def test_what_is_written_to_a_file_is_utf_8_in_any_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    with transaction() as session:
        session.get_one(Book, TEN_X_RULE).title = "雪国"
    placed("o-1", "dispatch_order")
    for command in ("report --by title --csv", "report --by title --json", "report --by title"):
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
        assert main(command.split()) == 0
        assert "雪国" in written.getvalue().decode()


def test_no_character_is_too_much_for_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.BytesIO):
        def isatty(self) -> bool:
            return True

    written = Terminal()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))
    app = App()
    app.default(lambda: terminal().print("Café “雪国”"))
    assert Command(app)([]) == 0
    assert written.getvalue().decode("latin-1").strip() == "Café ????"


def test_a_word_that_is_no_text_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    # As Python gives what a terminal of another encoding has sent.
    assert main(["cancel", "o-1", "--reason", os.fsdecode(b"caf\xe9")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Argument 4, caf?, is not text in utf-8; give it in the encoding of")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-5, "0 s"),
        (0.9, "0 s"),
        (59, "59 s"),
        (300, "5 min"),
        (301, "5 min 1 s"),
        (7_500, "2 h 5 min"),
        (86_400, "1 d"),
        (90_061, "1 d 1 h"),
    ],
)
def test_a_length_of_time_is_said_in_its_two_largest_units(seconds: float, said: str) -> None:
    assert duration(seconds) == said


LINE = "word " * 100
LOOKS_LIKE_MARKUP = "[red]:smile:[/red] [/] \\[y]"


def test_no_line_is_wrapped_where_no_terminal_is_so_wide(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for stderr in (False, True):
        terminal(stderr=stderr).print(LINE)
    print_table("Title", ["column"], [[LINE]], empty="")
    said = capsys.readouterr()
    assert said.err == said.out.splitlines(keepends=True)[0] == f"{LINE}\n"
    assert any(LINE.strip() in line for line in said.out.splitlines()[1:])


def test_data_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_json([LOOKS_LIKE_MARKUP])
    assert json.loads(capsys.readouterr().out) == [LOOKS_LIKE_MARKUP]
    terminal().print(LOOKS_LIKE_MARKUP)
    print_table(LOOKS_LIKE_MARKUP, ["column"], [[LOOKS_LIKE_MARKUP]], empty="")
    print_table("Title", ["column"], [], empty=LOOKS_LIKE_MARKUP)
    assert capsys.readouterr().out.count(LOOKS_LIKE_MARKUP) == 4


def test_what_a_run_of_the_command_logs_is_kept_off_the_terminal() -> None:
    terminal = io.StringIO()
    handler = PrefectConsoleHandler(stream=terminal)
    logger = logging.getLogger("prefect")
    logger.addHandler(handler)
    try:
        with quiet_runs():
            logger.error("a traceback")
        logger.error("the next one")
    finally:
        logger.removeHandler(handler)
    assert "a traceback" not in terminal.getvalue()
    assert "the next one" in terminal.getvalue()


@pytest.mark.usefixtures("database")
def test_redrive_puts_dead_letters_back_and_counts_them(capsys: pytest.CaptureFixture[str]) -> None:
    with transaction() as session:
        session.add(QueuedMessage(id="m", body="{}", visible_at=utc_now(), dead_at=utc_now()))
    assert main(["redrive", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"redriven": 1}
    assert main(["redrive"]) == 0
    assert "again: 0" in capsys.readouterr().out


@pytest.mark.usefixtures("database")
def test_a_dead_letter_is_listed_put_back_and_dropped_by_its_id(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = utc_now()
    of_order = OrderMessage(order_id="o-1", attempt=1, copies=2).model_dump_json()
    with transaction() as session:
        session.add_all(
            QueuedMessage(id=id_, body=body, visible_at=now, dead_at=now, dead_reason="poison")
            for id_, body in (("m-1", "{}"), ("m-2", of_order))
        )
        session.add(QueuedMessage(id="alive", body=of_order, visible_at=now))
    assert main(["dead-letters", "list"]) == 0
    listed = capsys.readouterr().out
    assert re.search(r"m-1 +│ unreadable +│ +0 │ poison", listed)
    assert re.search(r"m-2 +│ o-1 +│ +0 │ poison", listed)
    assert main(["dead-letters", "list", "--json"]) == 0
    letters = json.loads(capsys.readouterr().out)
    assert [(each["id"], each["order_id"]) for each in letters] == [("m-1", None), ("m-2", "o-1")]
    assert main(["dead-letters", "redrive", "m-1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"id": "m-1", "redriven": 1}
    assert main(["dead-letters", "drop", "m-2"]) == 0
    assert capsys.readouterr().out == "Dead letter m-2: dropped.\n"
    assert main(["dead-letters", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    for gone in ("m-2", "alive"):
        assert main(["dead-letters", "drop", gone]) == 1
        said = capsys.readouterr().err
        assert f"there is no dead letter {gone}; `checkout dead-letters list`" in said
    assert order_queue().depth() == QueueDepth(ready=2, in_hand=0, dead=0)


def use_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Let what is printed from now on go to a terminal of this width."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)


ORDER_ID = "01G4E1AZW2Q1X3QQEYBACQXMFH"
WHY = "BillingError: payment declined: the card was declined"
NAMES = ["order", "status", "total", "customer", "why"]


def print_an_order(**options: Any) -> None:
    row = [ORDER_ID, "compensated", "1000.00 USD", ORDER_ID, WHY]
    expendable = ["customer", "total"]
    print_table("Orders", NAMES, [row], empty="none", text="why", expendable=expendable, **options)


def plain(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """What was printed on both streams, without its colours."""
    printed, hint = capsys.readouterr()
    return Text.from_ansi(printed).plain, hint


@pytest.mark.parametrize("width", [80, 100, 160])
def test_no_line_of_a_table_is_wider_than_its_terminal_and_no_id_is_broken(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_terminal(monkeypatch, width)
    print_an_order()
    printed, hint = plain(capsys)
    assert all(len(line) <= width for line in printed.splitlines())
    assert ORDER_ID in printed
    assert ("1000.00 USD" in printed) == (width >= 100)
    assert printed.count(ORDER_ID) == (2 if width == 160 else 1)
    assert (WHY in printed) == (width == 160)
    assert bool(hint) == (width < 160)


def test_what_a_narrow_table_leaves_out_is_printed_if_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_terminal(monkeypatch, 80)
    print_an_order(wide=True)
    printed, hint = plain(capsys)
    assert (WHY in printed, printed.count(ORDER_ID), hint) == (True, 2, "")
    print_an_order(only="customer, why")
    printed, _ = plain(capsys)
    assert "compensated" not in printed
    assert ORDER_ID in printed
    with pytest.raises(CycloptsError, match=r"--columns whi: give some of order,status"):
        print_an_order(only="order,whi")


@pytest.mark.parametrize("wide", [True, False])
def test_a_table_has_its_numbers_to_the_right(
    capsys: pytest.CaptureFixture[str], wide: bool
) -> None:
    rows: list[list[object]] = [["a", 7], ["b", None], ["c", 1000]]
    print_table("Books", ["book", "copies"], rows, empty="none", wide=wide)
    printed, _ = plain(capsys)
    assert "│      7 │" in printed
    assert "│   1000 │" in printed


def test_a_pipe_gets_every_column_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    print_an_order()
    printed, hint = capsys.readouterr()
    assert WHY in printed
    assert hint == ""
