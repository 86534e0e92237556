"""What the demo compares before and after: stock, points and money as they stand."""

import pytest

from deployments.holdings import read_holdings
from store.database import transaction


@pytest.mark.usefixtures("database")
def test_a_new_shop_holds_what_was_seeded() -> None:
    with transaction() as session:
        holdings = read_holdings(session)
    assert holdings.stock == {"The 10X Rule": 500, "The Boy in the Striped Pajamas": 400}
    assert holdings.points == {"Eduardo Santana": 300, "John Doe": 100}
    assert holdings.kept_cents == 0
