# SPDX-License-Identifier: GPL-3.0-or-later
"""What reads interfaces whose bodies are no JSON objects: vLLM's gRPC, and parsers that somebody else wrote."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from epp.model import AnswerReader, BodyError, ParsedBody, RawRequest, Usage
from epp.requests.usage import UsageTail

log = logging.getLogger(__name__)

ERROR_INTERVAL = 10.0
"""Seconds between two log lines about the same failing parser."""


class BodyReader(Protocol):
    """Reads requests and answers of some interfaces; see ``epp.scheduling.api.BodyParser``."""

    @property
    def PATHS(self) -> Sequence[str]:
        """How the paths end that it takes."""

    @property
    def NAMES_MODEL(self) -> bool:
        """Bodies have the model where it can be replaced: a JSON member or a form's field ``model``."""

    def parse(self, request: RawRequest) -> ParsedBody:
        """What the request says. Raises BodyError."""

    def answer(self) -> AnswerReader | None:
        """Follows one answer; None to look for a usage as the OpenAI API has it."""


class Guarded:
    """A reader that somebody else wrote: what goes wrong in it costs the information, and not the request."""

    def __init__(self, reader: BodyReader, name: str) -> None:
        self.PATHS, self.NAMES_MODEL = tuple(reader.PATHS), bool(reader.NAMES_MODEL)
        self._reader, self._name = reader, name
        self._reported = -ERROR_INTERVAL

    def parse(self, request: RawRequest) -> ParsedBody:
        """What the reader says; nothing, if it fails. Raises its BodyError."""
        try:
            parsed = self._reader.parse(request)
            if not isinstance(parsed, ParsedBody):
                raise TypeError(f"parse returned {type(parsed).__name__}, not a ParsedBody")
        except BodyError:
            raise
        except Exception:
            self._report("the request goes on unread")
            return ParsedBody()
        return parsed

    def answer(self) -> AnswerReader:
        """What the reader wants to follow the answer with, and the usual way to look for a usage if it fails."""
        try:
            found = self._reader.answer()
        except Exception:
            self._report("the answer is read as the OpenAI API's")
            found = None
        return UsageTail() if found is None else _GuardedAnswer(found, self._report)

    def _report(self, consequence: str) -> None:
        now = time.monotonic()
        if now - self._reported >= ERROR_INTERVAL:
            self._reported = now
            log.exception("plugin %s failed: %s", self._name, consequence)


class _GuardedAnswer:
    def __init__(self, reader: AnswerReader, report: Callable[[str], None]) -> None:
        self._reader: AnswerReader | None = reader
        self._report = report

    def feed(self, chunk: bytes) -> None:
        if self._reader is None:
            return
        try:
            self._reader.feed(chunk)
        except Exception:
            self._reader = None
            self._report("nothing is counted of the answer")

    def usage(self) -> Usage | None:
        try:
            return None if self._reader is None else self._reader.usage()
        except Exception:
            self._report("nothing is counted of the answer")
            return None
