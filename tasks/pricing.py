"""The task ``calculate_total``, which has no undo."""

from collections.abc import Iterable

from sqlmodel import Session, col, select

from store.bulk import among, read_rows, update_rows
from store.errors import BookHasNoPrice
from store.models import Book, OrderLine
from store.saga import forward
from tasks.inventory import books_of, lines_by_order
from tasks.retries import retried_task


@retried_task
def calculate_total(order_ids: list[str]) -> list[str]:
    """Set each order's unit prices and total in cents.

    Later changes of prices do not affect it.

    Returns:
        The ids of the orders that go on.

    Raises:
        BookHasNoPrice: no order goes on; a price was taken away since the copies were reserved.
    """
    with forward("calculate_total", order_ids) as step:
        lines = lines_by_order(step.session, [order.id for order in step.todo])
        prices = _prices(step.session, books_of(lines))
        unit_prices = []
        for order in step.todo:
            total_cents = 0
            unpriced = None
            for book_id, quantity in lines[order.id]:
                price_cents = prices.get(book_id)
                if price_cents is None:
                    unpriced = book_id
                    break
                total_cents += quantity * price_cents
                unit_prices.append(
                    {"order_id": order.id, "book_id": book_id, "unit_price_cents": price_cents}
                )
            if unpriced is not None:
                step.fail(order, BookHasNoPrice(f"book {unpriced} has no price any more"))
                continue
            step.done(
                order, {"total_cents": total_cents}, total_cents=total_cents, due_cents=total_cents
            )
        update_rows(step.session, OrderLine, unit_prices)
    return step.going_on()


def _prices(session: Session, book_ids: Iterable[str]) -> dict[str, int | None]:
    """Return the books' prices in cents, without the books that are gone."""
    found = read_rows(
        session, select(Book.id, Book.price_cents).where(among(col(Book.id), book_ids))
    )
    return dict(found)
