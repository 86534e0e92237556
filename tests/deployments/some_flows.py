"""Flows that pause, and flows that do not."""

from prefect import flow, pause_flow_run

from tests.deployments import some_flows


def ask() -> None:
    pause_flow_run()


def note() -> None:
    pass


def helper() -> None:
    def inner() -> None:
        ask()

    inner()


@flow(retries=0)
def waiting() -> None:
    some_flows.ask()


@flow
def asking() -> None:
    helper()


@flow(on_failure=[lambda *_: ask()])
def hooked() -> None:
    note()


@flow
def plain(seconds: int) -> None:
    del seconds


@flow(retries=2)
def retried() -> None:
    pass
