"""The store under simulated faults: its books balance at every moment, and every order ends."""

import ast
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from prefect import Task

import flows.checkout
from deployments.embedded import EmbeddedPostgres
from tests.faults.chance import shrink
from tests.faults.databases import new_database
from tests.faults.deliberate_bugs import BUGS, Bug
from tests.faults.prefect_model import Prefect
from tests.faults.simulation import Outcome, simulate
from tests.faults.world import LISTENING_SEEDS

pytestmark = pytest.mark.timeout(600)
"""Simulations compute all the time, so a busy machine takes several times as long."""
GROUPS, GROUP = 8, 12
"""Seeds for each run of the tests, in groups so that none takes too long."""
SEEDS_WITH_BATCHES = 8
SEEDS_TO_FIND_A_BUG = 300
DULL: list[int] = []
"""No decisions: one order, without points, and nothing goes wrong."""


@pytest.fixture(scope="module")
def faults_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    with new_database(postgres) as url:
        yield url


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
    group: int, faults_url: str
) -> None:
    for seed in range(group * GROUP, (group + 1) * GROUP):
        assert_no_violation(simulate(seed, faults_url))


def test_so_it_is_with_batches_that_listen(faults_url: str) -> None:
    for seed in range(LISTENING_SEEDS, LISTENING_SEEDS + SEEDS_WITH_BATCHES):
        assert_no_violation(simulate(seed, faults_url))


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_deliberate_bug_is_found(bug: Bug, faults_url: str) -> None:
    with bug.made():
        for seed in range(bug.seeds_from, bug.seeds_from + SEEDS_TO_FIND_A_BUG):
            outcome = simulate(seed, faults_url)
            if outcome.violation is not None:
                assert outcome.violation.invariant in bug.found_as, outcome.violation.sentence
                return
    pytest.fail(f"{SEEDS_TO_FIND_A_BUG} seeds did not find that {bug.name.replace('_', ' ')}")


def test_a_seed_replays_exactly(faults_url: str) -> None:
    first, again = simulate(3, faults_url), simulate(3, faults_url)
    assert first == again
    replayed = simulate(0, faults_url, first.decisions)
    assert replayed.story == first.story


def test_a_failing_seed_shrinks_to_what_makes_it_fail(faults_url: str) -> None:
    bug = next(bug for bug in BUGS if bug.name == "a_courier_is_never_free_again")
    with bug.made():
        failing = next(
            outcome
            for seed in range(SEEDS_TO_FIND_A_BUG)
            if (outcome := simulate(seed, faults_url)).violation is not None
        )

        def still_fails(decisions: list[int]) -> bool:
            return simulate(0, faults_url, decisions).violation is not None

        kept = shrink(failing.decisions, still_fails)
        assert still_fails(kept)
    assert sum(map(bool, kept)) < 10
    assert len(simulate(0, faults_url, kept).story) < len(failing.story)


def test_the_simulated_run_takes_the_steps_of_the_real_flow(
    faults_url: str, monkeypatch: pytest.MonkeyPatch
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
    outcome = simulate(0, faults_url, DULL)
    assert outcome.endings == {"dispatched": 1}
    assert taken == [step for step in in_the_flow if step != "redeem_points"]
