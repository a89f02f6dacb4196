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
from collections.abc import Iterable
from itertools import repeat
from typing import Final

import msgspec

from epp.model import Usage
from epp.requests.fields import Counts, Details
from epp.requests.scan import value_end

TAIL_BYTES: Final = 16_384
"""What is kept of an answer at least: the last events, or the end of the object with room for log probabilities."""

_USAGE: Final = re.compile(rb'"(?:usage|meta_info)"\s*:\s*(?=\{)')
_MARKS: Final = (b'"usage"', b'"meta_info"')
_AFTER: Final = 1024
"""Bytes that are kept of the piece behind a usage, which may have been cut in the middle."""


_decoder: Final = msgspec.json.Decoder(Counts)


class UsageTail:
    """Collects the end of one answer, and reads the usage from it."""

    __slots__ = ("_chunks", "_first", "_last", "_size")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._size = 0
        self._first = self._last = b""
        """The first and the last piece with a usage that have left the tail."""

    def feed(self, chunk: bytes) -> None:
        """Take the next piece of the answer. Costs no copy but when there is twice as much as is kept."""
        self._chunks.append(chunk)
        self._size += len(chunk)
        if self._size >= 2 * TAIL_BYTES:
            data = b"".join(self._chunks)
            gone = len(data) - TAIL_BYTES
            # What stands across the edge is found here, and in the tail.
            self._keep(data[: gone + _AFTER])
            self._chunks = [data[gone:]]
            self._size = TAIL_BYTES

    def _keep(self, gone: bytes) -> None:
        """Keep what leaves the tail says of the usage."""
        if _MARKS[0] not in gone and _MARKS[1] not in gone:
            return
        found = [match.start() for match in _USAGE.finditer(gone)]
        if found:
            self._first = self._first or gone[found[0] : found[0] + 2 * _AFTER]
            self._last = gone[found[-1] : found[-1] + 2 * _AFTER]

    def usage(self) -> Usage | None:
        """The counts of the last usage object that can be read, completed by the first; None without any."""
        tail = b"".join(self._chunks)
        last = _last(tail) or (_last(self._last) or _last(self._first) if self._first else None)
        if last is None:
            return None
        if last.prompt_tokens and last.completion_tokens:
            plain = last.input_tokens_details is None and last.cache_read_input_tokens is None
            if plain and last.prompt_tokens > 0 < last.completion_tokens:
                # The completion API's, as nearly all answers have it.
                details = last.prompt_tokens_details
                cached = _known(None if details is None else details.cached_tokens, last.cached_tokens)
                return Usage(last.prompt_tokens, last.completion_tokens, cached)
            return _usage(last, last)
        texts = (self._first, self._last, tail) if self._first else (tail,)
        first = _readable((text, match.end()) for text in texts for match in _USAGE.finditer(text))
        return _usage(first or last, last)


def _last(text: bytes) -> Counts | None:
    """The last usage object that can be read. A search for fixed bytes is much faster than one by a pattern."""
    at = len(text)
    while (at := max(map(text.rfind, _MARKS, repeat(0), repeat(at)))) >= 0:
        match = _USAGE.match(text, at)
        if match is not None and (found := _readable(((text, match.end()),))) is not None:
            return found
    return None


def _readable(found: Iterable[tuple[bytes, int]]) -> Counts | None:
    """The first of these usage objects that is whole and has counts."""
    for text, start in found:
        # Most have no object in them, so that the first bracket is theirs; what is no JSON so far goes on.
        end = text.find(b"}", start) + 1
        if not end:
            continue
        try:
            return _decoder.decode(text[start:end])
        except (msgspec.DecodeError, RecursionError):
            end, complete = value_end(text, start)
        if not complete:
            continue
        try:
            return _decoder.decode(text[start:end])
        except (msgspec.DecodeError, RecursionError):
            continue
    return None


def _usage(first: Counts, last: Counts) -> Usage:
    """What the last says, and what it leaves open as the first says it."""
    prompt = _known(last.prompt_tokens, last.input_tokens, first.prompt_tokens, first.input_tokens)
    details = last.prompt_tokens_details or last.input_tokens_details or Details()
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
