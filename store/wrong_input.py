"""What people are told of input that pydantic refuses: the field and the reason, never the value.

The texts go into logs, states and reports, so they hold nothing that was put in. A field's name
that nobody knows was put in too: it is quoted where it looks like a name, and shortened.
"""

import re
from dataclasses import dataclass

from pydantic import ValidationError

FIELD_LENGTH = 100
"""Characters that are quoted of a field's name."""

_A_NAME = re.compile(rf"[A-Za-z_][A-Za-z0-9_-]{{0,{FIELD_LENGTH - 1}}}")
_REASONS = {
    "extra_forbidden": "is not a known field",
    "string_pattern_mismatch": "has a wrong form",
    "missing": "is missing",
}
"""By pydantic's type of error; its own text quotes a regular expression, or names no remedy."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A wrong field, by its path, and why it is wrong; no field where it is the whole."""

    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}" if self.field else self.reason


def problems(error: ValidationError) -> list[Problem]:
    """Return each problem that pydantic has found, in its order, without any value."""
    return [
        Problem(
            ".".join(_named(part) for part in found["loc"]),
            _REASONS.get(found["type"]) or found["msg"].removeprefix("Value error, "),
        )
        for found in error.errors(include_url=False, include_input=False)
    ]


def _named(part: int | str) -> str:
    if isinstance(part, int):
        return str(part)
    name = part[:FIELD_LENGTH]
    return name if _A_NAME.fullmatch(name) else "(not a name)"
