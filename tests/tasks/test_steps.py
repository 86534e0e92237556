"""The table of steps: what goes by steps goes by it."""

import ast
import inspect

import pytest
from prefect import Task
from sqlalchemy import text

import flows.batches.chunk
import flows.checkout
from store import saga_log
from store.database import reading, transaction
from store.models import Order
from store.saga import backward, forward
from store.saga_log import lock_orders
from tasks.steps import BEFORE_THE_WAIT, SEQUENCE, STEPS, UNDOS, Step
from tests.shop import carry_on, end_run, place


def test_each_step_and_each_place_in_the_order_of_undoing_comes_once() -> None:
    assert len(set(SEQUENCE)) == len(STEPS)
    assert [undo.place for undo in UNDOS.values()] == list(range(1, len(UNDOS) + 1))


def test_one_checkout_and_a_batch_take_the_steps_in_the_order_of_the_table() -> None:
    flow = ast.parse(inspect.getsource(flows.checkout.store_checkout.fn))
    calls = {
        node.lineno: node.func.id
        for node in ast.walk(flow)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and isinstance(getattr(flows.checkout, node.func.id, None), Task)
    }
    assert [calls[line] for line in sorted(calls)] == list(SEQUENCE)
    assert tuple(step.task for step in BEFORE_THE_WAIT) == flows.batches.chunk.STEPS


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_the_saga_and_the_audit_agree_on_the_orders_that_need_a_step(
    database: str, step: Step
) -> None:
    # The first is paid wholly with points.
    for number, (redeem, quantity) in enumerate([(True, 1), (True, 50), (False, 2)]):
        place(f"o-{number}", quantity, redeem=redeem)
        carry_on([f"o-{number}"], "prepare_order")
    with transaction() as session:
        orders = lock_orders(session, ["o-0", "o-1", "o-2"])
        found = session.connection().execute(
            text(f"SELECT id FROM orders WHERE {step.needed.sql}")  # noqa: S608
        )
        assert {id_ for (id_,) in found} == {o.id for o in orders.values() if step.needed.of(o)}
    for id_ in orders:
        end_run(id_)


def test_a_step_that_is_not_in_the_table_is_refused(database: str) -> None:
    place("o-1")
    for direction in (forward, backward):
        refused = pytest.raises(LookupError, match="wrap_gift is not in the table of steps")
        with refused, direction("wrap_gift", ["o-1"]):
            pass
    end_run("o-1")


def test_without_the_table_no_order_is_taken_for_one_that_has_taken_nothing(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place("o-1")
    carry_on(["o-1"], "check_inventory")
    with monkeypatch.context() as patch:
        patch.setattr(saga_log, "_registered", [])
        with pytest.raises(RuntimeError, match="no steps are registered"):
            end_run("o-1")
    with reading() as session:
        assert session.get_one(Order, "o-1").status == "started"
    end_run("o-1")
