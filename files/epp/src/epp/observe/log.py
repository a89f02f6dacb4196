# SPDX-License-Identifier: GPL-3.0-or-later
"""Logs on standard error, for machines (JSON, one object per line) or people (console)."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

ENCODERS = ("json", "console")
_STANDARD = frozenset(vars(logging.makeLogRecord({})))
_LEVELS = {"debug": 5, "info": 0}
"""Verbosity (Go's ``-v``) that a level's name stands for."""
_QUIET = {"error": logging.ERROR, "panic": logging.CRITICAL}


@dataclass(frozen=True)
class LogOptions:
    """How to log; the strings are the values of the flags ``--zap-*``, empty for the default."""

    encoder: str = "json"
    verbosity: int = 2
    """Go's ``-v``: below 3 is info, 3 and 4 debug of the EPP, 5 and more debug of everything."""
    level: str = ""
    """debug, info, error, panic, or a verbosity; overrules ``verbosity``."""
    stacktrace_level: str = ""
    time_encoding: str = ""


def setup_logging(options: LogOptions) -> None:
    """Send all logs to standard error. Raises ValueError for an encoder that does not exist."""
    if options.encoder not in ENCODERS:
        raise ValueError(f"{options.encoder!r} is not a log encoder; use {' or '.join(ENCODERS)}")
    handler = logging.StreamHandler(sys.stderr)
    formatter = JsonFormatter if options.encoder == "json" else ConsoleFormatter
    traces = {"error": logging.ERROR, "panic": logging.CRITICAL}.get(options.stacktrace_level, logging.DEBUG)
    handler.setFormatter(formatter(TIMES[options.time_encoding or "rfc3339"], traces))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    verbosity = options.verbosity
    if options.level:
        verbosity = int(options.level) if options.level.isdecimal() else _LEVELS.get(options.level, 0)
    quiet = _QUIET.get(options.level, logging.INFO)
    root.setLevel(logging.DEBUG if verbosity >= 5 else quiet)
    logging.getLogger("epp").setLevel(logging.DEBUG if verbosity >= 3 else quiet)


def _moment(created: float) -> datetime:
    return datetime.fromtimestamp(created, UTC)


TIMES: dict[str, Callable[[float], str | float | int]] = {
    "epoch": lambda created: created,
    "millis": lambda created: created * 1e3,
    "nano": lambda created: int(created * 1e9),
    "iso8601": lambda created: _moment(created).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z",
    "rfc3339": lambda created: _moment(created).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    "rfc3339nano": lambda created: _moment(created).isoformat(timespec="microseconds").replace("+00:00", "Z"),
}
"""Encodings of a record's time by their names; Python's clock of records has microseconds."""


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    """What a caller passed in ``extra``."""
    extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
    extra.pop("message", None)
    extra.pop("asctime", None)
    return extra


class _Formatter(logging.Formatter):
    """What both encodings share: the time, and from which level on stack traces are shown."""

    def __init__(
        self, time: Callable[[float], str | float | int] = TIMES["rfc3339"], traces: int = logging.DEBUG
    ) -> None:
        super().__init__()
        self._time, self._traces = time, traces

    def _trace(self, record: logging.LogRecord) -> str:
        shown = record.exc_info is not None and record.exc_info[0] is not None and record.levelno >= self._traces
        return self.formatException(record.exc_info) if shown and record.exc_info else ""


class JsonFormatter(_Formatter):
    """``{"level", "ts", "logger", "msg", ...}``, the field names of the reference's logger."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line: dict[str, Any] = {
            "level": record.levelname.lower(),
            "ts": self._time(record.created),
            "logger": record.name,
            "msg": record.getMessage(),
            **_extra(record),
        }
        if trace := self._trace(record):
            line["stacktrace"] = trace
        return msgspec.json.encode(line, enc_hook=str).decode()


class ConsoleFormatter(_Formatter):
    """Time, level, logger and text, separated by tabs."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback below it if there is one."""
        extra = "".join(f"\t{key}={value}" for key, value in _extra(record).items())
        text = f"{self._time(record.created)}\t{record.levelname}\t{record.name}\t{record.getMessage()}{extra}"
        trace = self._trace(record)
        return f"{text}\n{trace}" if trace else text
