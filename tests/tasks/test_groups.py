"""A group of orders costs a step as many statements as one order does."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event

from seed.catalogue import JOHN_DOE
from store.database import engine
from store.errors import CheckoutFailed
from store.saga import fail_orders
from store.settings import settings
from tests.shop import STEPS, carry_on, give_back, place, set_capacities

MANY = 30


@contextmanager
def statements() -> Iterator[list[str]]:
    """The statements that are executed, each as often as the database gets it."""
    executed: list[str] = []

    def note(_: Any, _cursor: Any, statement: str, values: Any, _context: Any, many: bool) -> None:
        executed.extend([statement] * (len(values) if many else 1))

    listening = engine(settings().database_url)
    event.listen(listening, "before_cursor_execute", note)
    try:
        yield executed
    finally:
        event.remove(listening, "before_cursor_execute", note)


def a_group(name: str, size: int) -> list[str]:
    """Orders of which every other one redeems, in their cart."""
    ids = [f"{name}-{number:02d}" for number in range(size)]
    for number, id_ in enumerate(ids):
        place(id_, redeem=number % 2 == 0, user_id=JOHN_DOE)
    return ids


@pytest.mark.usefixtures("database")
def test_a_step_takes_as_many_statements_for_many_orders_as_for_two() -> None:
    set_capacities(only=1_000)
    few, many = a_group("few", 2), a_group("many", MANY)
    for name in STEPS:
        counts = []
        for ids in (few, many):
            with statements() as executed:
                STEPS[name](ids)
            counts.append(len(executed))
        assert counts[0] == counts[1] > 0, name


@pytest.mark.usefixtures("database")
def test_giving_back_takes_as_many_statements_for_many_orders_as_for_two() -> None:
    few, many = a_group("few", 2), a_group("many", MANY)
    carry_on([*few, *many], up_to="prepare_order")
    counts = []
    for ids in (few, many):
        with statements() as executed:
            fail_orders(ids, CheckoutFailed("snow"))
            give_back(*ids)
        counts.append(len(executed))
    assert counts[0] == counts[1] > 0
