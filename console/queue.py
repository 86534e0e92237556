"""The commands for the order queue."""

from store.partners import order_queue
from terminal.output import AsJson, print_json, terminal


def redrive(*, as_json: AsJson = False) -> int:
    """Redrive the order queue's dead letters, once their cause is mended."""
    redriven = order_queue().redrive()
    if as_json:
        print_json({"redriven": redriven})
    else:
        terminal().print(f"Dead letters put into the queue again: {redriven}")
    return 0
