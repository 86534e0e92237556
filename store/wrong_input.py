"""Errors of invalid input with field and reason, without the value.

The texts go into logs, states and reports, so they hold nothing that was put in. The name of an
unknown field was put in too. Who wrote it is told it, shortened, if it looks like a name; a log is
not.
"""

import re
from dataclasses import dataclass

from pydantic import ValidationError

from store.errors import and_more, first_of

FIELD_LENGTH = 100
"""Characters that are quoted of a field's name."""

_A_NAME = re.compile(rf"[A-Za-z_][A-Za-z0-9_-]{{0,{FIELD_LENGTH - 1}}}")
_REASONS = {
    "extra_forbidden": "is not a known field",
    "string_pattern_mismatch": "has a wrong form",
    "missing": "is missing",
}
"""By pydantic's type of error; its own text quotes a regular expression, or names no remedy."""
OF_MAKE_UP = ". For the system of `make up`: . .local/env"
"""The remedy of a forgotten environment."""


@dataclass(frozen=True, slots=True)
class Problem:
    """The path of a wrong field and why it is wrong.

    A problem of the whole input has no field.
    """

    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}" if self.field else self.reason


def problems(error: ValidationError) -> list[Problem]:
    """Return pydantic's problems in its order, without any value."""
    return [
        Problem(
            ".".join(_named(part) for part in found["loc"]),
            _REASONS.get(found["type"]) or found["msg"].removeprefix("Value error, "),
        )
        for found in error.errors(include_url=False, include_input=False)
    ]


def first_problem(error: ValidationError) -> Problem:
    """Return the first problem, with how many more there are."""
    first, *others = problems(error)
    return Problem(
        first.field, first.reason + "".join(f" ({more})" for more in and_more(len(others)))
    )


def _named(part: int | str) -> str:
    if isinstance(part, int):
        return str(part)
    name = part[:FIELD_LENGTH]
    return name if _A_NAME.fullmatch(name) else "(not a name)"


def for_a_log(error: ValidationError) -> str:
    """Return the problems in a line with unknown fields only counted.

    The names of unknown fields may be data.
    """
    kinds = [found["type"] for found in error.errors(include_url=False, include_input=False)]
    known = [
        str(each)
        for each, kind in zip(problems(error), kinds, strict=True)
        if kind != "extra_forbidden"
    ]
    unknown = len(kinds) - len(known)
    return first_of([*known, *([f"unknown fields: {unknown}"] if unknown else [])], "; ")


def described(error: ValidationError) -> list[str]:
    """Return a line for each problem, naming a setting by its variable."""
    found = problems(error)
    if error.title.endswith("Settings"):
        found = [
            Problem(
                f"STORE_{each.field.upper()}" if each.field else "",
                each.reason + (OF_MAKE_UP if each.reason == _REASONS["missing"] else ""),
            )
            for each in found
        ]
    return [str(each) for each in found]
