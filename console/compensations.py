"""The compensation queue of undos that failed."""

from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from console.orders import undo_as_data
from flows.actions.by_hand import settle_undo, try_undos
from orders.lookup import read_order
from reports.compensations import OpenUndo, failed_undos, open_undos
from store.models import utc_now
from tasks.steps import UNDOS
from terminal.output import (
    AsJson,
    Limit,
    Wide,
    at_most,
    duration,
    print_answer,
    print_json,
    print_table,
    quiet_runs,
)

if TYPE_CHECKING:
    Step = str
else:
    Step = Literal[*(undo.name for undo in UNDOS.values()), *UNDOS]
    """An undo, by its own name or by that of the step that it undoes."""

SETTLE = "\n\n".join(
    [
        "Record a failed undo as settled by hand and stop its retries.",
        "The order's timeline keeps your name and your reason, and the books are corrected:",
        *(
            f"{undo.name}: {undo.written_off}"
            f"{f'; with --put-back {undo.put_back}' if undo.put_back else ''}."
            for undo in UNDOS.values()
        ),
        "After its last failed undo the order is compensated.",
    ]
)
"""The help of ``settle``, with what it means for each undo."""

app = App(name="compensations")


@app.default
def compensations(*, limit: Limit = 100, wide: Wide = False, as_json: AsJson = False) -> int:
    """List failed undos with their amounts, errors and next tries.

    recover_orders retries each after a minute at first and an hour at most. Retry one at once with
    `checkout compensations retry`. Record what you have made good by hand with
    `checkout compensations settle`.

    Args:
        limit: The most orders to list, the longest waiting first.
    """
    failed = failed_undos(limit + 1)
    orders = at_most(limit, list(dict.fromkeys(undo.order_id for undo in failed)))
    failed = [undo for undo in failed if undo.order_id in orders]
    if as_json:
        print_json([undo_as_data(undo) for undo in failed])
        return 0
    now = utc_now()
    print_table(
        "Failed undos",
        ["order", "attempt", "undo", "at stake", "tries", "next try", "error"],
        (
            [
                undo.order_id,
                undo.attempt,
                UNDOS[undo.step].name,
                undo.at_stake,
                undo.tries,
                "under way"
                if undo.next_try_at is None
                else f"in {duration((undo.next_try_at - now).total_seconds())}",
                undo.error,
            ]
            for undo in failed
        ),
        empty="Everything that failed was given back.",
        text="error",
        expendable=["attempt", "tries", "next try"],
        wide=wide,
    )
    return 0


def _step(named: Step) -> str:
    return next((step for step, undo in UNDOS.items() if undo.name == named), named)


@app.command
def retry(order: str, step: Step | None = None, /, *, as_json: AsJson = False) -> int:
    """Retry an order's failed undos at once.

    It is the same as what recover_orders does, and safe at the same moment.

    Args:
        order: The order's id.
        step: The one undo to try, or the step that it undoes; left out, all that are left.
    """
    with quiet_runs():
        left = try_undos(order, _step(step) if step else None)
    ended = read_order(order)
    return print_answer(
        {
            "order_id": order,
            "status": ended.status,
            "left": [undo_as_data(undo) for undo in left],
        },
        f"Given back; order {order} is {ended.status}.",
        *_left(left),
        as_json=as_json,
    )


@app.command(help=SETTLE)
def settle(
    order: str,
    step: Step,
    /,
    *,
    reason: str,
    by: str,
    put_back: Annotated[bool, Parameter(negative="")] = False,
    as_json: AsJson = False,
) -> int:
    """Record a failed undo as settled by a person.

    Args:
        order: The order's id.
        step: The undo that failed, or the step that it undoes.
        reason: What you did. No personal data: it is shown with the order.
        by: Who you are: your name or initials.
        put_back: Book what was taken as back. Do not change the tables yourself as well.
    """
    of_step = _step(step)
    if put_back and UNDOS[of_step].put_back is None:
        booked = ", ".join(undo.name for undo in UNDOS.values() if undo.put_back is not None)
        raise CycloptsError(
            msg=f"--put-back: {UNDOS[of_step].name} gives back what is not kept here. Leave it "
            f"out; it is for {booked}."
        )
    for name, text in (("--reason", reason), ("--by", by)):
        if not text.strip():
            raise CycloptsError(msg=f"{name} is empty; it is what others find later.")
    stake = next((undo for undo in open_undos(order) if undo.step == of_step), None)
    with quiet_runs():
        settled = settle_undo(
            order, of_step, by=by.strip(), reason=reason.strip(), put_back=put_back
        )
    left = open_undos(order)
    what = f", {stake.at_stake}" if stake else ""
    return print_answer(
        {
            "order_id": order,
            "status": settled.status,
            "settled": undo_as_data(stake) if stake else None,
            "left": [undo_as_data(undo) for undo in left],
        },
        f"Settled: {UNDOS[of_step].name} of order {order}{what}. It is {settled.status}.",
        *_left(left),
        as_json=as_json,
    )


def _left(left: list[OpenUndo]) -> list[str]:
    return [f"Left: {UNDOS[undo.step].name}, {undo.at_stake}" for undo in left]
