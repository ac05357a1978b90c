"""The server's logs on standard error: lines for people, or one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import TextIO

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and what the record adds."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        entry = {
            "time": _utc(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class TextFormatter(logging.Formatter):
    """One line for a person; what the record adds follows as key=value."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line, and the traceback below it where there is one."""
        facts = getattr(record, "facts", {})
        added = "".join(f" {key}={json.dumps(value, default=str)}" for key, value in facts.items())
        # Text that came over the network must not begin a line of its own.
        message = " ".join(record.getMessage().split())
        line = f"{_utc(record)} {record.levelname.lower()} {record.name}: {message}{added}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def configure_logs(form: str = "text", level: str = "info", stream: TextIO | None = None) -> None:
    """Send all logs of this process to `stream`, by default standard error.

    Args:
        form: "text" or "json".
        level: the least that is told: "debug" tells of every request, "info" of refused ones.
        stream: where they go.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # other libraries tell too much below
    logging.getLogger("tiekd_ros").setLevel(level.upper())


def _utc(record: logging.LogRecord) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{whole}.{int(record.msecs):03d}Z"
