"""The flow ``archive_orders``, which moves orders that ended long ago into files."""

import logging
from datetime import timedelta
from functools import partial
from typing import Annotated

from prefect import flow
from pydantic import BaseModel, Field

from flows.runs.names import name_by_day
from orders import archive

logger = logging.getLogger("store.archive")


class ArchivedMonth(BaseModel):
    """A month whose orders are in a file."""

    month: str
    location: str
    orders: int


@flow(
    name="archive-orders",
    flow_run_name=partial(name_by_day, "archive"),
    retries=0,
    persist_result=False,
)
def archive_orders(
    to: str = "", older_than_days: Annotated[int, Field(ge=archive.DAYS_AT_LEAST, le=36_500)] = 400
) -> list[ArchivedMonth]:
    """Archive the orders that ended in months wholly before a limit.

    A run that dies leaves no order in two places, and the next one goes on.

    Args:
        to: A folder that all workers share, or `s3://bucket/prefix`.
        older_than_days: How many days ago the months must have ended.

    Returns:
        Each month with its file and the number of its orders.

    Raises:
        ArchiveRefused: the place is wrong or has such a file already, or another process
            archives now.
        ArchiveUnavailable: S3 did not answer.
        ArchiveDamaged: what was written is read back otherwise; nothing of it was deleted.
    """
    done = []
    for each in archive.archive_orders(to, timedelta(days=older_than_days)):
        logger.info("%d orders of %s are in %s", each.archived, each.month, each.location)
        done.append(
            ArchivedMonth(month=each.month, location=each.location, orders=each.archived or 0)
        )
    return done
