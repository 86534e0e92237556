"""The embedded topic, a table of the store's own database."""

from collections.abc import Sequence
from dataclasses import asdict

from store.bulk import insert_missing
from store.database import transaction
from store.models import Notification
from store.notifications import Notice


class TableTopic:
    """The embedded topic, a table of the store's own database."""

    def publish(self, notices: Sequence[Notice]) -> None:
        """See :meth:`Topic.publish`.

        A key that is there already is left as it is.
        """
        with transaction() as session:
            insert_missing(session, Notification, map(asdict, notices))
