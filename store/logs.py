"""Log lines as JSON, one object a line.

Logging itself is Prefect's: its settings choose this formatter (see docs/operating.md). Which order
a line is about is in its field ``order_id``, or ``order_ids`` for a group; runs are named by
Prefect's own fields.
"""

import json
import logging
from datetime import UTC, datetime

_ALWAYS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class JsonFormatter(logging.Formatter):
    """A formatter of log records and their ``extra`` as JSON lines."""

    def __init__(self, *_: object, **__: object) -> None:
        # Prefect's configuration gives a format, which JSON has no use for.
        super().__init__()

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: given for name, given in vars(record).items() if name not in _ALWAYS}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
