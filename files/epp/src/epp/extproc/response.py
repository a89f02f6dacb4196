# SPDX-License-Identifier: GPL-3.0-or-later
"""The response phase of one stream: answers pass through untouched, but for the model's name if it was changed.

Whatever the mode, nothing is collected: a piece of the answer goes on as soon as it is here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from epp.extproc import messages as m
from epp.extproc import replies as r
from epp.extproc.messages import BodyMode
from epp.requests import AnswerReader, ModelRenamer, UsageTail

Messages = Iterable[bytes]
_MARK: Final = {m.RESPONSE_MARK: "true"}
_MARKED: Final = (r.response_headers(_MARK),)


class ResponsePhase:
    """What is known of one answer while it passes."""

    def __init__(
        self, mode: BodyMode, rename: tuple[str, str] | None, marks: bool = True, tail: AnswerReader | None = None
    ) -> None:
        """``rename`` is (the engine's model name, the client's), None to leave names alone; ``marks``: a header says
        that the answer passed here; ``tail`` reads its token counts, None: as the OpenAI API has them."""
        self._marks = marks
        self.status = 0
        """HTTP status, 0 while unknown."""
        self.streaming = False
        """The answer is a stream of server-sent events."""
        self.size = 0
        """Bytes of body so far."""
        self.ended = False
        """The last byte (or trailer) has passed."""
        self.tail: AnswerReader = tail or UsageTail()
        self._mode = mode
        self._renamer = ModelRenamer(*rename) if rename else None
        self._has_length = False

    def headers(self, headers: Mapping[str, str], end: bool, more: Mapping[str, str]) -> Messages:
        """Response headers, which are all of the answer at its ``end``; ``more`` are set on them."""
        status = headers.get(":status", "")
        self.status = int(status) if status.isdecimal() else 0
        self.streaming = headers.get("content-type", "").startswith("text/event-stream")
        self.ended = end
        self._has_length = "content-length" in headers
        if self._marks:
            return (r.response_headers({**_MARK, **more}),) if more else _MARKED
        return (r.response_headers(more),)

    def body(self, chunk: bytes, end: bool) -> Messages:
        """A piece of the body, or all of it."""
        self.size += len(chunk)
        self.tail.feed(chunk)
        self.ended = end
        renamed = self._renamer.feed(chunk, end) if self._renamer else None
        if self._mode is BodyMode.FULL_DUPLEX_STREAMED:
            return r.streamed(chunk if renamed is None else renamed, end, False)
        return (r.response_body(renamed, fixed_length=self._mode == BodyMode.BUFFERED and self._has_length),)

    def trailers(self) -> Messages:
        """Response trailers: what the rename still holds (of an answer that was cut off) goes before them."""
        self.ended = True
        rest = self._renamer.feed(b"", True) if self._renamer else b""
        if rest and self._mode == BodyMode.FULL_DUPLEX_STREAMED:
            return (*r.streamed(rest, False, of_request=False), r.RESPONSE_TRAILERS)
        return (r.RESPONSE_TRAILERS,)
