"""The commands for the order queue's dead letters."""

from cyclopts import App
from pydantic import ValidationError

from store.errors import NoDeadLetter
from store.messages import OrderMessage
from store.partners import order_queue
from store.queue import ReceivedMessage
from terminal.output import AsJson, Wide, print_answer, print_json, print_table

app = App(name="dead-letters", help="List dead letters, redrive them or drop them.")


@app.command(name="list")
def list_letters(*, wide: Wide = False, as_json: AsJson = False) -> int:
    """List the dead letters with their orders and reasons.

    With SQS the list lacks a dead letter that another operator is reading.
    """
    letters = order_queue().dead_letters()
    if as_json:
        print_json([_as_data(letter) for letter in letters])
        return 0
    print_table(
        "Dead letters",
        ["id", "order", "receives", "why", "body"],
        (
            [letter.id, _order_of(letter), letter.receive_count, letter.reason, letter.body]
            for letter in letters
        ),
        empty="There is no dead letter.",
        text="body",
        expendable=["body", "receives", "why"],
        wide=wide,
    )
    return 0


@app.command
def redrive(letter: str, /, *, as_json: AsJson = False) -> int:
    """Redrive one dead letter, once its cause is mended.

    Args:
        letter: The dead letter's id.
    """
    redriven = order_queue().redrive([letter])
    return _print(letter, redriven, "redriven", as_json=as_json)


@app.command
def drop(letter: str, /, *, as_json: AsJson = False) -> int:
    """Delete one dead letter for ever.

    Use it for an unreadable one. If its order waits, recovery sends the message again.

    Args:
        letter: The dead letter's id.
    """
    return _print(letter, order_queue().drop([letter]), "dropped", as_json=as_json)


def redrive_all(*, as_json: AsJson = False) -> int:
    """Redrive all dead letters, once their cause is mended."""
    redriven = order_queue().redrive()
    said = f"Dead letters put into the queue again: {redriven}"
    return print_answer({"redriven": redriven}, said, as_json=as_json)


def _print(letter: str, count: int, done: str, *, as_json: bool) -> int:
    if not count:
        raise NoDeadLetter(
            f"there is no dead letter {letter}; `checkout dead-letters list` has their ids"
        )
    said = f"Dead letter {letter}: {done}."
    return print_answer({"id": letter, done: count}, said, as_json=as_json)


def _order_of(letter: ReceivedMessage) -> str:
    try:
        return OrderMessage.model_validate_json(letter.body).order_id
    except ValidationError:
        return "unreadable"


def _as_data(letter: ReceivedMessage) -> dict[str, object]:
    return {
        "id": letter.id,
        "order_id": None if (order := _order_of(letter)) == "unreadable" else order,
        "receive_count": letter.receive_count,
        "reason": letter.reason,
        "body": letter.body,
    }
