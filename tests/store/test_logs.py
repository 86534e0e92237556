"""Log lines as JSON, chosen by Prefect's settings, with the order that they are about."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

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
    modules = [*PROJECT_DIR.glob("flows/*.py"), *PROJECT_DIR.glob("tasks/*.py")]
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
