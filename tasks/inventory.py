"""The tasks ``check_inventory`` and ``restore_quantity``."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import func
from sqlmodel import Session, col, select

from store.bulk import among, increase, read_rows
from store.errors import (
    BookHasNoPrice,
    BookNotFound,
    BookOutOfStock,
    NoCourierAvailable,
    NothingToUndo,
    OrderError,
)
from store.models import Book, Courier, OrderLine
from store.saga import backward, forward
from tasks.retries import retried_task
from tasks.undo import Taken


@retried_task
def check_inventory(order_ids: list[str]) -> list[str]:
    """Reserve the copies of each order's lines, all or none.

    Undone by :func:`restore_quantity`. Orders are served in the order in which they are given. One
    that has more copies than any courier takes at once, free or not, is ended before it is charged.

    Returns:
        The ids of the orders that go on.

    Raises:
        BookNotFound, BookHasNoPrice, BookOutOfStock, NoCourierAvailable: no order goes on; the
            first one's reason.
    """
    with forward("check_inventory", order_ids) as step:
        lines = lines_by_order(step.session, [order.id for order in step.todo])
        books = _lock_books(step.session, books_of(lines))
        left = {id_: book.quantity for id_, book in books.items()}
        largest = step.session.scalar(select(func.max(Courier.capacity_copies))) or 0
        for order in step.todo:
            problem = _why_not(lines[order.id], books, left)
            if problem is None and order.copies > largest:
                problem = too_large(order.copies, largest)
            if problem is not None:
                step.fail(order, problem)
                continue
            copies = dict(lines[order.id])
            for book_id, quantity in copies.items():
                left[book_id] -= quantity
            step.done(order, {"copies": copies})
        taken = {id_: books[id_].quantity - left[id_] for id_ in left}
        increase(step.session, Book, "quantity", {id_: -taken[id_] for id_ in taken})
    return step.going_on()


@retried_task
def restore_quantity(order_ids: list[str]) -> list[str]:
    """Restore the reserved copies of failed orders, as check_inventory's undo.

    Returns:
        The ids of the orders whose copies were put back now.
    """
    with backward("check_inventory", order_ids) as undo:
        returned: dict[str, int] = {}
        for _, record in undo.todo:
            for book_id, quantity in record.result["copies"].items():
                returned[book_id] = returned.get(book_id, 0) + quantity
            undo.undone(record, {"copies": record.result["copies"]})
        _lock_books(undo.session, returned)
        increase(undo.session, Book, "quantity", returned)
        return [order.id for order, _ in undo.todo]


def too_large(copies: int, largest: int) -> NoCourierAvailable:
    """Return NoCourierAvailable for an order beyond the largest courier's capacity."""
    return NoCourierAvailable(
        f"no courier carries {copies} copies at once" if largest else "no courier has any capacity"
    )


def copies_in_words(taken: Taken) -> str:
    """Return the number of copies as text, by title where known.

    The text is empty if none were taken.
    """
    copies: Mapping[str, int] = taken.result.get("copies", {})
    if taken.titles is None:
        return f"{sum(copies.values())} copies" if copies else ""
    titles = taken.titles
    return ", ".join(f"{quantity} of “{titles.get(id_, id_)}”" for id_, quantity in copies.items())


def settle_copies(session: Session, taken: Mapping[str, Any], put_back: bool) -> dict[str, Any]:
    """Book copies settled by a person as restored or written off.

    A lost copy is taken out of all that ever came in, so that the stock still adds up.

    Raises:
        NothingToUndo: a book to which copies are to be put back was deleted.
    """
    copies: Mapping[str, int] = taken["copies"]
    gone = set(copies) - _lock_books(session, set(copies)).keys()
    if put_back:
        if gone:
            raise NothingToUndo(f"book {min(gone)} is gone; settle it without --put-back")
        increase(session, Book, "quantity", copies)
        return {"copies": copies}
    lost = {book_id: -quantity for book_id, quantity in copies.items()}
    increase(session, Book, "initial_quantity", lost)
    return {"copies": {}, "written_off": copies}


def lines_by_order(session: Session, order_ids: Sequence[str]) -> dict[str, list[tuple[str, int]]]:
    """Return each order's lines as book ids and numbers of copies."""
    lines: dict[str, list[tuple[str, int]]] = {id_: [] for id_ in order_ids}
    for order_id, book_id, quantity in read_rows(
        session,
        select(OrderLine.order_id, OrderLine.book_id, OrderLine.quantity).where(
            among(col(OrderLine.order_id), order_ids)
        ),
    ):
        lines[order_id].append((book_id, quantity))
    return lines


def books_of(lines: Mapping[str, Sequence[tuple[str, int]]]) -> set[str]:
    """Return the ids of the books in these lines."""
    return {book_id for of_order in lines.values() for book_id, _ in of_order}


class ShelfBook(NamedTuple):
    """What the stock's steps see of a book."""

    id: str
    title: str
    price_cents: int | None
    quantity: int


def _lock_books(session: Session, book_ids: Iterable[str]) -> dict[str, ShelfBook]:
    books = read_rows(
        session,
        select(Book.id, Book.title, Book.price_cents, Book.quantity)
        .where(among(col(Book.id), book_ids))
        .order_by(Book.id)
        .with_for_update(),
    )
    return {book[0]: ShelfBook._make(book) for book in books}


def _why_not(
    lines: Sequence[tuple[str, int]], books: Mapping[str, ShelfBook], left: Mapping[str, int]
) -> OrderError | None:
    """Return why ``lines`` cannot be served from what is ``left``."""
    for book_id, quantity in lines:
        book = books.get(book_id)
        if book is None:
            return BookNotFound(f"no book has the id {book_id}")
        if book.price_cents is None:
            return BookHasNoPrice(f"“{book.title}” ({book.id}) has no price")
        if left[book.id] < quantity:
            return BookOutOfStock(
                f"“{book.title}” ({book.id}): {quantity} asked for, {left[book.id]} in stock"
            )
    return None
