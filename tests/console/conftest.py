"""What the tests of the command call it with, and the deployment that it starts runs of."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from console.main import main
from flows.checkout import store_checkout
from tests.flows.conftest import runs  # noqa: F401  (a fixture)
from tests.flows.runs import Runs

DEPLOYMENT = "store-checkout/local"


@dataclass(frozen=True)
class Said:
    """What a call of the command came to."""

    status: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """What it printed as JSON; nothing else may be printed with it."""
        return json.loads(self.out)


Call = Callable[..., Said]


@pytest.fixture
def checkout(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Calls ``checkout`` with its arguments, and with what is typed into it."""

    def call(*arguments: str, typed: str | bytes = "") -> Said:
        capsys.readouterr()
        content = typed.encode() if isinstance(typed, str) else typed
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        status = main(arguments)
        captured = capsys.readouterr()
        return Said(status, captured.out, captured.err)

    return call


@pytest.fixture
def deployment(runs: Runs) -> Runs:  # noqa: F811
    """The deployment of the checkout on the test server, whose runs nobody executes by himself."""
    flow_id = runs.client.create_flow(store_checkout)
    runs.client.create_deployment(
        flow_id=flow_id,
        name=DEPLOYMENT.partition("/")[2],
        parameter_openapi_schema=store_checkout.parameters.model_dump(),
        enforce_parameter_schema=True,
    )
    return runs
