"""Answers that Prefect has accepted and no process has read.

Prefect accepts an answer for a run whose process is dead and keeps it among the run's inputs. An
accepted answer counts whatever becomes of the run, so hooks, recovery and the commands ask here
before they expire, cancel, replace, take over or give up an order.
"""

from collections.abc import Iterable

from prefect.client.orchestration import SyncPrefectClient

from flows.batches import wait as batch_wait
from flows.batches.limits import CHUNK_SIZE
from flows.order import courier_wait
from orders.batches import batches_among
from orders.lookup import read_order
from store.models import OrderStatus


def record_answers_left(
    client: SyncPrefectClient, run_id: str | None, order_ids: Iterable[str]
) -> None:
    """Record the unread answers of a run for its waiting orders.

    Args:
        client: Prefect's client.
        run_id: The run; none if no run owns the orders.
        order_ids: Its orders.
    """
    if run_id is None:
        return
    if batches_among([run_id]):
        batch_wait.question(run_id, CHUNK_SIZE).take_left(client)
        return
    for order in map(read_order, order_ids):
        if order.run_id is not None and order.status == OrderStatus.WAITING:
            courier_wait.question(order).take_left(client)
