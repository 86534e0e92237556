"""The shop's metrics for Prometheus."""

import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from threading import Event
from typing import Annotated, NamedTuple

from cyclopts import CycloptsError, Parameter
from cyclopts.validators import Number
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import get_current_settings
from prometheus_client import (
    CollectorRegistry,
    generate_latest,
    start_http_server,
    write_to_textfile,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy.exc import DBAPIError

from console.prefect_checks import open_server
from flows.actions.drain import pool_of_checkouts
from flows.runs.searches import in_state_named, of_pool
from flows.runs.unbegun import has_worker
from flows.runs.work_pool import SERVER_AWAY
from reports.figures import read_figures
from store.errors import NoPrefectServer, StoreError, WorkPoolNotFound
from store.models import ENDED, OrderStatus, utc_now
from store.partners import order_queue
from store.settings import settings
from tasks.steps import SEQUENCE
from tasks.steps import UNDOS as UNDOS_BY_STEP
from terminal.numbers import WholeNumber
from terminal.output import terminal


class Metric(NamedTuple):
    """A figure's name, what it means, and what it is told by."""

    name: str
    meaning: str
    labels: tuple[str, ...] = ()


UP = Metric("store_up", "1 if the part answers, 0 if it does not", ("part",))
LATE_RUNS = Metric("store_runs_late", "Runs of the checkouts' work pool that Prefect shows as Late")
LATE = Metric("store_run_late_seconds", "Seconds by which the most overdue run is late")
ORDERS = Metric("store_orders", "Unfinished orders that have this status", ("status",))
IDLE = Metric(
    "store_order_idle_seconds",
    "Seconds since the oldest order in this status last changed",
    ("status",),
)
WAITED = Metric(
    "store_courier_wait_seconds",
    "Seconds that the longest-waiting order has waited for its courier",
)
FORGOTTEN = Metric(
    "store_orders_forgotten", "Unfinished orders that have not changed for an hour or longer"
)
FAILED_UNDOS = Metric(
    "store_undos_failed", "Failed undos that recovery retries, by step", ("step",)
)
FAILED_REFUNDS = Metric(
    "store_refunds_failed_cents",
    "Money that could not be refunded yet, in the currency's minor unit",
    ("currency",),
)
ENDINGS = Metric(
    "store_endings_last_hour", "Orders that ended in the last hour, by error", ("status", "error")
)
STEPS = Metric(
    "store_steps_last_hour", "Steps done or refused in the last hour", ("step", "outcome")
)
STEP_AVERAGE = Metric(
    "store_step_average_seconds",
    "Average seconds of the last hour's steps since the step before",
    ("step", "outcome"),
)
STEP_LONGEST = Metric(
    "store_step_longest_seconds",
    "Seconds of the last hour's longest step since the step before",
    ("step", "outcome"),
)
UNDOS = Metric("store_undos_last_hour", "Undos done in the last hour, by step", ("step",))
MESSAGES = Metric(
    "store_queue_messages", "Messages of the order queue: ready, in hand, or dead", ("place",)
)
BLOCKING = Metric(
    "store_blocking_seconds", "Age of the transaction that other sessions wait for", ("session",)
)
BLOCKED = Metric(
    "store_blocked_sessions", "Database sessions that wait for this session's locks", ("session",)
)
METRICS = tuple(each for each in vars().values() if isinstance(each, Metric))

Port = Annotated[WholeNumber, Parameter(validator=Number(gte=1, lte=65535))]


def metrics(
    *, port: Port | None = None, address: str = "127.0.0.1", file: Path | None = None
) -> int:
    """Print the shop's metrics for Prometheus, serve them, or write a file.

    Each scrape queries the database, the queue and Prefect's server. It costs little, also in a
    shop with years of orders: scrape every 30 s or less often.

    Args:
        port: Serve them at /metrics on this port, until Ctrl-C.
        address: The address to listen at; 0.0.0.0 for every network of this machine.
        file: Write them to this file, for the node exporter's textfile collector (a name that ends
            in .prom).
    """
    if file is not None and port is not None:
        raise CycloptsError(msg="Give --port or --file, not both.")
    registry = CollectorRegistry()
    registry.register(Shop())
    if file is not None:
        write_to_textfile(str(file), registry)
    elif port is None:
        terminal().file.write(generate_latest(registry).decode())
    else:
        _serve(registry, port, address)
    return 0


def _serve(registry: CollectorRegistry, port: int, address: str) -> None:
    over = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    server, thread = start_http_server(port, addr=address, registry=registry)
    terminal(stderr=True).print(f"Serving http://{address}:{port}/metrics until Ctrl-C")
    over.wait()
    server.shutdown()
    thread.join()


class Shop(Collector):
    """Reads the figures each time it is asked."""

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Return the metrics' names without a query."""
        for metric in METRICS:
            yield _family(metric)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Query database, queue and Prefect for the metrics.

        A part that is away is reported by `store_up`, and the others are still counted.
        """
        families = {metric.name: _family(metric) for metric in METRICS}
        up = families[UP.name]
        for part, read in (
            ("database", _of_database),
            ("queue", _of_queue),
            ("prefect server", partial(_of_prefect, up)),
        ):
            try:
                found = {family.name: family for family in read()}
            except (DBAPIError, StoreError, *SERVER_AWAY):
                up.add_metric([part], 0)
            else:
                up.add_metric([part], 1)
                families |= found
        yield from families.values()


def _family(metric: Metric) -> GaugeMetricFamily:
    return GaugeMetricFamily(metric.name, metric.meaning, labels=metric.labels)


def _filled(metric: Metric, samples: Iterable[tuple[Sequence[str], float]]) -> GaugeMetricFamily:
    family = _family(metric)
    for labels, value in samples:
        family.add_metric(labels, value)
    return family


def _of_prefect(up: GaugeMetricFamily) -> Iterator[GaugeMetricFamily]:
    if not get_current_settings().api.url:
        raise NoPrefectServer("PREFECT_API_URL is not set")
    worker_is_up, late_runs, late_seconds = False, 0, 0.0
    with open_server() as client, suppress(WorkPoolNotFound):
        pool = pool_of_checkouts(client)
        worker_is_up = has_worker(client, pool)
        late_runs, late_seconds = _late(client, pool, utc_now())
    up.add_metric(["worker"], worker_is_up)
    yield _filled(LATE_RUNS, [((), late_runs)])
    yield _filled(LATE, [((), late_seconds)])


def _late(client: SyncPrefectClient, pool: str, now: datetime) -> tuple[int, float]:
    """Return the number of late runs, and the seconds of the latest."""
    late = in_state_named("Late")
    first = client.read_flow_runs(
        flow_run_filter=late,
        work_pool_filter=of_pool(pool),
        sort=FlowRunSort.NEXT_SCHEDULED_START_TIME_ASC,
        limit=1,
    )
    due = [run.next_scheduled_start_time for run in first if run.next_scheduled_start_time]
    count = client.count_flow_runs(flow_run_filter=late, work_pool_filter=of_pool(pool))
    return count, max((now - due[0]).total_seconds(), 0.0) if due else 0.0


def _of_queue() -> Iterator[GaugeMetricFamily]:
    depth = order_queue().depth()
    places = {"ready": depth.ready, "in_hand": depth.in_hand, "dead": depth.dead}
    yield _filled(MESSAGES, (([place], count) for place, count in places.items()))


def _of_database() -> Iterator[GaugeMetricFamily]:
    figures = read_figures()
    # What there is none of is a zero: nothing can be compared with a series that is not there.
    unfinished = [status for status in OrderStatus if status not in ENDED]
    yield _filled(ORDERS, (([s], figures.orders.get(s, 0)) for s in unfinished))
    yield _filled(IDLE, (([s], figures.idle_seconds.get(s, 0)) for s in unfinished))
    yield _filled(WAITED, [((), figures.waited_seconds)])
    yield _filled(FORGOTTEN, [((), figures.forgotten)])
    yield _filled(ENDINGS, ({(s, ""): 0 for s in ENDED} | figures.endings).items())
    done = {(step, "done"): 0 for step in SEQUENCE}
    yield _filled(STEPS, (done | {of: d.count for of, d in figures.steps.items()}).items())
    yield _filled(STEP_AVERAGE, ((of, d.average_seconds) for of, d in figures.steps.items()))
    yield _filled(STEP_LONGEST, ((of, d.longest_seconds) for of, d in figures.steps.items()))
    yield _filled(UNDOS, (([step], figures.undos.get(step, 0)) for step in UNDOS_BY_STEP))
    # A process may have several sessions, which share its name.
    named = sorted(figures.blockers, key=lambda blocker: blocker.seconds)
    ages = {(each.name,): each.seconds for each in named} or {("",): 0.0}
    behind = {name: sum(each.waiting for each in named if (each.name,) == name) for name in ages}
    yield _filled(BLOCKING, ages.items())
    yield _filled(BLOCKED, behind.items())
    failed = dict.fromkeys(UNDOS_BY_STEP, 0)
    cents = {settings().currency: 0}
    for undos in figures.failed_undos:
        failed[undos.step] += undos.count
        cents[undos.currency] = cents.get(undos.currency, 0) + undos.cents
    yield _filled(FAILED_UNDOS, (([step], count) for step, count in failed.items()))
    yield _filled(FAILED_REFUNDS, (([currency], amount) for currency, amount in cents.items()))
