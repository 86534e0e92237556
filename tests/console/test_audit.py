"""`checkout audit`: a line for each thing that is off, and the exit status."""

import json

import pytest

from console.main import main
from tests.shop import placed, set_order


@pytest.mark.usefixtures("database")
def test_audit_prints_what_is_off_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    placed("o-1", "prepare_order")
    assert main(["audit"]) == 0
    assert capsys.readouterr().out == "Audited: all orders. Findings: 0. Warnings: 0.\n"
    assert main(["audit", "--changed"]) == 0
    assert capsys.readouterr().out == "Audited: all orders. Findings: 0. Warnings: 0.\n"
    set_order("o-1", wait_until=None)
    assert main(["audit"]) == 1
    assert capsys.readouterr().out == (
        "I4 wait: order o-1 waits without an end\nAudited: all orders. Findings: 1. Warnings: 0.\n"
    )
    assert main(["audit", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["findings"] == [
        {
            "invariant": "I4 wait",
            "subject": "order o-1",
            "facts": "waits without an end",
            "is_warning": False,
        }
    ]
    assert (said["warnings"], said["compared_with_gateway"]) == ([], True)
