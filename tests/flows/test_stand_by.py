"""The flows that listen: another run follows one that has died, and none is started in vain."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from prefect import Flow
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.states import Crashed, Running

from console.diagnosis import Verdict
from console.run_checks import _listeners
from deployments import automations
from flows import recovery
from flows.dispatch import dispatch_orders
from flows.recovery import recover_orders
from flows.runs import stand_by
from flows.runs.stand_by import FIRST, SECOND, TAG
from store.models import utc_now
from tests.flows.pool import Pool
from tests.flows.runs import Runs
from tests.polling import wait_until
from tests.shop import placed, status


class Upkeep(Pool):
    """A work pool with both listening flows, each with a schedule that is due in hours."""

    def __init__(self, runs: Runs) -> None:
        super().__init__(runs)
        self.ids: dict[Flow[..., Any], UUID] = {}

    def create(self) -> None:
        super().create()
        schedule = IntervalSchedule(
            interval=timedelta(hours=2), anchor_date=utc_now() + timedelta(hours=1)
        )
        for flow in (recover_orders, dispatch_orders):
            flow_id = self.client.create_flow(flow)
            self.flows[flow_id] = flow
            self.ids[flow] = self.client.create_deployment(
                flow_id,
                f"of-{self.name}",
                work_pool_name=self.name,
                parameters={"listen_seconds": 60},
                schedules=[DeploymentScheduleCreate(schedule=schedule, slug="rare")],
            )

    def runs_of(self, flow: Flow[..., Any]) -> list[FlowRun]:
        """The flow's runs that Prefect did not schedule by itself, the oldest first."""
        found = self.client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[self.ids[flow]]))
        )
        return sorted(
            (run for run in found if not run.auto_scheduled), key=lambda run: str(run.created)
        )

    def stand_by_of(self, flow: Flow[..., Any], *, second: bool = False) -> FlowRun | None:
        found = [
            run
            for run in self.runs_of(flow)
            if run.state_type == StateType.SCHEDULED
            and TAG in run.tags
            and (SECOND in run.tags) == second
        ]
        assert len(found) <= 1
        return found[0] if found else None

    def listen(self, flow: Flow[..., Any]) -> FlowRun:
        """Have a stand-by of the flow start, which ends with its schedule."""
        stand_by.create(self.client, self.ids[flow], timedelta(0))
        assert wait_until(self.work, "run that is due") == 1
        return self.runs_of(flow)[-1]

    def looks_again(self, flow: Flow[..., Any]) -> None:
        """Wait until the run that listens has looked again, after its first work."""
        first = due(lambda: self.stand_by_of(flow))
        wait_until(lambda: due(lambda: self.stand_by_of(flow)) > first, "another look")

    def end(self) -> list[Any]:
        """End the runs that listen."""
        self.client.update_work_pool(self.name, WorkPoolUpdate(is_paused=True))
        return self.ended()


@pytest.fixture
def upkeep(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Upkeep]:
    monkeypatch.setattr(stand_by, "LOOK_SECONDS", 0.5)
    monkeypatch.setattr(recovery, "LOOK_SECONDS", 0.2)
    with Upkeep(runs) as upkeep:
        yield upkeep


def due(find: Callable[[], FlowRun | None]) -> str:
    return str(wait_until(find, "stand-by").next_scheduled_start_time)


def test_a_run_that_listens_puts_its_stand_by_off_and_makes_the_other_flows(
    upkeep: Upkeep,
) -> None:
    upkeep.listen(recover_orders)

    def others() -> FlowRun | None:
        return upkeep.stand_by_of(dispatch_orders)

    of_the_other = due(others)
    upkeep.looks_again(recover_orders)
    # Nobody listens there, so it is not put off, and starts.
    assert due(others) == of_the_other
    assert len(upkeep.runs_of(dispatch_orders)) == 2
    assert upkeep.end()[0].is_completed()


def test_of_two_stand_bys_that_were_made_at_the_same_moment_one_stays(upkeep: Upkeep) -> None:
    upkeep.client.pause_deployment(upkeep.ids[dispatch_orders])
    twins = [
        stand_by.create(upkeep.client, upkeep.ids[recover_orders], timedelta(seconds=90))
        for _ in range(2)
    ]
    upkeep.listen(recover_orders)
    wait_until(lambda: not {*twins} <= {*scheduled(upkeep)}, "one of the twins alone")
    upkeep.looks_again(recover_orders)
    second = upkeep.stand_by_of(recover_orders, second=True)
    assert second is not None
    assert scheduled(upkeep) == [min(twins), second.id]
    upkeep.end()


def scheduled(upkeep: Upkeep) -> list[UUID]:
    runs = upkeep.runs_of(recover_orders)
    return [run.id for run in runs if run.state_type == StateType.SCHEDULED]


def test_a_run_that_has_died_is_followed_by_its_stand_by(
    upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(stand_by.STARTS_AFTER, FIRST, timedelta(seconds=3))
    upkeep.client.pause_deployment(upkeep.ids[dispatch_orders])
    dead = upkeep.listen(recover_orders)
    due(lambda: upkeep.stand_by_of(recover_orders))
    # A thread of the test cannot be killed: it ends with its pool, which is open again at once.
    upkeep.end()
    upkeep.client.set_flow_run_state(dead.id, Crashed(), force=True)
    upkeep.client.update_work_pool(upkeep.name, WorkPoolUpdate(is_paused=False))

    def states() -> list[StateType | None]:
        upkeep.work()
        return [run.state_type for run in upkeep.runs_of(recover_orders) if SECOND not in run.tags]

    followed = [StateType.CRASHED, StateType.RUNNING, StateType.SCHEDULED]
    wait_until(lambda: states() == followed, "follower with a stand-by of its own")
    upkeep.end()


def test_a_stand_by_that_dies_before_it_listens_is_followed_by_the_second(
    upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(stand_by.STARTS_AFTER, SECOND, timedelta(seconds=5))
    upkeep.client.pause_deployment(upkeep.ids[dispatch_orders])
    dead = upkeep.listen(recover_orders)
    wait_until(lambda: upkeep.stand_by_of(recover_orders, second=True), "second stand-by")
    upkeep.end()
    upkeep.client.set_flow_run_state(dead.id, Crashed(), force=True)
    # As one whose process could not reach Prefect's server.
    first = wait_until(lambda: upkeep.stand_by_of(recover_orders), "first stand-by")
    upkeep.client.set_flow_run_state(first.id, Crashed(), force=True)
    upkeep.client.update_work_pool(upkeep.name, WorkPoolUpdate(is_paused=False))
    assert wait_until(upkeep.work, "run that is due") == 1
    wait_until(lambda: upkeep.stand_by_of(recover_orders), "first stand-by of the second")
    upkeep.end()


def test_a_run_that_is_due_is_let_in_and_takes_over_the_stand_by(upkeep: Upkeep) -> None:
    upkeep.listen(recover_orders)
    due(lambda: upkeep.stand_by_of(recover_orders))
    by_a_person = upkeep.client.create_flow_run_from_deployment(upkeep.ids[recover_orders])
    (ended,) = upkeep.ended()
    assert ended.is_completed()
    assert upkeep.client.read_flow_run(by_a_person.id).state_type == StateType.SCHEDULED
    assert upkeep.stand_by_of(recover_orders) is not None


def test_a_schedule_that_is_switched_off_ends_its_run_and_the_stand_by(upkeep: Upkeep) -> None:
    upkeep.listen(recover_orders)
    due(lambda: upkeep.stand_by_of(recover_orders))
    upkeep.client.pause_deployment(upkeep.ids[recover_orders])
    (ended,) = upkeep.ended()
    assert ended.is_completed()
    assert [run.state_type for run in upkeep.runs_of(recover_orders)] == [StateType.COMPLETED]


def test_a_person_may_start_a_run_whose_schedule_is_off(upkeep: Upkeep) -> None:
    upkeep.client.pause_deployment(upkeep.ids[recover_orders])
    upkeep.client.create_flow_run_from_deployment(upkeep.ids[recover_orders])
    assert upkeep.work() == 1
    # It looks after the other flow's stand-by, and again.
    for _ in range(2):
        other = wait_until(lambda: upkeep.stand_by_of(dispatch_orders), "stand-by of the other")
        upkeep.client.delete_flow_run(other.id)
    assert [run.state_type for run in upkeep.runs_of(recover_orders)] == [StateType.RUNNING]
    upkeep.end()


def test_recovery_is_started_once_after_a_deployment_unless_it_is_off(upkeep: Upkeep) -> None:
    deployment = upkeep.client.read_deployment(upkeep.ids[recover_orders])
    for _ in range(2):
        stand_by.start_unless_off(upkeep.client, deployment)
    assert len(upkeep.runs_of(recover_orders)) == 1
    upkeep.client.pause_deployment(upkeep.ids[dispatch_orders])
    off = upkeep.client.read_deployment(upkeep.ids[dispatch_orders])
    stand_by.start_unless_off(upkeep.client, off)
    assert upkeep.runs_of(dispatch_orders) == []


def test_the_doctor_misses_a_flow_that_nobody_listens_in(upkeep: Upkeep) -> None:
    def missed() -> set[UUID]:
        found = {deployment.id for deployment in stand_by.without_listeners(upkeep.client)}
        return found & {*upkeep.ids.values()}

    assert missed() == {*upkeep.ids.values()}
    said = [each for each in _listeners() if each.verdict == Verdict.MEND]
    assert ["dispatch-orders" in each.says for each in said] == [True, False]
    assert "`checkout dispatcher on` starts one" in said[0].remedy
    upkeep.listen(recover_orders)
    due(lambda: upkeep.stand_by_of(dispatch_orders))
    assert missed() == set()
    upkeep.end()
    for flow in upkeep.ids:
        for run in upkeep.runs_of(flow):
            if run.state_type == StateType.SCHEDULED:
                upkeep.client.delete_flow_run(run.id)
    upkeep.client.pause_deployment(upkeep.ids[dispatch_orders])
    assert missed() == {upkeep.ids[recover_orders]}


def test_a_run_that_ends_badly_wakes_recovery_between_two_rounds(
    upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "HOOK_TIME", timedelta(0))
    run = upkeep.check_out("o-1")
    placed("o-1", "prepare_order", run_id=str(run.id))
    upkeep.client.set_flow_run_state(run.id, Running(), force=True)
    listening = upkeep.listen(recover_orders)
    upkeep.looks_again(recover_orders)
    upkeep.client.set_flow_run_state(run.id, Crashed(), force=True)
    wait_until(
        lambda: upkeep.state_of(run) not in ("Running", "Crashed"), "run that is started again"
    )
    assert status("o-1") == "waiting"
    assert upkeep.client.read_flow_run(listening.id).name.startswith("recovery ")
    upkeep.end()


def test_what_earlier_versions_had_deployed_is_deleted(upkeep: Upkeep) -> None:
    client = upkeep.client
    for name in automations.OUTDATED:
        outdated = next(iter(automations.automations(120))).model_copy(
            update={"name": name, "enabled": False}
        )
        client.create_automation(outdated)
    made = []
    for flow, name in (
        (recover_orders, automations.RECOVERY_DEPLOYMENT),
        (dispatch_orders, automations.DISPATCH_DEPLOYMENT),
    ):
        schedules = [
            DeploymentScheduleCreate(
                schedule=IntervalSchedule(interval=timedelta(hours=2)), slug=slug
            )
            for slug in (automations.OUTDATED_SCHEDULES[name], "every-two-hours")
        ]
        made.append(
            client.create_deployment(client.create_flow(flow), "local", schedules=schedules)
        )
    try:
        applied = automations.apply(client, 120)
        automations.start_recovery(client)
        for name in automations.OUTDATED:
            assert client.read_automations_by_name(name) == []
        for deployment_id in made:
            schedules_left = client.read_deployment(deployment_id).schedules
            assert [schedule.slug for schedule in schedules_left] == ["every-two-hours"]
    finally:
        for deployment_id in made:
            client.delete_deployment(deployment_id)
        for name in applied:
            for automation in client.read_automations_by_name(name):
                client.delete_automation(automation.id)
