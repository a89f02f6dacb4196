# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes the model's name in a body by replacing the bytes of that one string.

Requests: the member ``model`` of the body's object, wherever it stands, also where that object travels inside of a gRPC
message; the field ``model`` of a form. Answers: every ``"model": "<target>"``, also in
a nested object (the Responses API nests one in its events). A quote inside a JSON string is always escaped, so the
pattern cannot match generated text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import msgspec

from epp.requests import form
from epp.requests.parse import GRPC
from epp.requests.protobuf import WireError
from epp.requests.scan import members, text
from epp.requests.wrapped import rewrap, unwrap


class Replaced(NamedTuple):
    """A body whose model was replaced, and the model that it named before."""

    body: bytes
    model: str


def replace_model(body: bytes, model: str, content_type: str = "") -> Replaced | None:
    """``body`` with ``model`` as the value of its ``model``; None when it has none (yet).

    A repeated one is replaced each time: decoders differ in which one they believe.
    """
    edge = form.boundary(content_type)
    if edge is not None:
        places = [field for field in form.fields(body, edge) if field.name == "model" and field.complete]
        return _replaced(body, [(field.start, field.end) for field in places], model.encode(), _utf8)
    if content_type.startswith(GRPC):
        return _replace_wrapped(body, model)
    return _replace_member(body, model)


def _utf8(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _replace_wrapped(body: bytes, model: str) -> Replaced | None:
    try:
        found = unwrap(body)
    except WireError:
        return None
    inner = _replace_member(body[found.data.start : found.data.end], model)
    return Replaced(rewrap(body, found, inner.body), inner.model) if inner else None


def _replace_member(body: bytes, model: str) -> Replaced | None:
    once = body.count(b'"model"') == 1
    places: list[tuple[int, int]] = []
    for member in members(body):
        if member.key != "model" or not member.complete or body[member.start : member.start + 1] != b'"':
            continue
        places.append((member.start, member.end))
        if once:
            break
    return _replaced(body, places, msgspec.json.encode(model), text)


def _replaced(
    body: bytes, places: list[tuple[int, int]], value: bytes, read: Callable[[bytes], str]
) -> Replaced | None:
    """``body`` with ``value`` at these places; ``read`` says what stood at the last of them."""
    if not places:
        return None
    parts: list[bytes] = []
    at = 0
    for start, end in places:
        parts += (body[at:start], value)
        at = end
    start, end = places[-1]
    return Replaced(b"".join((*parts, body[at:])), read(body[start:end]))


class ModelRenamer:
    """Renames the model in one answer that comes in pieces, cut anywhere.

    Bytes are held back only while they could be the beginning of a match. Nothing is held at the end of a well-formed
    answer, and of a stream of events each one goes on as soon as it is there.
    """

    def __init__(self, target: str, model: str) -> None:
        """``target`` is the engine's name for the model, ``model`` the one that the client shall see."""
        self._spellings, self._pattern, self._value = _renaming(target, model)
        self._held = b""

    def feed(self, chunk: bytes, end: bool) -> bytes:
        """The bytes that may go on now; with ``end``, all that are left."""
        data = self._held + chunk if self._held else chunk
        data = self._pattern.sub(lambda match: match.group(1) + self._value, data)
        cut = len(data) if end else self._safe(data)
        self._held = data[cut:]
        return data[:cut] if self._held else data

    def _safe(self, data: bytes) -> int:
        """Bytes from the start of ``data`` that no continuation can turn into a match."""
        longest = len(_KEY) + _MAX_SPACE + max(map(len, self._spellings))
        at = max(0, len(data) - longest)
        while (at := data.find(b'"', at)) >= 0:
            if self._may_begin_here(data[at:]):
                return at
            at += 1
        return len(data)

    def _may_begin_here(self, tail: bytes) -> bool:
        if not tail.startswith(_KEY):
            return _KEY.startswith(tail)
        rest = tail[len(_KEY) :].lstrip()
        if not rest.startswith(b":"):
            return not rest
        value = rest[1:].lstrip()
        return any(spelling.startswith(value) for spelling in self._spellings)


_KEY = b'"model"'
_MAX_SPACE = 16
"""Space around the colon, colon included, that is followed across the end of a piece."""


@lru_cache(maxsize=256)
def _renaming(target: str, model: str) -> tuple[tuple[bytes, ...], re.Pattern[bytes], bytes]:
    """How the engine may spell the name (not all escape what is not ASCII), where to find it, and the new one."""
    spellings = tuple(sorted({json.dumps(target).encode(), json.dumps(target, ensure_ascii=False).encode()}))
    pattern = rb'("model"\s*:\s*)(?:' + b"|".join(map(re.escape, spellings)) + rb")"
    return spellings, re.compile(pattern), msgspec.json.encode(model)
