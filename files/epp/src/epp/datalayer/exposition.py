# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds a few series in a page of Prometheus text without parsing the page.

A model server's page has hundreds of lines and is read twenty times a second; five are wanted. Each is found by a
search for ``\\n<name>``, so the cost is that of scanning bytes, not of building samples.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_LABEL = re.compile(rb'([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"')
_SPEC = re.compile(r"\s*([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(?:\{(.*)\})?\s*", re.DOTALL)
_SPEC_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*("(?:[^"\\]|\\.)*"|[^",{}]*?)\s*(?:,|$)')
_ESCAPES = {b"\\\\": b"\\", b'\\"': b'"', b"\\n": b"\n"}
_ESCAPE = re.compile(rb'\\[\\"n]')


@dataclass(frozen=True)
class MetricSpec:
    """Which series to read: a metric's name and the labels that a series must have."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> MetricSpec:
        """From ``name`` or ``name{label=value,other="value"}``. Raises ValueError."""
        match = _SPEC.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a metric; write name or name{{label=value}}")
        labels: dict[str, str] = {}
        rest, position = match[2] or "", 0
        while position < len(rest.rstrip()):
            pair = _SPEC_LABEL.match(rest, position)
            if pair is None:
                raise ValueError(f"{text!r} is not a metric; write its labels as label=value, separated by commas")
            labels[pair[1]] = pair[2].strip('"')
            position = pair.end()
        return cls(match[1], labels)

    @property
    def needle(self) -> bytes:
        """What a line of this metric begins with."""
        return self.name.encode()


@dataclass(frozen=True, slots=True)
class Sample:
    """One line: raw labels (what stands between the braces) and the value."""

    raw_labels: bytes
    value: float

    def labels(self) -> dict[str, str]:
        """The labels, unescaped."""
        return {name.decode(): _unescape(value) for name, value in _LABEL.findall(self.raw_labels)}


def _unescape(value: bytes) -> str:
    if b"\\" in value:
        value = _ESCAPE.sub(lambda match: _ESCAPES[match[0]], value)
    return value.decode("utf-8", "replace")


def samples(page: bytes, spec: MetricSpec) -> Iterator[Sample]:
    """All series of ``spec`` on a page, in the page's order. Lines that make no sense are passed over."""
    needle = spec.needle
    position = 0 if page.startswith(needle) else page.find(b"\n" + needle) + 1
    if position == 0 and not page.startswith(needle):
        return
    wanted = set(spec.labels.items())
    while True:
        end = page.find(b"\n", position)
        line = page[position : end if end >= 0 else len(page)]
        sample = _sample(line, len(needle))
        if sample is not None and (not wanted or wanted <= sample.labels().items()):
            yield sample
        if end < 0:
            return
        position = page.find(b"\n" + needle, end) + 1
        if position == 0:
            return


def _sample(line: bytes, offset: int) -> Sample | None:
    """The sample on a line whose name ends at ``offset``; None for longer names that begin alike, and for nonsense."""
    mark = line[offset : offset + 1]
    if mark == b"{":
        close = line.rfind(b"}")
        if close < offset:
            return None
        raw, rest = line[offset + 1 : close], line[close + 1 :]
    elif mark in (b" ", b"\t"):
        raw, rest = b"", line[offset:]
    else:
        return None
    try:
        value = float(rest.split(None, 1)[0])
    except (ValueError, IndexError):
        return None
    return None if math.isnan(value) or math.isinf(value) else Sample(raw, value)
