# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds the token counts in an answer, plain or streamed, without reading the rest.

Most engines write ``usage`` after what they generated: near the end of the object, or in one of the last events. So the
tail of the answer is kept. Some say a part of it at the beginning (Anthropic's ``message_start`` has the input), or
write long lists behind it (token ids), so that a piece with a usage is kept when it leaves the tail, too. The pattern
``"usage": {`` cannot occur inside generated text, where quotes are escaped. SGLang's own interface calls it
``meta_info``.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable

import msgspec

from epp.model import Usage
from epp.requests.scan import value_end

TAIL_BYTES = 16_384
"""What is kept of an answer at least: the last events, or the end of the object with room for log probabilities."""

_USAGE = re.compile(rb'"(?:usage|meta_info)"\s*:\s*(?=\{)')
_MARKS = (b'"usage"', b'"meta_info"')
_AFTER = 1024
"""Bytes that are kept of the piece behind a usage, which may have been cut in the middle."""


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Counts(msgspec.Struct):
    """The names of the completion API, of the Responses API (input, output), of Anthropic's (cache_*), of SGLang's."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


_decoder = msgspec.json.Decoder(_Counts)


class UsageTail:
    """Collects the end of one answer, and reads the usage from it."""

    __slots__ = ("_chunks", "_first", "_last", "_size")

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._first = self._last = b""
        """The first and the last piece with a usage that have left the tail."""

    def feed(self, chunk: bytes) -> None:
        """Take the next piece of the answer. Costs no copy."""
        self._chunks.append(chunk)
        self._size += len(chunk)
        while self._size - len(self._chunks[0]) >= TAIL_BYTES:
            gone = self._chunks.popleft()
            self._size -= len(gone)
            if _MARKS[0] in gone or _MARKS[1] in gone:
                self._keep(gone)

    def _keep(self, gone: bytes) -> None:
        """Keep what a piece that leaves says of the usage."""
        data = gone + self._chunks[0][:_AFTER]
        found = list(_USAGE.finditer(data))
        if not found:
            return
        if not self._first:
            self._first = data[found[0].start() :][: 2 * _AFTER]
        self._last = data[found[-1].start() :][: 2 * _AFTER]

    def usage(self) -> Usage | None:
        """The counts of the last usage object that can be read, completed by the first; None without any."""
        tail = b"".join(self._chunks)
        texts = [self._first, self._last, tail] if self._first else [tail]
        found = []
        for text in texts:
            # A search for fixed bytes is much faster than one by a pattern.
            starts = [start for start in map(text.find, _MARKS) if start >= 0]
            if starts:
                found += [(text, match.end()) for match in _USAGE.finditer(text, min(starts))]
        last = _readable(reversed(found))
        if last is None:
            return None
        first = last if len(found) == 1 else _readable(found)
        assert first is not None
        return _usage(first, last)


def _readable(found: Iterable[tuple[bytes, int]]) -> _Counts | None:
    """The first of these usage objects that is whole and has counts."""
    for text, start in found:
        # Most have no object in them, so that the first bracket is theirs; what is no JSON so far goes on.
        try:
            return _decoder.decode(text[start : text.find(b"}", start) + 1])
        except (msgspec.DecodeError, RecursionError):
            end, complete = value_end(text, start)
        if not complete:
            continue
        try:
            return _decoder.decode(text[start:end])
        except (msgspec.DecodeError, RecursionError):
            continue
    return None


def _usage(first: _Counts, last: _Counts) -> Usage:
    """What the last says, and what it leaves open as the first says it."""
    prompt = _known(last.prompt_tokens, last.input_tokens, first.prompt_tokens, first.input_tokens)
    details = last.prompt_tokens_details or last.input_tokens_details or _Details()
    cached = _known(
        details.cached_tokens,
        last.cached_tokens,
        last.cache_read_input_tokens,
        first.cache_read_input_tokens,
    )
    written = _known(last.cache_creation_input_tokens, first.cache_creation_input_tokens)
    if last.cache_read_input_tokens is not None or first.cache_read_input_tokens is not None:
        prompt += cached + written  # Anthropic counts them apart
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=_known(last.completion_tokens, last.output_tokens, first.completion_tokens),
        cached_tokens=cached,
    )


def _known(*counts: int | None) -> int:
    """The first count above 0; 0 for none."""
    for count in counts:
        if count is not None and count > 0:
            return count
    return 0
