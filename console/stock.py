"""The commands for the copies of books in stock."""

from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number
from sqlmodel import col, select

from store.database import reading, transaction
from store.errors import BookNotFound, BookOutOfStock
from store.models import Book
from terminal.numbers import WholeNumber
from terminal.output import AsJson, Limit, Wide, at_most, print_answer, print_json, print_table

COPIES_AT_MOST = 1_000_000
"""More at once are a slip of the finger."""

Copies = Annotated[WholeNumber, Parameter(validator=Number(gte=1, lte=COPIES_AT_MOST))]

app = App(name="stock", help="List books' copies, and record those that came in or are gone.")


@app.command(name="list")
def list_books(
    *,
    title: str | None = None,
    below: WholeNumber | None = None,
    limit: Limit = 20,
    wide: Wide = False,
    as_json: AsJson = False,
) -> int:
    """List books with their copies in stock, the fewest first.

    Args:
        title: Books with this text in their title, in small or capital letters.
        below: Books with fewer copies in stock than this.
        limit: The most books to list.
    """
    wanted = select(Book).order_by(col(Book.quantity), col(Book.id)).limit(limit + 1)
    if title is not None:
        wanted = wanted.where(col(Book.title).icontains(title, autoescape=True))
    if below is not None:
        wanted = wanted.where(col(Book.quantity) < below)
    with reading() as session:
        found = at_most(limit, list(session.exec(wanted)))
    if as_json:
        print_json([_as_data(book) for book in found])
        return 0
    print_table(
        "Stock",
        ["book", "title", "in stock", "held or sold"],
        [
            [book.id, book.title, book.quantity, book.initial_quantity - book.quantity]
            for book in found
        ],
        empty="There is no such book.",
        text="title",
        expendable=["held or sold"],
        wide=wide,
    )
    return 0


@app.command
def add(book: str, copies: Copies, /, *, as_json: AsJson = False) -> int:
    """Record copies that came in, delivered or returned.

    Called twice, it adds twice.

    Args:
        book: The book's id.
        copies: How many.
    """
    return _change(book, copies, as_json=as_json)


@app.command
def remove(book: str, copies: Copies, /, *, as_json: AsJson = False) -> int:
    """Record copies that are damaged, lost or sold elsewhere.

    Copies that orders hold cannot be removed. Called twice, it removes twice.

    Args:
        book: The book's id.
        copies: How many.
    """
    return _change(book, -copies, as_json=as_json)


def _change(book_id: str, copies: int, *, as_json: bool) -> int:
    with transaction() as session:
        book = session.get(Book, book_id, with_for_update=True)
        if book is None:
            raise BookNotFound(
                f"There is no book {book_id}; `checkout stock list` has their ids. Nothing was "
                "changed."
            )
        before = book.quantity
        if before + copies < 0:
            raise BookOutOfStock(
                f"“{book.title}” ({book_id}) has {before} copies in stock, fewer than {-copies}. "
                "Nothing was changed."
            )
        book.quantity += copies
        # The audit compares both (I1).
        book.initial_quantity += copies
        data = _as_data(book)
    said = f"“{data['title']}” ({book_id}): {before} copies in stock before, {data['in_stock']} now"
    return print_answer(data, said, as_json=as_json)


def _as_data(book: Book) -> dict[str, Any]:
    return {
        "book_id": book.id,
        "title": book.title,
        "price_cents": book.price_cents,
        "in_stock": book.quantity,
        "held_or_sold": book.initial_quantity - book.quantity,
    }
