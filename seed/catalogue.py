"""The data of a new shop, and a reproducible catalogue for load."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from sqlalchemy import delete
from sqlalchemy import select as select_columns
from sqlmodel import Session, SQLModel, col, select

from store.bulk import insert_missing
from store.database import transaction
from store.models import Book, Courier, Customer, Order, OrderStatus

TEN_X_RULE = "01G4E1A9GF5CZWET09RSBR04PV"
STRIPED_PAJAMAS = "01G4E1A9GF2VKNDHNYB7FRAN8F"
EDUARDO_SANTANA = "01G4E1AZW2Q1X3QQEYBACQXMFH"
JOHN_DOE = "01G4E1AZW2HHR3C1FTZBYRZXXC"
GOOD_CARD = "pm_card_visa"

BOOKS = [
    {"id": TEN_X_RULE, "title": "The 10X Rule", "price_cents": 20_00, "quantity": 500},
    {
        "id": STRIPED_PAJAMAS,
        "title": "The Boy in the Striped Pajamas",
        "price_cents": 75_00,
        "quantity": 400,
    },
]
CUSTOMERS = [
    {"id": EDUARDO_SANTANA, "name": "Eduardo Santana", "points": 300},
    {"id": JOHN_DOE, "name": "John Doe", "points": 100},
]
COURIERS = [
    {"id": "swift-bikes", "name": "Swift Bikes", "capacity_copies": 60},
    {"id": "city-vans", "name": "City Vans", "capacity_copies": 200},
    {"id": "night-rail", "name": "Night Rail", "capacity_copies": 120},
]

POINTS_AT_MOST = 500
STOCK_AT_MOST = 2_000
DEAREST_CENTS = 80_00


def put_shop() -> int:
    """Insert the original's books and users and some couriers.

    Existing rows stay as they are.

    Returns:
        The number of rows that were new.
    """
    with transaction() as session:
        return sum(
            len(insert_missing(session, model, rows))
            for model, rows in (
                (Book, [{**b, "initial_quantity": b["quantity"]} for b in BOOKS]),
                (
                    Customer,
                    [
                        {**c, "initial_points": c["points"], "payment_method": GOOD_CARD}
                        for c in CUSTOMERS
                    ],
                ),
                (Courier, [{**c, "assigned_copies": 0} for c in COURIERS]),
            )
        )


def put_couriers(couriers: Mapping[str, int]) -> int:
    """Insert a shop's own couriers, or change their capacities.

    One that was deleted with copies in hand has them in hand again.

    Args:
        couriers: By the courier's id, the copies that it takes at a time.

    Returns:
        The number of couriers that are new.

    Raises:
        ValueError: a courier has more copies in hand than it would take.
    """
    with transaction() as session:
        in_hand = _copies_in_hand(session, list(couriers))
        new = insert_missing(
            session,
            Courier,
            [
                {
                    "id": id_,
                    "name": id_,
                    "capacity_copies": max(copies, in_hand[id_]),
                    "assigned_copies": in_hand[id_],
                }
                for id_, copies in couriers.items()
            ],
        )
        for courier in session.exec(
            select(Courier)
            .where(col(Courier.id).in_(list(couriers)))
            .order_by(col(Courier.id))
            .with_for_update()
        ):
            if courier.assigned_copies > couriers[courier.id]:
                raise ValueError(
                    f"courier {courier.id} has {courier.assigned_copies} copies in hand"
                )
            courier.capacity_copies = couriers[courier.id]
        return len(new)


def _copies_in_hand(session: Session, courier_ids: Sequence[str]) -> Counter[str]:
    """Lock the couriers' accepted orders and return their copies by courier."""
    accepted = session.execute(
        select_columns(col(Order.courier_id), col(Order.copies))
        .where(col(Order.status) == OrderStatus.DISPATCHING, col(Order.courier_id).in_(courier_ids))
        .order_by(col(Order.id))
        .with_for_update()
    )
    in_hand: Counter[str] = Counter()
    for courier_id, copies in accepted:
        in_hand[courier_id] += copies
    return in_hand


def put_catalogue(books: int, users: int) -> int:
    """Insert the reproducible catalogue for load.

    Popular titles have more stock.

    Popularity follows the title's rank, as sales of books do (a few titles make most of them),
    so orders drawn by it meet on the same rows.

    Args:
        books: How many titles.
        users: How many customers.

    Returns:
        The number of rows that were new.
    """
    with transaction() as session:
        return len(insert_missing(session, Book, _books(books))) + len(
            insert_missing(session, Customer, _customers(users))
        )


def popularity(books: int) -> list[float]:
    """Return the titles' weights in orders, by rank."""
    return [1.0 / (rank + 1) for rank in range(books)]


def _books(count: int) -> Iterator[dict[str, object]]:
    for rank in range(count):
        chance = random.Random(f"book {rank}")  # noqa: S311  (reproducible, not secret)
        stock = max(5, int(STOCK_AT_MOST / (rank + 1) ** 0.5))
        yield {
            "id": f"book-{rank:06d}",
            "title": f"Catalogue title {rank}",
            "price_cents": chance.randrange(5_00, DEAREST_CENTS),
            "quantity": stock,
            "initial_quantity": stock,
        }


def _customers(count: int) -> Iterator[dict[str, object]]:
    for number in range(count):
        chance = random.Random(f"customer {number}")  # noqa: S311  (reproducible, not secret)
        points = chance.choice([0, 0, chance.randrange(POINTS_AT_MOST)])
        yield {
            "id": f"customer-{number:06d}",
            "name": f"Customer {number}",
            "points": points,
            "initial_points": points,
            "payment_method": GOOD_CARD,
        }


def empty() -> None:
    """Delete every row of every table of the store."""
    with transaction() as session:
        for table in reversed(SQLModel.metadata.sorted_tables):
            session.execute(delete(table))
