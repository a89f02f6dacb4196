# SPDX-License-Identifier: GPL-3.0-or-later
"""Logs on standard error, for machines (JSON, one object per line) or people (console)."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Any

import msgspec

ENCODERS = ("json", "console")
_STANDARD = frozenset(vars(logging.makeLogRecord({})))


def setup_logging(encoder: str = "json", verbosity: int = 2) -> None:
    """Send all logs to standard error. ``encoder`` is ``json`` or ``console``; ``verbosity`` is Go's ``-v``: below 3
    is info, 3 and 4 debug of the EPP, 5 and more debug of everything. Raises ValueError for another encoder."""
    if encoder not in ENCODERS:
        raise ValueError(f"{encoder!r} is not a log encoder; use {' or '.join(ENCODERS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if encoder == "json" else ConsoleFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbosity >= 5 else logging.INFO)
    logging.getLogger("epp").setLevel(logging.DEBUG if verbosity >= 3 else logging.INFO)


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    """What a caller passed in ``extra``."""
    extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    extra.pop("message", None)
    extra.pop("asctime", None)
    return extra


class JsonFormatter(logging.Formatter):
    """``{"level", "ts", "logger", "msg", ...}``, the field names of the reference's logger."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Any] = {
            "level": record.levelname.lower(),
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "logger": record.name,
            "msg": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            line["stacktrace"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


class ConsoleFormatter(logging.Formatter):
    """Time, level, logger and text, separated by tabs."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback below it if there is one."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        extra = "".join(f"\t{key}={value}" for key, value in _extra(record).items())
        text = f"{when}\t{record.levelname}\t{record.name}\t{record.getMessage()}{extra}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text
