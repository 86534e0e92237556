"""The task ``calculate_total``, which has no undo."""

from sqlmodel import col, select

from store.bulk import among, read_rows, update_rows
from store.errors import BookHasNoPrice
from store.models import Book, OrderLine
from store.saga import forward
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
        priced: dict[str, list[tuple[str, int, int | None]]] = {o.id: [] for o in step.todo}
        for order_id, book_id, quantity, price_cents in read_rows(
            step.session,
            select(OrderLine.order_id, OrderLine.book_id, OrderLine.quantity, Book.price_cents)
            .join(Book, col(Book.id) == col(OrderLine.book_id), isouter=True)
            .where(among(col(OrderLine.order_id), priced)),
        ):
            priced[order_id].append((book_id, quantity, price_cents))
        unit_prices = []
        for order in step.todo:
            total_cents = 0
            unpriced = None
            for book_id, quantity, price_cents in priced[order.id]:
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
                order,
                {"total_cents": total_cents},
                total_cents=total_cents,
                due_cents=total_cents,
            )
        update_rows(step.session, OrderLine, unit_prices)
    return step.going_on()
