# SPDX-License-Identifier: GPL-3.0-or-later
"""The response phase of one stream: answers pass through untouched, but for the model's name if it was changed.

Whatever the mode, nothing is collected: a piece of the answer goes on as soon as it is here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from epp.extproc import messages as m
from epp.extproc.messages import BodyMode
from epp.requests import ModelRenamer, UsageTail

if TYPE_CHECKING:
    from envoy.service.ext_proc.v3.external_processor_pb2 import HttpBody, HttpHeaders, ProcessingResponse

    Messages = Iterable[ProcessingResponse]


class ResponsePhase:
    """What is known of one answer while it passes."""

    def __init__(self, mode: BodyMode, rename: tuple[str, str] | None, marks: bool = True) -> None:
        """``rename`` is (the engine's model name, the client's), None to leave names alone; ``marks``: a header says
        that the answer passed here."""
        self._mark = {m.RESPONSE_MARK: "true"} if marks else {}
        self.status = 0
        """HTTP status, 0 while unknown."""
        self.streaming = False
        """The answer is a stream of server-sent events."""
        self.size = 0
        """Bytes of body so far."""
        self.ended = False
        """The last byte (or trailer) has passed."""
        self.tail = UsageTail()
        self._mode = mode
        self._renamer = ModelRenamer(*rename) if rename else None
        self._has_length = False

    def headers(self, message: HttpHeaders, more: Mapping[str, str]) -> Messages:
        """Response headers; ``more`` are set on them."""
        headers = m.header_map(message)
        status = headers.get(":status", "")
        self.status = int(status) if status.isdigit() else 0
        self.streaming = headers.get("content-type", "").startswith("text/event-stream")
        self.ended = message.end_of_stream
        self._has_length = "content-length" in headers
        return (m.response_headers({**self._mark, **more}),)

    def body(self, message: HttpBody) -> Messages:
        """A piece of the body, or all of it."""
        chunk, end = message.body, message.end_of_stream
        self.size += len(chunk)
        self.tail.feed(chunk)
        self.ended = end
        renamed = self._renamer.feed(chunk, end) if self._renamer else None
        if self._mode == BodyMode.FULL_DUPLEX_STREAMED:
            return m.streamed(chunk if renamed is None else renamed, end, of_request=False)
        return (m.response_body(renamed, fixed_length=self._mode == BodyMode.BUFFERED and self._has_length),)

    def trailers(self) -> Messages:
        """Response trailers: what the rename still holds (of an answer that was cut off) goes before them."""
        self.ended = True
        rest = self._renamer.feed(b"", True) if self._renamer else b""
        if rest and self._mode == BodyMode.FULL_DUPLEX_STREAMED:
            return (*m.streamed(rest, False, of_request=False), m.response_trailers())
        return (m.response_trailers(),)
