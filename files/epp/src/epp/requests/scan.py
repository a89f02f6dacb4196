# SPDX-License-Identifier: GPL-3.0-or-later
"""Walks over the members of a JSON object without decoding them, and does not mind if the end is missing.

Used where a decoder cannot help: to know *where* a value stands (rewriting by splicing), and to read the beginning of a
body that Envoy cut off (BUFFERED_PARTIAL). Everything is in byte offsets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

_SPACE: Final = re.compile(rb"[\s,]*+")
_COLON: Final = re.compile(rb"\s*+:\s*+")
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_LITERAL: Final = re.compile(rb"[^\s,}\]]++")
# Brackets count only outside of strings; the lone quote comes last and so is the start of a string without an end.
_BRACKET: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}\[\]]|"', re.DOTALL)


class Member(NamedTuple):
    """One ``"key": value`` of an object: the value is ``body[start:end]``, cut short when ``complete`` is False."""

    key: str
    start: int
    end: int
    complete: bool


def members(body: bytes) -> Iterator[Member]:
    """The members of the object that ``body`` begins with, as far as they go. Anything else has no members."""
    at = _skip(body, 0)
    if body[at : at + 1] != b"{":
        return
    at += 1
    while True:
        at = _skip(body, at)
        key = _STRING.match(body, at)
        if key is None:
            return
        colon = _COLON.match(body, key.end())
        if colon is None or colon.end() == len(body):
            return
        end, complete = value_end(body, colon.end())
        yield Member(text(key.group()), colon.end(), end, complete)
        if not complete:
            return
        at = end


def value_end(body: bytes, start: int) -> tuple[int, bool]:
    """Offset behind the value that begins at ``start``, and whether the value is whole."""
    first = body[start : start + 1]
    if first == b'"':
        string = _STRING.match(body, start)
        return (string.end(), True) if string else (len(body), False)
    if first in (b"{", b"["):
        return _container_end(body, start)
    literal = _LITERAL.match(body, start)
    end = literal.end() if literal else start
    # A literal at the very end may go on in bytes that are not here.
    return end, end < len(body) and end > start


def _container_end(body: bytes, start: int) -> tuple[int, bool]:
    depth = 0
    for token in _BRACKET.finditer(body, start):
        sign = token.group()
        if sign in (b"{", b"["):
            depth += 1
        elif sign in (b"}", b"]"):
            depth -= 1
            if depth == 0:
                return token.end(), True
        elif sign == b'"':
            break
    return len(body), False


def _skip(body: bytes, at: int) -> int:
    match = _SPACE.match(body, at)
    return match.end() if match else at


def text(string: bytes) -> str:
    """What a JSON string says; empty if it cannot be decoded."""
    try:
        return msgspec.json.decode(string, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
