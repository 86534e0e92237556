"""Names of runs that belong to no single order."""

from datetime import UTC, datetime

from prefect import runtime

from store.settings import settings


def name_by_time(what: str) -> str:
    """Return the run's name by its start, such as `recovery 22:00`.

    Args:
        what: What the run is.
    """
    return f"{what} {_started():%H:%M}"


def name_by_day(what: str) -> str:
    """Return the run's name by its day, such as `audit 27 Nov`.

    Args:
        what: What the run is.
    """
    started = _started()
    return f"{what} {started.day} {started:%b}"


def name_of_batch() -> str:
    """Return the executing batch's name, such as `batch 27 Nov orders.csv`."""
    given = runtime.flow_run.parameters
    if given.get("listen_seconds"):
        return name_by_time("online")
    if source := given.get("source"):
        return f"{name_by_day('batch')} {str(source).rpartition('/')[2]}"
    return f"{name_by_day('batch')}{' again' if given.get('failed_of') else ''}"


def name_of_undo() -> str:
    """Return the executing compensation's name, such as `undo o-1`."""
    ids = runtime.flow_run.parameters.get("order_ids") or []
    return f"undo {ids[0] if len(ids) == 1 else f'{len(ids)} orders'}"


def _started() -> datetime:
    """Return when the run starts, in the shop's time zone."""
    now = datetime.now(UTC)
    # A worker takes a run some seconds before it is due.
    return max(now, runtime.flow_run.scheduled_start_time or now).astimezone(settings().zone)
