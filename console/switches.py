"""The commands that switch the dispatcher and the batch that listens."""

from collections.abc import Callable

from cyclopts import App
from prefect.client.orchestration import SyncPrefectClient

from flows.actions.switches import DISPATCHER, ONLINE, SwitchStatus
from flows.runs.order_runs import prefect_client
from terminal.output import AsJson, print_answer

dispatcher = App(name="dispatcher", help="Switch the dispatcher off or on.")
online = App(name="online", help="Switch on or off the batch that carries orders as they come.")


@dispatcher.command(name="off")
def dispatcher_off(*, as_json: AsJson = False) -> int:
    """Stop seeking couriers, so that a person answers each waiting order.

    It pauses the deployment of dispatch_orders and cancels its runs. The dispatcher stays off, also
    after a restart, until `checkout dispatcher on`. An order without an answer is compensated when
    its wait ends.
    """
    return _print(DISPATCHER.off, _of_dispatcher, as_json=as_json)


@dispatcher.command(name="on")
def dispatcher_on(*, as_json: AsJson = False) -> int:
    """Seek couriers again for all waiting and future orders."""
    return _print(DISPATCHER.on, _of_dispatcher, as_json=as_json)


@dispatcher.command(name="status")
def dispatcher_status(*, as_json: AsJson = False) -> int:
    """Print whether couriers are sought, and by which runs."""
    return _print(DISPATCHER.status, _of_dispatcher, as_json=as_json)


@online.command(name="on")
def online_on(*, as_json: AsJson = False) -> int:
    """Keep a batch listening at all times, and start one now."""
    return _print(ONLINE.on, _of_online, as_json=as_json)


@online.command(name="off")
def online_off(*, as_json: AsJson = False) -> int:
    """Start no further listening batch.

    The present one goes on to its end. Orders submitted later wait for the nightly batch or for
    `checkout online on`.
    """
    return _print(ONLINE.off, _of_online, as_json=as_json)


@online.command(name="status")
def online_status(*, as_json: AsJson = False) -> int:
    """Print whether a batch listens, and which runs do."""
    return _print(ONLINE.status, _of_online, as_json=as_json)


def _print(
    act: Callable[[SyncPrefectClient], SwitchStatus],
    in_words: Callable[[SwitchStatus], str],
    *,
    as_json: bool,
) -> int:
    with prefect_client() as client:
        found = act(client)
    return print_answer(found.model_dump(), in_words(found), as_json=as_json)


def _of_dispatcher(found: SwitchStatus) -> str:
    running = ", ".join(found.running)
    if found.is_on:
        in_runs = f", in {running}" if running else ""
        return f"The dispatcher is on{in_runs}: it seeks a courier for each waiting order."
    ending = f"; still ending, in {running}" if running else ""
    return (
        f"The dispatcher is off{ending}: answer each waiting order yourself "
        "(docs/operating.md#answer-a-waiting-order), or `checkout dispatcher on`."
    )


def _of_online(found: SwitchStatus) -> str:
    running = f" Listening: {', '.join(found.running)}." if found.running else ""
    what = (
        "on: submitted orders are carried as they come."
        if found.is_on
        else "off: submitted orders wait for the nightly batch."
    )
    return f"Online is {what}{running}"
