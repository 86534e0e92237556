"""Whole numbers and shares on the command line: as they are written, or refused with the remedy."""

from typing import Any

import pytest

from console.main import commands
from deployments.automations import main as automations
from seed.__main__ import main as seed
from terminal.command_line import Command
from terminal.numbers import share, whole_number


@pytest.mark.parametrize(
    ("text", "number"), [("0", 0), ("12", 12), ("007", 7), ("9" * 18, 10**18 - 1)]
)
def test_a_whole_number_is_read_as_it_is_written(text: str, number: int) -> None:
    assert whole_number(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "2.7",
        "2.5",
        "0.6",
        "1.5e2",
        "1e3",
        "1.0",
        "-1",
        "+1",
        "1_000",
        "0x10",
        "٣",
        "",
        " 1",
        "9" * 19,
    ],
)
def test_what_is_no_whole_number_is_refused_with_the_remedy(text: str) -> None:
    with pytest.raises(ValueError, match="is no whole number; give digits alone"):
        whole_number(text)


@pytest.mark.parametrize(("text", "value"), [("0", 0.0), ("0.25", 0.25), ("1", 1.0), ("1.0", 1.0)])
def test_a_share_is_read_as_it_is_written(text: str, value: float) -> None:
    assert share(text) == value


@pytest.mark.parametrize("text", ["25", "1.01", "-0.1", "nan", "0,25", "1e-1", ".5", "0_0", "25%"])
def test_what_is_no_share_is_refused_with_the_remedy(text: str) -> None:
    with pytest.raises(ValueError, match="is no share; give a number from 0 to 1"):
        share(text)


@pytest.mark.parametrize("name", commands())
def test_every_number_of_every_command_is_read_strictly(name: str) -> None:
    numbers: list[Any] = [
        argument
        for argument in commands()[name].assemble_argument_collection()
        if argument.hint in (int, float)
    ]
    assert [each.name for each in numbers if each.parameter.converter is None] == []


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (seed, ["--books", "2.7"]),
        (seed, ["--users", "1_000"]),
        (seed, ["--courier", "c", "1.5"]),
        (automations, ["--silence-seconds", "90.5"]),
    ],
)
def test_the_commands_of_python_read_numbers_as_strictly(
    command: Command, arguments: list[str]
) -> None:
    assert command(arguments) == 2
