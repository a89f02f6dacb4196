# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds the token counts at the end of an answer, plain or streamed, without reading the rest.

Every engine writes ``usage`` after what it generated: near the end of the object, or in one of the last events. So it
is enough to keep the tail of the answer. The pattern ``"usage": {`` cannot occur inside generated text, where quotes
are escaped.
"""

from __future__ import annotations

import re
from collections import deque

import msgspec

from epp.model import Usage
from epp.requests.scan import value_end

TAIL_BYTES = 16_384
"""What is kept of an answer at least: the last events, or the end of the object with room for log probabilities."""

_USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Counts(msgspec.Struct):
    """The names of the completion API, of the Responses API (input, output), and of Anthropic's (cache_read)."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: int | None = None


_decoder = msgspec.json.Decoder(_Counts)


class UsageTail:
    """Collects the end of one answer, and reads the usage from it."""

    __slots__ = ("_chunks", "_size")

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._size = 0

    def feed(self, chunk: bytes) -> None:
        """Take the next piece of the answer. Costs no copy."""
        self._chunks.append(chunk)
        self._size += len(chunk)
        while self._size - len(self._chunks[0]) >= TAIL_BYTES:
            self._size -= len(self._chunks.popleft())

    def usage(self) -> Usage | None:
        """The counts of the last usage object that can be read; None when the server sent none."""
        tail = b"".join(self._chunks)
        for match in reversed(list(_USAGE.finditer(tail))):
            end, complete = value_end(tail, match.end())
            counts = _counts(tail[match.end() : end]) if complete else None
            if counts is not None:
                return counts
        return None


def _counts(data: bytes) -> Usage | None:
    try:
        counts = _decoder.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return None
    details = counts.prompt_tokens_details or counts.input_tokens_details
    return Usage(
        prompt_tokens=counts.prompt_tokens or counts.input_tokens or 0,
        completion_tokens=counts.completion_tokens or counts.output_tokens or 0,
        cached_tokens=(details and details.cached_tokens) or counts.cache_read_input_tokens or 0,
    )
