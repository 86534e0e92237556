"""What is asked about all orders of a batch at once."""

from orders.batches import sums_of_run
from seed.catalogue import TEN_X_RULE
from tests.shop import carry_on, end_run, ledger, place, placed, set_price, status

RUN = "a-batch"
SOME_MILLIONS_CENTS = 30_000_000_00
"""More than fits into 32 bits."""


def test_a_batch_counts_as_captured_what_the_gateway_has_captured(database: str) -> None:
    placed("dispatched", "dispatch_order", 1, run_id=RUN)
    placed("given-back", "bill_customer", 2, run_id=RUN)
    end_run("given-back")
    for order_id, way in (("never-arrived", "before"), ("captured-unheard", "after")):
        place(order_id, 4, run_id=RUN, payment_method=f"pm_ledger_timeout_{way}")
    carry_on(["dispatched", "never-arrived", "captured-unheard"], "bill_customer")
    for order_id in ("never-arrived", "captured-unheard"):
        end_run(order_id)
        assert status(order_id) == "compensated"
    assert [state for _, state, _ in ledger("never-arrived")] == ["void"]
    sums = sums_of_run(RUN)
    assert (sums.captured_cents, sums.refunded_cents) == (
        sum(cents for _, state, cents in ledger() if state == "captured"),
        sum(cents for _, state, cents in ledger() if state == "refunded"),
    )


def test_a_batch_may_move_any_amount(database: str) -> None:
    set_price(TEN_X_RULE, SOME_MILLIONS_CENTS)
    for number in range(2):
        placed(f"o-{number}", "bill_customer", run_id=RUN)
        end_run(f"o-{number}")
    sums = sums_of_run(RUN)
    assert (sums.captured_cents, sums.refunded_cents) == (2 * SOME_MILLIONS_CENTS,) * 2
