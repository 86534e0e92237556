"""What the fork server does once, so that no child has to."""

import contextlib
import gc
import importlib
import logging
import sys
import time
from typing import Any

logger = logging.getLogger("fork_server")

IMPORTED_LATE = (
    # What a run of Prefect imports after its start, found by comparing sys.modules (3.8.8).
    "anyio._backends._asyncio",
    "graphviz",
    "prefect.client.orchestration",
    "prefect.concurrency.services",
    "prefect.deployments.steps.pull",
    "prefect.events.clients",
    "prefect.flow_engine",
    "prefect.logging.handlers",
    "prefect.task_engine",
    "prefect.utilities.visualization",
    "rich._emoji_codes",
    "stringprep",
    "encodings.idna",
)


def import_all(modules: list[str]) -> None:
    """Import the modules of a run, and those that it imports late."""
    began = time.monotonic()
    for name in modules:
        importlib.import_module(name)
    for name in IMPORTED_LATE if "prefect" in sys.modules else ():
        try:
            importlib.import_module(name)
        except ImportError as error:
            logger.info("not imported: %s (%s)", name, error)
    if orm := sys.modules.get("sqlalchemy.orm"):
        # Each child would do it at its first query.
        orm.configure_mappers()
    if pydantic := sys.modules.get("pydantic"):
        complete_models(pydantic.BaseModel)
    logger.info("ready after %.1f s", time.monotonic() - began)
    # Never looked at again by a collection, which would write to the pages that children share.
    gc.freeze()


def complete_models(model: Any) -> None:
    """Build the validators that pydantic has put off.

    Each child would do it when it first meets such a model.
    """
    for each in model.__subclasses__():
        if not each.__pydantic_complete__:
            # What it refers to may still be missing, which is met where the model is used.
            with contextlib.suppress(Exception):
                each.model_rebuild(raise_errors=False)
        complete_models(each)
