"""The tables of orders read what the store's database holds."""

import pytest

from deployments.orders import main, read_holdings
from store.database import transaction
from store.models import Order, OrderLine, OrderStatus, SagaRecord, StepState, utc_now


def put_rejected_order() -> None:
    with transaction() as session:
        session.add(
            Order(
                id="rejected-1",
                status=OrderStatus.REJECTED,
                error="BookOutOfStock",
                message="501 asked for",
                user_id="user",
                redeem=False,
                payment_method="card",
                currency="USD",
                request={},
                copies=501,
            )
        )
        session.flush()
        session.add(OrderLine(order_id="rejected-1", book_id="book", quantity=501))
        session.add(
            SagaRecord(
                order_id="rejected-1",
                attempt=1,
                step="calculate_total",
                state=StepState.DONE,
                result={"total_cents": 5},
                at=utc_now(),
            )
        )


@pytest.mark.usefixtures("database")
def test_an_order_is_shown_with_its_reason_and_its_saga_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    put_rejected_order()
    assert main([]) == 0
    printed = capsys.readouterr().out
    for shown in ("rejected-1", "BookOutOfStock: 501 asked for", "calculate_total"):
        assert shown in printed


@pytest.mark.usefixtures("database")
def test_an_order_that_does_not_exist_is_named_with_a_failing_status(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["nobodys"]) == 1
    assert "There is no order nobodys" in capsys.readouterr().out


@pytest.mark.usefixtures("database")
def test_a_new_shop_holds_what_was_seeded() -> None:
    with transaction() as session:
        holdings = read_holdings(session)
    assert holdings.stock == {"The 10X Rule": 500, "The Boy in the Striped Pajamas": 400}
    assert holdings.points == {"Eduardo Santana": 300, "John Doe": 100}
    assert holdings.kept_cents == 0
