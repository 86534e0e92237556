"""The table of steps, each with all that is known of it.

The order of the rows is the order in which an order takes its steps. What else goes by steps is
made from here: what the saga waits for and gives back, a batch's steps, the console's choices, the
audit, the metrics, the texts for people and the documents' table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from prefect import Task

from store.saga_log import SagaOrder, StepRule, register_steps
from tasks.billing import bill_customer, charge_in_words, refund_customer, settle_charge
from tasks.dispatch import dispatch_order, prepare_order
from tasks.inventory import check_inventory, copies_in_words, restore_quantity, settle_copies
from tasks.points import points_in_words, redeem_points, restore_points, settle_points
from tasks.pricing import calculate_total
from tasks.undo import Undo


class Need(NamedTuple):
    """When an order needs a step, in Python and in SQL.

    The saga asks in Python. The audit asks in SQL over the columns of an order, and only about
    orders that wait or have gone further, whose total is known.
    """

    of: Callable[[SagaOrder], bool]
    sql: str


ALWAYS = Need(lambda _: True, "TRUE")
IF_REDEEMED = Need(lambda order: order.redeem, "redeem")
IF_DUE = Need(lambda order: order.due_cents != 0, "COALESCE(due_cents, 1) <> 0")


@dataclass(frozen=True, slots=True)
class Step:
    """A step of an order.

    Attributes:
        task: What does it for a group of orders; its name is the step's.
        effect: What it does, for the documents.
        undo: Its undo, or why it has none.
        needed: When an order needs it.
        is_awaited: Whether the later steps of an order that needs it wait for its record.
        asks_outside: Whether its effect is outside of the database, so that an intent comes first.
    """

    task: Task[[list[str]], list[str]]
    effect: str
    undo: Undo | str
    needed: Need = ALWAYS
    is_awaited: bool = True
    asks_outside: bool = False

    @property
    def name(self) -> str:
        """Return its name in the saga log, the UI and the console."""
        return self.task.name

    def is_awaited_by(self, order: SagaOrder) -> bool:
        """Return whether the order's later steps wait for this one."""
        return self.is_awaited and self.needed.of(order)


STEPS = (
    Step(
        check_inventory,
        "reserves the copies of all lines; reserves nothing if one line is short or if the order "
        "has more copies than any courier takes",
        Undo(
            task=restore_quantity,
            place=2,
            in_words=copies_in_words,
            settle=settle_copies,
            written_off="the copies are lost and written off",
            put_back="they are on the shelf and in stock again",
        ),
    ),
    Step(calculate_total, "fixes unit prices and the total", "nothing is taken"),
    Step(
        redeem_points,
        "takes the customer's points, if `redeem` is true",
        Undo(
            task=restore_points,
            place=3,
            in_words=points_in_words,
            settle=settle_points,
            written_off="the points were made good in another way and are written off",
            put_back="they are on the customer's account again",
        ),
        needed=IF_REDEEMED,
    ),
    Step(
        bill_customer,
        "captures what is still due",
        # First: it hurts the customer most.
        Undo(
            task=refund_customer,
            place=1,
            in_words=charge_in_words,
            settle=settle_charge,
            written_off="the money was given back outside of the payment gateway",
        ),
        needed=IF_DUE,
        asks_outside=True,
    ),
    Step(
        prepare_order,
        "sends a message to the order queue. If the queue refuses it, the order waits all the same "
        "and recovery sends the message again",
        "the message is ignored once the order has moved on",
        # A courier may answer before the message is recorded as sent, and that record may never
        # come; the order's status tells `dispatch_order` that it was answered.
        is_awaited=False,
        asks_outside=True,
    ),
    Step(
        dispatch_order,
        "publishes the notification and hands the parcel over",
        "it comes after the pivot",
        asks_outside=True,
    ),
)

SEQUENCE = tuple(step.name for step in STEPS)
"""The steps' names in their order."""
BEFORE_THE_WAIT = STEPS[: SEQUENCE.index(prepare_order.name) + 1]
"""The steps up to the wait for a courier."""
UNDOS = dict(
    sorted(
        ((step.name, step.undo) for step in STEPS if isinstance(step.undo, Undo)),
        key=lambda row: row[1].place,
    )
)
"""Each compensable step's undo, in the order of undoing."""

register_steps(
    [StepRule(step.name, step.is_awaited_by, has_undo=step.name in UNDOS) for step in STEPS]
)
