"""Events, timelines and notices about orders, for people and automations.

None of it may fail an order: errors are logged and dropped.
"""

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from threading import Timer
from typing import Any
from uuid import UUID

from prefect import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.objects import FlowRun, State
from prefect.events import emit_event
from prefect.flows import Flow
from prefect.settings import PREFECT_UI_URL
from prefect.utilities.urls import url_for

from orders.lookup import read_order
from orders.ownership import finished_orders_of_run
from reports.notices import announce_failed_compensation, announce_wait
from reports.timeline import timeline
from store.database import release_connections
from store.models import Order, OrderStatus
from texts.events import of_status
from texts.words import ID_OF_A_LINE

logger = logging.getLogger("store.order_events")

SHOWN_AFTER_SECONDS = 5.0
"""An order that a dispatcher answers costs no call of Prefect's API for its wait."""
TIMELINES_AT_MOST = 20
"""A group larger than this is a batch, which has a report of its own."""


def report_orders(order_ids: Iterable[str]) -> None:
    """Emit events, publish notices of failed undos and update timelines.

    A group larger than TIMELINES_AT_MOST gets no timelines.
    """
    ids = list(order_ids)
    emit_statuses(ids)
    if len(ids) <= TIMELINES_AT_MOST:
        publish_timelines(ids)


def emit_statuses(order_ids: Iterable[str]) -> None:
    """Emit each order's status and publish a notice of failed undos."""
    for order_id in order_ids:
        with _unaffected(order_id):
            order = read_order(order_id)
            logger.info("order %s is %s", order.id, order.status, extra={"order_id": order.id})
            emit_event(**of_status(order))
            if order.status == OrderStatus.COMPENSATION_FAILED:
                announce_failed_compensation(order)


def publish_timelines(order_ids: Iterable[str]) -> None:
    """Update each order's timeline, an artifact of its run."""
    for order_id in order_ids:
        with _unaffected(order_id):
            _publish_timeline(read_order(order_id))


def publish_timeline_of_run(
    flow: Flow[..., Any],  # noqa: ARG001  (the name by which Prefect gives it)
    flow_run: FlowRun,
    state: State[Any],  # noqa: ARG001
) -> None:
    """Update the timeline of a completed run's order, as Prefect's hook.

    It is a call of Prefect's API that delays no dispatch.
    """
    publish_timelines(order.id for order in finished_orders_of_run(str(flow_run.id)))


@contextmanager
def _unaffected(order_id: str) -> Iterator[None]:
    """Log a failure to report on an order without raising it."""
    try:
        yield
    except Exception:
        logger.exception(
            "order %s could not be reported; it is not affected",
            order_id,
            extra={"order_id": order_id},
        )


def emit_wait(order: Order) -> None:
    """Emit the order's status and publish the notice of its wait."""
    with _unaffected(order.id):
        emit_event(**of_status(order))
        announce_wait(order, form_url(order))


@contextmanager
def show_wait(order: Order, *, at_once: bool) -> Iterator[None]:
    """Publish the timeline of a wait, unless it is answered within seconds.

    Args:
        order: The order, which waits.
        at_once: Whether to publish before the wait, for a run that keeps no process.
    """
    if at_once:
        publish_timelines([order.id])
        yield
        return
    # Prefect's settings are in the context, which a thread does not inherit.
    timer = Timer(SHOWN_AFTER_SECONDS, copy_context().run, [_show_waiting, order.id])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _show_waiting(order_id: str) -> None:
    publish_timelines([order_id])
    release_connections()


def form_url(order: Order) -> str:
    """Return the UI address where the order's run can be resumed."""
    return run_url(order.run_id) if order.run_id else ""


def run_url(run_id: str) -> str:
    """Return the address of a run in the Prefect UI."""
    return url_for("flow-run", obj_id=UUID(run_id)) or ""


def timeline_url(order_id: str) -> str:
    """Return the address of an order's newest timeline in the Prefect UI."""
    return f"{PREFECT_UI_URL.value() or ''}/artifacts/key/{artifact_key(order_id)}"


def artifact_key(order_id: str) -> str:
    """Return the artifact key of an order's timeline, unique to its id.

    Prefect takes lower-case letters, digits and dashes in a key, nothing else. An id with others
    gets the beginning of its hash, after two dashes, and so does one that has two dashes. A longer
    word than the UI has room for is broken by dashes.
    """
    readable = re.sub("[^a-z0-9]+", "-", order_id.lower())
    if re.search(f"[a-z0-9]{{{ID_OF_A_LINE + 1}}}", readable):
        readable = re.sub("([a-z0-9]{16})(?=[a-z0-9])", r"\1-", readable)
    if readable == order_id:
        return f"order-{readable}"
    return f"order-{readable}--{hashlib.sha256(order_id.encode()).hexdigest()[:12]}"


def _publish_timeline(order: Order) -> None:
    with get_client(sync_client=True) as client:
        client.create_artifact(
            ArtifactCreate(
                type="markdown",
                key=artifact_key(order.id),
                # From Prefect 3.9 on a run's page leads to each version by itself, in no order.
                description=f"Timeline of order {order.id}: {order.status}",
                data=timeline(order.id),
                flow_run_id=UUID(order.run_id) if order.run_id else None,
            )
        )
