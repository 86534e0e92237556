"""Log lines as JSON, chosen by Prefect's settings, with the order that they are about."""

import ast
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest
from pydantic import BaseModel, ValidationError

from flows.runs.pause import answers_left
from store.messages import BatchAnswer, CheckoutOrder, CourierAnswer, OrderItem, OrderMessage
from store.settings import Settings
from store.wrong_input import described, for_a_log

PROJECT_DIR = Path(__file__).resolve().parents[2]
CHOSEN = {
    "PREFECT_LOGGING_FORMATTERS_JSON_CLASS": "store.logs.JsonFormatter",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER": "json",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "store",
}
A_LINE = """
import logging
from prefect.logging.configuration import setup_logging
setup_logging()
logger = logging.getLogger("store.dispatch")
try:
    1 / 0
except ZeroDivisionError:
    logger.exception("order %s [is] late" + " " * 300, "o-1", extra={"order_id": "o-1"})
"""


def test_prefects_settings_make_each_line_one_json_object(tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, "-c", A_LINE],
        env={**os.environ, **CHOSEN, "PREFECT_HOME": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
    ).stderr
    line = json.loads(said)
    assert said.count("\n") == 1
    assert line["message"].rstrip() == "order o-1 [is] late"
    assert (line["level"], line["logger"], line["order_id"]) == ("ERROR", "store.dispatch", "o-1")
    assert line["time"].endswith("+00:00")
    assert "ZeroDivisionError: division by zero" in line["exception"]


def test_each_log_line_about_an_order_has_its_id_as_a_field() -> None:
    modules = [
        p for room in ("flows", "tasks", "orders") for p in (PROJECT_DIR / room).rglob("*.py")
    ]
    about_an_order = 0
    for call in (node for module in modules for node in ast.walk(ast.parse(module.read_text()))):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
            continue
        of_logger = isinstance(call.func.value, ast.Name) and call.func.value.id == "logger"
        message = call.args[0] if call.args else None
        if of_logger and isinstance(message, ast.Constant) and "order %s" in str(message.value):
            about_an_order += 1
            extra = next((k.value for k in call.keywords if k.arg == "extra"), None)
            assert isinstance(extra, ast.Dict), ast.unparse(call)
            assert [ast.literal_eval(key) for key in extra.keys if key] == ["order_id"]
    assert about_an_order > 5


PERSONAL = ("Jane Doe", "jane@example.com", "4242424242424242")
PLANTED = (
    dict.fromkeys(("outcome", "userId", "order_id", "bookId", "database_url"), PERSONAL[0]),
    {"quantity": PERSONAL[1], "attempt": PERSONAL[1], "items": [{"quantity": PERSONAL[1]}]},
    {"paymentMethod": PERSONAL[2], "reason": [PERSONAL[2]], "copies": PERSONAL[2]},
    {PERSONAL[1]: PERSONAL[0]},
    {"outcome": "courier assigned", "courier": f"{PERSONAL[1]}\0", "answered_by": "x" * 70},
    [PERSONAL[0]],
    PERSONAL[0],
)
FROM_OUTSIDE: list[type[BaseModel]] = [
    OrderMessage,
    CourierAnswer,
    BatchAnswer,
    CheckoutOrder,
    OrderItem,
    Settings,
]


@pytest.mark.parametrize("model", FROM_OUTSIDE)
@pytest.mark.parametrize("planted", PLANTED)
def test_what_is_said_of_wrong_input_quotes_no_value(
    model: type[BaseModel], planted: object
) -> None:
    with pytest.raises(ValidationError) as refused:
        model.model_validate_json(json.dumps(planted), strict=True)
    told = [str(refused.value), for_a_log(refused.value), *described(refused.value)]
    # Pydantic's own text names a field as it was written; it is for the one who wrote it.
    of_values = told[1:] if isinstance(planted, dict) and PERSONAL[1] in planted else told
    assert [each for each in PERSONAL if any(each in said for said in of_values)] == []


def test_an_answer_that_cannot_be_read_is_logged_without_what_was_typed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = SimpleNamespace(
        key="paused-courier-1-response",
        value=json.dumps({"outcome": PERSONAL[0], "courier": [PERSONAL[1]], "reason": 5}),
        created=None,
    )
    pages = [[given], [], []]
    client = SimpleNamespace(filter_flow_run_input=lambda *_, **__: pages.pop(0))
    with caplog.at_level(logging.ERROR):
        assert answers_left(cast(Any, client), str(uuid4()), "courier", CourierAnswer) == {}
    assert "outcome: Input should be 'courier assigned'" in caplog.text
    assert [each for each in PERSONAL if each in caplog.text] == []


def test_a_log_counts_the_unknown_fields_whose_names_may_be_data() -> None:
    with pytest.raises(ValidationError) as refused:
        OrderMessage.model_validate({"order_id": "a", "attempt": 0, "copies": 1, "jane_doe": 1})
    assert for_a_log(refused.value) == (
        "attempt: Input should be greater than or equal to 1; unknown fields: 1"
    )
