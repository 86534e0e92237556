"""The audit's rules, conditions that no query's row may meet."""

from collections.abc import Sequence
from typing import NamedTuple

from store.models import FAILED, GOING_FORWARD, HOLDING, UNDOING, OrderStatus
from store.sql import sql_list
from tasks.steps import SEQUENCE, STEPS, UNDOS


class Rule(NamedTuple):
    """A condition that no row may meet, and its text.

    ``facts`` is a sentence with the row's columns in braces.
    """

    invariant: str
    broken_if: str
    facts: str
    is_warning: bool = False


class Check(NamedTuple):
    """A query with one row for each subject, and its rules.

    A row is reported by the first rule that it breaks.

    ``subject`` names a row by its columns.
    """

    subject: str
    rows: str
    rules: Sequence[Rule]


HELD = sql_list(HOLDING)
TAKING = sql_list(list(UNDOS))
INTENDED = sql_list([step.name for step in STEPS if step.asks_outside])
REFUSABLE = sql_list([step.name for step in STEPS if step.asks_outside and step.name in UNDOS])
STATES = ", ".join(f"{name}: {{{name}}}" for name in SEQUENCE)
"""The state of each step in an order's row, for a finding."""
FORWARD = sql_list(GOING_FORWARD)
BACKWARD = sql_list(UNDOING)
BILLED = sql_list([OrderStatus.WAITING, OrderStatus.DISPATCHING, OrderStatus.DISPATCHED])
ON_ITS_WAY = sql_list([OrderStatus.DISPATCHING, OrderStatus.DISPATCHED])
EXPLAINED = sql_list([*FAILED, *UNDOING])
