"""AGENTS.md's recipe for a step, carried out on a copy of the project: a gift box for each parcel.

What is added here is all that the recipe names; every other file of the copy is as it is.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory

import store
from deployments.embedded import EmbeddedPostgres

PROJECT_DIR = Path(__file__).resolve().parents[2]
PACKAGES = [
    path.parent.name
    for path in PROJECT_DIR.glob("*/__init__.py")
    if path.parent.name not in ("tests", "benchmarks")
]
HEAD = ScriptDirectory(str(Path(str(store.__file__)).parent / "migrations")).get_current_head()

WRAPPING = '''
"""The wrapping: ``wrap_gift`` takes a gift box, ``unwrap_gift`` gives it back."""

from collections.abc import Mapping
from typing import Any

from sqlmodel import Session

from store.bulk import increase
from store.models import Box
from store.saga import backward, forward
from tasks.retries import retried_task
from tasks.undo import Taken


@retried_task
def wrap_gift(order_ids: list[str]) -> list[str]:
    """Take a box for each order of several copies. Undone by :func:`unwrap_gift`."""
    with forward("wrap_gift", order_ids) as step:
        wrapped = [order for order in step.todo if order.copies > 1]
        for order in step.todo:
            if order in wrapped:
                step.done(order, {"boxes": 1})
            else:
                step.skip(order)
        _add(step.session, -len(wrapped))
    return step.going_on()


@retried_task
def unwrap_gift(order_ids: list[str]) -> list[str]:
    """Give the boxes of failed orders back; the undo of wrap_gift."""
    with backward("wrap_gift", order_ids) as undo:
        for _, record in undo.todo:
            undo.undone(record, {"boxes": record.result["boxes"]})
        _add(undo.session, len(undo.todo))
        return [order.id for order, _ in undo.todo]


def _add(session: Session, boxes: int) -> None:
    session.get_one(Box, "gift", with_for_update=True)
    increase(session, Box, "quantity", {"gift": boxes})


def boxes_in_words(taken: Taken) -> str:
    boxes = taken.result.get("boxes", 0)
    return f"{boxes} gift box" if boxes else ""


def settle_boxes(session: Session, taken: Mapping[str, Any], put_back: bool) -> dict[str, Any]:
    if put_back:
        _add(session, taken["boxes"])
        return {"boxes": taken["boxes"]}
    return {"boxes": 0, "written_off": taken["boxes"]}
'''
ROW = """    Step(
        wrap_gift,
        "takes a gift box, if the order has several copies",
        Undo(
            task=unwrap_gift,
            place=4,
            in_words=boxes_in_words,
            settle=settle_boxes,
            written_off="the box is spoilt and written off",
            put_back="it is in stock again",
        ),
        needed=Need(lambda order: order.copies > 1, "copies > 1"),
    ),
"""
MODEL = '''

class Box(SQLModel, table=True):
    """A stock of boxes."""

    __tablename__ = "boxes"
    __table_args__ = (CheckConstraint("quantity >= 0", name="boxes_quantity_not_negative"),)

    id: str = Field(primary_key=True, max_length=ID_LENGTH)
    quantity: int
'''
MIGRATION = f'''
import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{HEAD}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "boxes",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("quantity", sa.Integer(), nullable=False),
        sa.CheckConstraint("quantity >= 0", name="boxes_quantity_not_negative"),
    )
'''
SCENARIO = '''
import os
from contextlib import ExitStack
from types import SimpleNamespace
from unittest.mock import patch
from uuid import uuid4

from console.main import main
from flows.batches import chunk
from flows import checkout
from flows.compensation import fail_and_compensate
from seed.catalogue import put_shop
from store.database import migrate, snapshot, transaction, reading
from store.errors import CompensationFailed, NoCourierAvailable, OrderError
from store.messages import NO_COURIER, CourierAnswer
from store.models import Box
from store.saga import fail_orders
from tasks import wrapping
from tasks.couriers import record_answer
from orders.lookup import outcome_error, read_order
from reports.timeline import form_texts, timeline
from reports.receipts import explain
from reports.audit import audit
from tasks.steps import STEPS
from tests.books_balance import assert_books_balance
from tests.shop import Bare, an_order, assign, give_back, placed, saga

assert wrapping.__file__.startswith(os.getcwd()), wrapping.__file__
migrate(os.environ["STORE_DATABASE_URL"])
put_shop()
with transaction() as session:
    session.add(Box(id="gift", quantity=5))


def boxes():
    with reading() as session:
        return session.get_one(Box, "gift").quantity


def told(title, *texts):
    print(f"== {title} ==", *texts, sep="\\n", flush=True)


def check_out(order_id, quantity, await_courier):
    """Carry out the real flow, with its tasks bare and the wait answered."""
    run = SimpleNamespace(id=str(uuid4()), tags=[])
    with ExitStack() as stack:
        for step in STEPS:
            stack.enter_context(patch.object(checkout, step.name, Bare(step.task)))
        for name in ("report_orders", "emit_statuses"):
            stack.enter_context(patch.object(checkout, name, lambda _: None))
        stack.enter_context(patch.object(checkout, "await_courier", await_courier))
        stack.enter_context(patch.object(checkout, "runtime", SimpleNamespace(flow_run=run)))
        return checkout.store_checkout.fn(an_order(order_id, quantity))


def refuse(order_id, *_):
    told("form", form_texts(read_order(order_id), "").description)
    main(["show", order_id])
    record_answer(order_id, CourierAnswer(outcome=NO_COURIER, answered_by="Ada"))
    raise outcome_error(read_order(order_id))


told("batch", [task.name for task in chunk.STEPS])
receipt = check_out("sent", 2, lambda order_id, *_: assign(order_id))
told("dispatched", receipt.status, saga("sent")["wrap_gift"], boxes())

told("refused")
try:
    check_out("refused", 2, refuse)
except NoCourierAvailable as error:
    told("error", error)
assert boxes() == 3
give_back("refused")
told("compensated", read_order("refused").status, saga("refused")["wrap_gift"], boxes())
told("timeline", timeline("refused"))
told("show")
main(["show", "refused"])

placed("one-copy", "prepare_order", 1)
assert "wrap_gift" not in saga("one-copy")

placed("stuck", "prepare_order", 2)
fail_orders(["stuck"], NoCourierAvailable("nobody"))
with patch.object(wrapping, "increase", lambda *_: 1 / 0):
    try:
        give_back("stuck")
    except CompensationFailed:
        pass
told("explained", explain("stuck", NoCourierAvailable("nobody")))
told("compensations")
main(["compensations"])
told("settled")
with patch("flows.actions.by_hand.prefect_client"), patch(
    "flows.actions.by_hand.report_orders"
), patch("flows.actions.by_hand.close_runs"):
    settle = ["compensations", "settle", "stuck", "unwrap_gift", "--by", "A", "--reason", "torn"]
    assert main([*settle, "--put-back"]) == 0
told("after", read_order("stuck").status, boxes())

with snapshot() as session:
    told("audit", *audit(session))
assert_books_balance()
told("end")
'''


def add(path: Path, before: str, text: str) -> None:
    """Add a text in front of the one place where ``before`` stands."""
    source = path.read_text()
    assert source.count(before) == 1, f"{path}: {before!r} stands {source.count(before)} times"
    path.write_text(source.replace(before, text + before))


def by_the_recipe(copy: Path) -> None:
    """Add the step to a copy of the project."""
    (copy / "tasks" / "wrapping.py").write_text(WRAPPING)
    add(copy / "tasks" / "steps.py", "    Step(\n        bill_customer,\n", ROW)
    add(
        copy / "tasks" / "steps.py",
        "\n\nclass Need(",
        "from tasks.wrapping import boxes_in_words, settle_boxes, unwrap_gift, wrap_gift\n",
    )
    add(
        copy / "flows" / "checkout.py",
        "        bill_customer(group)\n",
        "        wrap_gift(group)\n",
    )
    add(
        copy / "flows" / "checkout.py",
        "\nTAKEOVER_SECONDS",
        "from tasks.wrapping import wrap_gift\n",
    )
    with (copy / "store" / "models.py").open("a") as models:
        models.write(MODEL)
    (copy / "store" / "migrations" / "versions" / "9999_boxes.py").write_text(MIGRATION)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, postgres: EmbeddedPostgres) -> dict[str, str]:
    """What the copy says of its orders, by the headings of the scenario."""
    copy = tmp_path_factory.mktemp("recipe")
    for package in PACKAGES:
        shutil.copytree(
            PROJECT_DIR / package, copy / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    (copy / "tests").mkdir()
    for name in ("shop.py", "books_balance.py"):
        shutil.copy(PROJECT_DIR / "tests" / name, copy / "tests" / name)
    shutil.copy(PROJECT_DIR / "prefect.yaml", copy)
    by_the_recipe(copy)
    (copy / "scenario.py").write_text(SCENARIO)
    postgres.create_database("recipe")
    ended = subprocess.run(
        [sys.executable, "scenario.py"],
        cwd=copy,
        env={**os.environ, "STORE_DATABASE_URL": postgres.sqlalchemy_url("recipe")},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    parts = ended.stdout.split("== ")[1:]
    return dict(part.split(" ==\n", 1) for part in parts)


def test_an_order_takes_the_new_step_in_its_flow_and_in_a_batch(said: dict[str, str]) -> None:
    assert said["dispatched"].split() == ["dispatched", "done", "4"]
    assert said["batch"].index("redeem_points") < said["batch"].index("wrap_gift")
    assert said["batch"].index("wrap_gift") < said["batch"].index("bill_customer")


def test_the_new_undo_gives_back_what_the_step_took(said: dict[str, str]) -> None:
    assert said["compensated"].split() == ["compensated", "undone", "4"]


def test_the_form_and_the_show_of_a_waiting_order_tell_what_it_would_give_back(
    said: dict[str, str],
) -> None:
    taken = "40.00 USD, 2 of “The 10X Rule”, 1 gift box"
    assert f"is given back: {taken}." in said["form"]
    assert f"would give back {taken} (checkout cancel refused)" in said["form"]


def test_the_errors_text_has_the_step(said: dict[str, str]) -> None:
    assert "To be given back: 40.00 USD, 2 copies, 1 gift box." in said["error"]
    assert said["explained"].endswith("40.00 USD, 2 copies. To be given back: 1 gift box.\n")


def test_the_timeline_and_the_show_have_the_step_and_its_undo(said: dict[str, str]) -> None:
    (row,) = (line for line in said["timeline"].splitlines() if "wrap_gift" in line)
    assert "| 1\u00a0gift\u00a0box |" in row
    assert "wrap_gift undone" in said["show"]


def test_a_failed_undo_is_listed_and_settled(said: dict[str, str]) -> None:
    assert "unwrap_gift" in said["compensations"]
    assert "1 gift box" in said["compensations"]
    assert "Settled: unwrap_gift of order stuck, 1 gift box. It is compensated." in said["settled"]
    assert said["after"].split() == ["compensated", "4"]


def test_the_audit_finds_nothing(said: dict[str, str]) -> None:
    assert said["audit"] == ""
    assert "end" in said
