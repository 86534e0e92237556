"""The switch of the listening batch.

It is on where a front end submits orders.
"""

from cyclopts import App

from flows.actions import online
from flows.actions.online import OnlineStatus
from flows.runs.order_runs import prefect_client
from terminal.output import AsJson, print_json, terminal

app = App(name="online", help="Switch on or off the batch that carries orders as they come.")


@app.command
def on(*, as_json: AsJson = False) -> int:
    """Keep a batch listening at all times, and start one now."""
    with prefect_client() as client:
        return _print(online.switch_on(client), as_json=as_json)


@app.command
def off(*, as_json: AsJson = False) -> int:
    """Start no further listening batch.

    The present one goes on to its end. Orders submitted later wait for the nightly batch or for
    `checkout online on`.
    """
    with prefect_client() as client:
        return _print(online.switch_off(client), as_json=as_json)


@app.command
def status(*, as_json: AsJson = False) -> int:
    """Print whether a batch listens, and which runs do."""
    with prefect_client() as client:
        return _print(online.status(client), as_json=as_json)


def _print(found: OnlineStatus, *, as_json: bool) -> int:
    if as_json:
        print_json(found.model_dump())
        return 0
    running = f" Listening: {', '.join(found.running)}." if found.running else ""
    what = (
        "on: submitted orders are carried as they come."
        if found.is_on
        else "off: submitted orders wait for the nightly batch."
    )
    terminal().print(f"Online is {what}{running}")
    return 0
