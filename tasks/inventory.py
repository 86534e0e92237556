"""The stock: ``check_inventory`` reserves copies, ``restore_quantity`` gives them back."""

from collections.abc import Mapping, Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE
from sqlalchemy import bindparam, update
from sqlmodel import Session, col, select

from store.errors import BookHasNoPrice, BookNotFound, BookOutOfStock, OrderError
from store.models import Book, OrderLine
from store.saga import backward, forward
from tasks.retries import RETRIES, RETRY_DELAYS_SECONDS, RETRY_JITTER, if_transient


@task(
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS_SECONDS,
    retry_jitter_factor=RETRY_JITTER,
    retry_condition_fn=if_transient,
    cache_policy=NO_CACHE,
)
def check_inventory(order_ids: list[str]) -> list[str]:
    """Reserve the copies of each order: all of its lines, or none.

    Undone by :func:`restore_quantity`. Orders are served in the order in which they are given.

    Returns:
        The ids of the orders that go on.

    Raises:
        BookNotFound, BookHasNoPrice, BookOutOfStock: no order goes on; the first one's reason.
    """
    with forward("check_inventory", order_ids) as step:
        lines = _lines_by_order(step.session, [order.id for order in step.todo])
        books = _lock_books(
            step.session, {line.book_id for of_order in lines.values() for line in of_order}
        )
        left = {id_: book.quantity for id_, book in books.items()}
        for order in step.todo:
            problem = _why_not(lines[order.id], books, left)
            if problem is not None:
                step.fail(order, problem)
                continue
            copies = {line.book_id: line.quantity for line in lines[order.id]}
            for book_id, quantity in copies.items():
                left[book_id] -= quantity
            step.done(order, {"copies": copies})
        taken = {id_: books[id_].quantity - left[id_] for id_ in left}
        _add_copies(step.session, {id_: -quantity for id_, quantity in taken.items() if quantity})
    return step.going_on()


@task(
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS_SECONDS,
    retry_jitter_factor=RETRY_JITTER,
    retry_condition_fn=if_transient,
    cache_policy=NO_CACHE,
)
def restore_quantity(order_ids: list[str]) -> list[str]:
    """Put the reserved copies of failed orders back on the shelf; the undo of check_inventory.

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
        _add_copies(undo.session, returned)
        return [order.id for order, _ in undo.todo]


def settle_copies(session: Session, copies: Mapping[str, int], *, put_back: bool) -> None:
    """Book copies that a person has seen to: back on the shelf, or lost and written off.

    A lost copy is taken out of all that ever came in, so that the stock still adds up.
    """
    _lock_books(session, set(copies))
    if put_back:
        _add_copies(session, copies)
    else:
        session.connection().execute(
            update(Book)
            .where(col(Book.id) == bindparam("book"))
            .values(initial_quantity=col(Book.initial_quantity) - bindparam("lost")),
            [{"book": id_, "lost": quantity} for id_, quantity in copies.items()],
        )


def _lines_by_order(session: Session, order_ids: Sequence[str]) -> dict[str, list[OrderLine]]:
    lines: dict[str, list[OrderLine]] = {id_: [] for id_ in order_ids}
    for line in session.exec(select(OrderLine).where(col(OrderLine.order_id).in_(order_ids))):
        lines[line.order_id].append(line)
    return lines


def _lock_books(session: Session, book_ids: Mapping[str, int] | set[str]) -> dict[str, Book]:
    books = session.exec(
        select(Book).where(col(Book.id).in_(list(book_ids))).order_by(Book.id).with_for_update()
    )
    return {book.id: book for book in books}


def _why_not(
    lines: Sequence[OrderLine], books: Mapping[str, Book], left: Mapping[str, int]
) -> OrderError | None:
    """Return why an order of ``lines`` cannot be served from what is ``left``, if so."""
    for line in lines:
        book = books.get(line.book_id)
        if book is None:
            return BookNotFound(f"no book has the id {line.book_id}")
        if book.price_cents is None:
            return BookHasNoPrice(f"“{book.title}” ({book.id}) has no price")
        if left[book.id] < line.quantity:
            return BookOutOfStock(
                f"“{book.title}” ({book.id}): {line.quantity} asked for, {left[book.id]} in stock"
            )
    return None


def _add_copies(session: Session, copies: Mapping[str, int]) -> None:
    if copies:
        session.connection().execute(
            update(Book)
            .where(col(Book.id) == bindparam("book"))
            .values(quantity=col(Book.quantity) + bindparam("added")),
            [{"book": id_, "added": quantity} for id_, quantity in copies.items()],
        )
