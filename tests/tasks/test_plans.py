"""The plans of a group's statements do not hang on what PostgreSQL takes its tables for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, text

from orders.intake import claim_orders, submit_orders
from store.database import engine
from store.partners import order_queue
from store.settings import settings
from tasks.steps import BEFORE_THE_WAIT
from tests.shop import STEPS, add_book, an_order, set_capacities, statuses

ORDERS = 2_500
BEHIND = {
    "saga_log": "INSERT INTO saga_log (order_id, attempt, step, state, result, at, undo_tries) "
    "SELECT 'o-0', n, 'none', 'void', '{}', now(), 0 FROM generate_series(2, 5000) n",
    "order_lines": "INSERT INTO order_lines (order_id, book_id, quantity) "
    "SELECT 'o-0', 'none-' || n, 1 FROM generate_series(1, 5000) n",
    "order_queue": "INSERT INTO order_queue (id, body, visible_at, receive_count, sent_at) "
    "SELECT n::text, '', now(), 0, now() FROM generate_series(1, 5000) n",
}


def take_tables_for_empty() -> None:
    """Have PostgreSQL count the tables while all of their rows are another transaction's."""
    outside = engine(settings().database_url).execution_options(isolation_level="AUTOCOMMIT")
    with engine(settings().database_url).connect() as writer, outside.connect() as autovacuum:
        for insert in BEHIND.values():
            writer.execute(text(insert))
        autovacuum.execute(text(f"VACUUM ANALYZE {', '.join(BEHIND)}"))
        writer.rollback()
        counted = autovacuum.execute(
            text("SELECT relname, reltuples FROM pg_class WHERE relname = ANY(:names)"),
            {"names": list(BEHIND)},
        )
        assert max(count for _, count in counted) <= 1, "the other transaction's rows are counted"


@contextmanager
def plans() -> Iterator[list[tuple[str, list[dict[str, Any]]]]]:
    """The statements that read or change a group's rows, each with the nodes of its plan."""
    planned: list[tuple[str, list[dict[str, Any]]]] = []

    def explain(connection: Any, _: Any, statement: str, values: Any, *_more: Any) -> None:
        if statement.startswith(("SELECT", "UPDATE", "DELETE")) and "FROM" in statement:
            plain = connection.connection.dbapi_connection
            row = plain.execute(f"EXPLAIN (FORMAT JSON) {statement}", values).fetchone()
            planned.append((statement, [*nodes(row[0][0]["Plan"])]))

    listening = engine(settings().database_url)
    event.listen(listening, "before_cursor_execute", explain)
    try:
        yield planned
    finally:
        event.remove(listening, "before_cursor_execute", explain)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The plan's nodes, from its top."""
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


def compares_each_with_each(plan: list[dict[str, Any]]) -> bool:
    """Whether rows are joined by going through all of one side for each of the other."""
    return any(node["Node Type"] == "Nested Loop" for node in plan)


@pytest.mark.usefixtures("database")
def test_no_statement_of_a_group_compares_each_row_with_each() -> None:
    set_capacities(only=ORDERS)
    add_book("many", ORDERS)
    ids = [f"o-{number}" for number in range(ORDERS)]
    orders = [an_order(id_, book_id="many", redeem=True) for id_ in ids]
    submit_orders(orders[:1])
    take_tables_for_empty()
    submit_orders(orders)
    of_group: dict[str, Callable[[list[str]], object]] = {
        "claim": lambda ids: claim_orders("a run", len(ids)),
        **{step.name: step.task.fn for step in BEFORE_THE_WAIT},
        "receive": lambda ids: order_queue().receive(len(ids), 0),
        **STEPS,
    }
    for name, work in of_group.items():
        with plans() as planned:
            work(ids)
        assert planned, name
        slow = [statement for statement, plan in planned if compares_each_with_each(plan)]
        assert not slow, f"{name}: {slow}"
    assert statuses(ids) == {"dispatched"}


@pytest.mark.usefixtures("database")
def test_a_group_is_planned_without_comparing_its_ids_with_common_ones() -> None:
    ids = [f"o-{number}" for number in range(20)]
    submit_orders([an_order(id_, items={"b-1": 1, "b-2": 1}) for id_ in ids])
    outside = engine(settings().database_url).execution_options(isolation_level="AUTOCOMMIT")
    with outside.connect() as connection:
        connection.execute(text("ANALYZE order_lines"))
        common = connection.execute(
            text(
                "SELECT cardinality(most_common_freqs) FROM pg_stats "
                "WHERE tablename = 'order_lines' AND attname = 'order_id'"
            )
        )
        assert common.scalar_one() in (None, 1)
