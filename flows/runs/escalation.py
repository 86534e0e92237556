"""Own runs for orders of a batch that wait for a person.

The new run shows the order's form. It keeps no process while it waits, and repeats no step: what
the order has is in the saga log. One that does not become the owner ends by itself.
"""

import logging

from prefect.client.schemas.objects import FlowRun

from flows.runs.continuation import CONTINUATION, new_run, parameters_of
from flows.runs.work_pool import SERVER_AWAY
from orders.listening import hand_over_waiting
from orders.lookup import read_order
from store.errors import DeploymentNotFound
from store.settings import settings

logger = logging.getLogger("store.escalation")

WAIT = "suspend"
"""How an escalated order's run waits: a person may take hours."""


def escalate(order_id: str) -> FlowRun | None:
    """Hand a waiting order of a batch over to its own run.

    Args:
        order_id: The order.

    Returns:
        The run; none if the order was decided or taken over first.

    Raises:
        DeploymentNotFound: there is no deployment of the checkout.
    """
    order = read_order(order_id)
    run = new_run(
        settings().checkout_deployment,
        {**parameters_of(order), "wait": WAIT},
        None,
        tags=[CONTINUATION],
    )
    if not hand_over_waiting(order_id, order.run_id, str(run.id), WAIT):
        return None
    logger.info(
        "order %s waits in a run of its own, %s", order_id, run.id, extra={"order_id": order_id}
    )
    return run


def escalate_all(order_ids: list[str]) -> None:
    """Escalate orders until Prefect's server refuses one.

    The rest is tried again later.
    """
    for order_id in order_ids:
        try:
            escalate(order_id)
        except (DeploymentNotFound, *SERVER_AWAY) as error:
            logger.warning(
                "order %s has no run of its own yet: %r",
                order_id,
                error,
                extra={"order_id": order_id},
            )
            return
