"""Orders that are in an archive and nowhere else."""

from sqlmodel import Session, col, select

from store.archive_tables import Archive, ArchivedOrder
from store.database import reading
from store.errors import OrderArchived


def require_not_archived(session: Session, order_id: str) -> None:
    """Raise OrderArchived if an archive has the order.

    Raises:
        OrderArchived: it has.
    """
    if session.get(ArchivedOrder, order_id) is not None:
        raise archived(order_id)


def archived(order_id: str) -> OrderArchived:
    """Return the refusal of whatever is asked of an archived order."""
    return OrderArchived(
        f"orderId: {order_id} belongs to an order that ended long ago and is archived; "
        f"`checkout show {order_id}` names its file. Use another orderId for another order. "
        "Nothing was changed."
    )


def archive_of(order_id: str) -> Archive | None:
    """Return the archive that has the order, if one does."""
    with reading() as session:
        found = session.exec(
            select(Archive)
            .join(ArchivedOrder, col(ArchivedOrder.archive_id) == col(Archive.id))
            .where(ArchivedOrder.order_id == order_id)
        ).first()
        session.expunge_all()
        return found
