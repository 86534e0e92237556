"""Numbers on the command line, read strictly.

cyclopts 5.4 rounds what it is given for an int (2.7 is 3) before any validator sees it, so the
text is read here.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter, Token


def whole_number(text: str) -> int:
    """Return the whole number, from 0, that a text has in digits.

    Raises:
        ValueError: it has another; the remedy is named.
    """
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise ValueError(f"{text!r} is no whole number; give digits alone, such as 12")
    return int(text)


def share(text: str) -> float:
    """Return a text's share from 0 to 1, in decimal digits.

    Raises:
        ValueError: it has another; the remedy is named.
    """
    if not re.fullmatch(r"0(\.[0-9]{1,9})?|1(\.0{1,9})?", text):
        raise ValueError(f"{text!r} is no share; give a number from 0 to 1, such as 0.25")
    return float(text)


def _whole(_: Any, tokens: Sequence[Token]) -> int:
    return whole_number(tokens[0].value)


def _share(_: Any, tokens: Sequence[Token]) -> float:
    return share(tokens[0].value)


WholeNumber = Annotated[int, Parameter(converter=_whole)]
Share = Annotated[float, Parameter(converter=_share)]
