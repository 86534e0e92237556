"""The store under simulated faults: its books balance at every moment, and every order ends."""

import ast
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from prefect import Task

import flows.checkout
from deployments.embedded import EmbeddedPostgres
from store.database import migrate
from tests.faults.chance import shrink
from tests.faults.databases import new_database
from tests.faults.deliberate_bugs import BUGS, Bug
from tests.faults.prefect_model import Prefect
from tests.faults.simulation import Outcome, dispose, simulate

pytestmark = pytest.mark.timeout(600)
"""Simulations compute all the time, so a busy machine takes several times as long."""
GROUPS, GROUP = 8, 10
"""Seeds for each run of the tests on SQLite, in groups so that none takes too long."""
POSTGRESQL_SEEDS = 12
SEEDS_TO_FIND_A_BUG = 300
DULL: list[int] = []
"""No decisions: one order, without points, and nothing goes wrong."""


@pytest.fixture(scope="module")
def sqlite_faults() -> Iterator[str]:
    with new_database("sqlite") as url:
        yield url


@pytest.fixture(scope="module")
def postgresql_faults(postgres: EmbeddedPostgres) -> Iterator[str]:
    postgres.create_database("faults")
    url = postgres.sqlalchemy_url("faults")
    migrate(url)
    yield url
    dispose(url)


def assert_no_violation(outcome: Outcome) -> None:
    assert outcome.violation is None, "\n".join(
        [
            *outcome.story[-40:],
            f"seed {outcome.seed} breaks {outcome.violation}",
            f"again: make faults SEED={outcome.seed}",
        ]
    )


@pytest.mark.parametrize("group", range(GROUPS))
def test_whatever_happens_the_books_balance_and_every_order_ends(
    group: int, sqlite_faults: str
) -> None:
    for seed in range(group * GROUP, (group + 1) * GROUP):
        assert_no_violation(simulate(seed, sqlite_faults))


def test_the_same_holds_on_postgresql(postgresql_faults: str) -> None:
    for seed in range(1000, 1000 + POSTGRESQL_SEEDS):
        assert_no_violation(simulate(seed, postgresql_faults))


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_deliberate_bug_is_found(bug: Bug, sqlite_faults: str) -> None:
    with bug.made():
        for seed in range(bug.seeds_from, bug.seeds_from + SEEDS_TO_FIND_A_BUG):
            outcome = simulate(seed, sqlite_faults)
            if outcome.violation is not None:
                assert outcome.violation.invariant in bug.found_as, outcome.violation.sentence
                return
    pytest.fail(f"{SEEDS_TO_FIND_A_BUG} seeds did not find that {bug.name.replace('_', ' ')}")


def test_a_seed_replays_exactly(sqlite_faults: str) -> None:
    first, again = simulate(3, sqlite_faults), simulate(3, sqlite_faults)
    assert first == again
    replayed = simulate(0, sqlite_faults, first.decisions)
    assert replayed.story == first.story


def test_a_failing_seed_shrinks_to_what_makes_it_fail(sqlite_faults: str) -> None:
    bug = next(bug for bug in BUGS if bug.name == "a_courier_is_never_free_again")
    with bug.made():
        failing = next(
            outcome
            for seed in range(SEEDS_TO_FIND_A_BUG)
            if (outcome := simulate(seed, sqlite_faults)).violation is not None
        )

        def still_fails(decisions: list[int]) -> bool:
            return simulate(0, sqlite_faults, decisions).violation is not None

        kept = shrink(failing.decisions, still_fails)
        assert still_fails(kept)
    assert sum(map(bool, kept)) < 10
    assert len(simulate(0, sqlite_faults, kept).story) < len(failing.story)


def test_the_simulated_run_takes_the_steps_of_the_real_flow(
    sqlite_faults: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ast.parse(inspect.getsource(flows.checkout.store_checkout.fn))
    in_the_flow = [
        node.func.id
        for node in ast.walk(source)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and isinstance(getattr(flows.checkout, node.func.id, None), Task)
    ]
    taken = []
    right = Prefect.call_task

    def call_task(prefect: Prefect, task: Task[..., Any], *args: Any, **kwargs: Any) -> Any:
        if prefect.in_a_run():
            taken.append(task.fn.__name__)
        return right(prefect, task, *args, **kwargs)

    monkeypatch.setattr(Prefect, "call_task", call_task)
    outcome = simulate(0, sqlite_faults, DULL)
    assert outcome.endings == {"dispatched": 1}
    assert taken == [step for step in in_the_flow if step != "redeem_points"]
