# SPDX-License-Identifier: GPL-3.0-or-later
"""Fields of a multipart form (RFC 7578), as audio uploads are: where they stand, without copying the files.

Bodies may be cut short (BUFFERED_PARTIAL, or a stream that goes on): what is whole is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_BOUNDARY = re.compile(r';\s*boundary\s*=\s*(?:"([^"]{1,200})"|([^\s;"]{1,200}))', re.IGNORECASE)
_DISPOSITION = re.compile(rb"^content-disposition\s*:\s*form-data\s*;(.*)$", re.IGNORECASE | re.MULTILINE)
_NAME = re.compile(rb';?\s*(?<!file)name\s*=\s*(?:"([^"\r\n]*)"|([^\s;"]+))', re.IGNORECASE)
MAX_HEAD = 8192
"""Bytes of the headers of one field."""
MAX_FIELDS = 256


class Field(NamedTuple):
    """One field: its content is ``body[start:end]``, cut short when ``complete`` is False."""

    name: str
    is_file: bool
    start: int
    end: int
    complete: bool


def boundary(content_type: str) -> bytes | None:
    """The boundary that a content type names; None for one that is no form."""
    kind, _, parameters = content_type.partition(";")
    if kind.strip().lower() != "multipart/form-data":
        return None
    match = _BOUNDARY.search(";" + parameters)
    return (match[1] or match[2]).encode("latin-1", "replace") if match else None


def fields(body: bytes, edge: bytes) -> Iterator[Field]:
    """The fields of a form in their order. ``edge`` is the boundary. What makes no sense ends it."""
    mark = b"--" + edge
    at = body.find(mark)
    if at != 0 and body[max(0, at - 1) : at] != b"\n":
        return
    for _ in range(MAX_FIELDS):
        at += len(mark)
        if body[at : at + 2] != b"\r\n":
            return
        head_end = body.find(b"\r\n\r\n", at, at + MAX_HEAD)
        if head_end < 0:
            return
        head, start = body[at + 2 : head_end], head_end + 4
        end = body.find(b"\r\n" + mark, start)
        name = _name(head)
        if name is not None:
            is_file = b"filename" in head.lower()
            yield Field(name, is_file, start, end if end >= 0 else len(body), end >= 0)
        if end < 0:
            return
        at = end + 2


def _name(head: bytes) -> str | None:
    disposition = _DISPOSITION.search(head)
    match = _NAME.search(disposition[1]) if disposition else None
    if match is None:
        return None
    found: bytes = match[1] if match[1] is not None else match[2]
    return found.decode("utf-8", "replace")
