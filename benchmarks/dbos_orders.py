"""The same steps as durable workflows of DBOS's Python library: one workflow for each order.

Each step is a transaction of the library's own datasource, so that its effect and its record are
committed together, as here; the library's records stand in for the saga log. A step is two or
three plain statements for one order, written as its documentation advises. As many workflows run
at a time as were found to be fastest, and the garbage collector is spared as in a batch.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from dbos import DBOS, SQLAlchemyDatasource
from sqlalchemy import text

from benchmarks.ground import RUN_ID, answer
from flows.batches.bulk import few_collections
from store.settings import settings

AT_ONCE = 16


def main() -> None:
    """Measure; the shop is prepared."""
    DBOS(
        config={
            "name": "store",
            "system_database_url": settings().database_url,
            "max_executor_threads": AT_ONCE,
            "sys_db_pool_size": AT_ONCE + 4,
            "log_level": "WARNING",
        }
    )
    store = SQLAlchemyDatasource.create(
        settings().database_url, engine_kwargs={"pool_size": AT_ONCE + 4}
    )
    check_out = _workflow(store)
    DBOS.launch()
    with store.engine.connect() as connection:
        ids = [row[0] for row in connection.execute(text("SELECT id FROM orders ORDER BY id"))]
    started, began_cpu = time.perf_counter(), time.process_time()
    with few_collections():
        handles = [DBOS.start_workflow(check_out, order_id) for order_id in ids]
        for handle in handles:
            handle.get_result(polling_interval_sec=0.05)
    seconds, cpu = time.perf_counter() - started, time.process_time() - began_cpu
    with store.engine.connect() as connection:
        done = connection.scalar(text("SELECT count(*) FROM orders WHERE status = 'dispatched'"))
    assert done == len(ids), f"{done} of {len(ids)} orders are dispatched"
    answer(orders=len(ids), seconds=seconds, cpu_seconds=cpu)
    sys.stdout.flush()
    # The library's threads would be waited for.
    os._exit(0)


def _workflow(store: SQLAlchemyDatasource) -> Callable[[str], str]:
    step = store.transaction(isolation_level="READ COMMITTED")

    def run(statement: str, **values: Any) -> Any:
        return store.sql_session().execute(text(statement), values)

    @step
    def check_inventory(order_id: str) -> dict[str, int]:
        run(
            "UPDATE orders SET status = 'started', run_id = :run, updated_at = :now WHERE id = :id",
            id=order_id,
            run=RUN_ID,
            now=_now(),
        )
        sold = run(
            "UPDATE books SET quantity = books.quantity - line.quantity FROM order_lines AS line "
            "WHERE line.order_id = :id AND books.id = line.book_id "
            "AND books.quantity >= line.quantity RETURNING books.id, line.quantity",
            id=order_id,
        )
        return dict(sold.all())

    @step
    def calculate_total(order_id: str) -> int:
        priced = run(
            "UPDATE order_lines AS line SET unit_price_cents = books.price_cents FROM books "
            "WHERE line.order_id = :id AND books.id = line.book_id "
            "RETURNING line.quantity * books.price_cents",
            id=order_id,
        )
        total: int = sum(priced.scalars())
        run(
            "UPDATE orders SET total_cents = :total, due_cents = :total, updated_at = :now "
            "WHERE id = :id",
            id=order_id,
            total=total,
            now=_now(),
        )
        return total

    @step
    def redeem_points(order_id: str, total_cents: int) -> int:
        user_id, redeem, had = run(
            "SELECT user_id, redeem, points FROM orders JOIN customers ON customers.id = user_id "
            "WHERE orders.id = :id FOR UPDATE OF customers",
            id=order_id,
        ).one()
        points = min(had, total_cents // 100) if redeem else 0
        if points:
            run(
                "UPDATE customers SET points = points - :points WHERE id = :id",
                id=user_id,
                points=points,
            )
            run(
                "UPDATE orders SET points_redeemed = :points, due_cents = :due WHERE id = :id",
                id=order_id,
                points=points,
                due=total_cents - 100 * points,
            )
        return total_cents - 100 * points

    @step
    def bill_customer(order_id: str, due_cents: int) -> str:
        run(
            "INSERT INTO ledger (key, order_id, kind, status, amount_cents, currency, "
            "payment_method, tries, at) SELECT :key, id, 'capture', 'captured', :due, currency, "
            "payment_method, 1, :now FROM orders WHERE id = :id ON CONFLICT DO NOTHING",
            id=order_id,
            key=f"{order_id}:1",
            due=due_cents,
            now=_now(),
        )
        return f"{order_id}:1"

    @step
    def prepare_order(order_id: str) -> int:
        copies: int = run(
            "UPDATE orders SET status = 'waiting', wait_until = :until, updated_at = :now "
            "WHERE id = :id RETURNING copies",
            id=order_id,
            until=_now() + timedelta(hours=4),
            now=_now(),
        ).scalar_one()
        body = {"version": 1, "order_id": order_id, "attempt": 1, "copies": copies}
        run(
            "INSERT INTO order_queue (id, body, visible_at, receive_count, sent_at) "
            "VALUES (:id, :body, :now, 0, :now)",
            id=_message_id(order_id),
            body=json.dumps(body),
            now=_now(),
        )
        return copies

    @step
    def find_courier(order_id: str, copies: int) -> str:
        courier: str = run(
            "UPDATE couriers SET assigned_copies = assigned_copies + :copies WHERE id = ("
            "SELECT id FROM couriers ORDER BY assigned_copies - capacity_copies LIMIT 1) "
            "RETURNING id",
            copies=copies,
        ).scalar_one()
        run(
            "INSERT INTO decisions (order_id, attempt, outcome, courier_id, reason, decided_by, "
            "accepted, decided_at) "
            "VALUES (:id, 1, 'courier assigned', :courier, '', 'dbos', true, :now)",
            id=order_id,
            courier=courier,
            now=_now(),
        )
        run(
            "UPDATE orders SET status = 'dispatching', courier_id = :courier, updated_at = :now "
            "WHERE id = :id",
            id=order_id,
            courier=courier,
            now=_now(),
        )
        run("DELETE FROM order_queue WHERE id = :id", id=_message_id(order_id))
        return courier

    @step
    def dispatch_order(order_id: str, courier: str, copies: int, due_cents: int) -> str:
        data = {"event": "dispatched", "orderId": order_id, "courier": courier, "copies": copies}
        run(
            "INSERT INTO notifications (key, order_id, subject, body, data, published_at) "
            "VALUES (:key, :id, :subject, :body, :data, :now) ON CONFLICT DO NOTHING",
            key=f"{order_id}:1:dispatched",
            id=order_id,
            subject=f"Order {order_id} is on its way",
            body=f"Order {order_id} was handed over to courier {courier}. Charged: {due_cents}",
            data=json.dumps(data),
            now=_now(),
        )
        run(
            "UPDATE couriers SET assigned_copies = assigned_copies - :copies WHERE id = :id",
            id=courier,
            copies=copies,
        )
        run(
            "UPDATE orders SET status = 'dispatched', updated_at = :now WHERE id = :id",
            id=order_id,
            now=_now(),
        )
        return courier

    @DBOS.workflow()
    def check_out(order_id: str) -> str:
        check_inventory(order_id)
        due_cents = redeem_points(order_id, calculate_total(order_id))
        if due_cents:
            bill_customer(order_id, due_cents)
        copies = prepare_order(order_id)
        courier = find_courier(order_id, copies)
        dispatched: str = dispatch_order(order_id, courier, copies, due_cents)
        return dispatched

    return check_out


def _message_id(order_id: str) -> str:
    return order_id[-36:]


def _now() -> datetime:
    return datetime.now(UTC)


if __name__ == "__main__":
    main()
