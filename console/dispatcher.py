"""The dispatcher, switched off where a person answers, and on again."""

from cyclopts import App

from flows.actions import dispatcher
from flows.actions.dispatcher import DispatcherStatus
from flows.runs.order_runs import prefect_client
from terminal.output import AsJson, print_json, terminal

app = App(name="dispatcher", help="Switch the dispatcher off or on.")


@app.command
def off(*, as_json: AsJson = False) -> int:
    """Stop seeking couriers, so that a person answers each waiting order.

    It pauses the deployment of dispatch_orders and cancels its runs. The dispatcher stays off, also
    after a restart, until `checkout dispatcher on`. An order without an answer is compensated when
    its wait ends.
    """
    with prefect_client() as client:
        return _print(dispatcher.switch_off(client), as_json=as_json)


@app.command
def on(*, as_json: AsJson = False) -> int:
    """Seek couriers again for all waiting and future orders."""
    with prefect_client() as client:
        return _print(dispatcher.switch_on(client), as_json=as_json)


@app.command
def status(*, as_json: AsJson = False) -> int:
    """Print whether couriers are sought, and by which runs."""
    with prefect_client() as client:
        return _print(dispatcher.status(client), as_json=as_json)


def _print(found: DispatcherStatus, *, as_json: bool) -> int:
    if as_json:
        print_json(found.model_dump())
        return 0
    running = f", in {', '.join(found.running)}" if found.running else ""
    terminal().print(
        f"The dispatcher is on{running}: it seeks a courier for each waiting order."
        if found.is_on
        else f"The dispatcher is off{running and f'; still ending{running}'}: answer each waiting "
        "order yourself (docs/operating.md#answer-a-waiting-order), or `checkout dispatcher on`."
    )
    return 0
