# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds a few series in a page of Prometheus text without parsing the page.

A model server's page has hundreds of lines and is read up to twenty times a second; five are wanted. Each is found by a
search for ``\\n<name>``, so the cost is that of scanning bytes, not of building samples. A :class:`PageReader` follows
one server's pages, and looks where the series stood last time before it scans.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

_LABEL = re.compile(rb'([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"')
_SPEC = re.compile(r"\s*([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(?:\{(.*)\})?\s*", re.DOTALL)
_SPEC_LABEL = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*("(?:[^"\\]|\\.)*"|[^",{}]*?)\s*(?:,|$)')
_ESCAPES = {b"\\\\": b"\\", b'\\"': b'"', b"\\n": b"\n"}
_ESCAPE = re.compile(rb'\\[\\"n]')

NEARBY = 512
"""Bytes around its last place in which a series is looked for first: numbers before it grow and shrink."""
SCAN_SECONDS = 1.0
"""How often a page is scanned from its beginning to its end for a metric, whatever is known of its place."""


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


@dataclass(frozen=True, slots=True)
class Sample:
    """One line: raw labels (what stands between the braces) and the value."""

    raw_labels: bytes
    value: float

    def labels(self) -> Mapping[str, str]:
        """The labels, unescaped."""
        return parse_labels(self.raw_labels)


@lru_cache(maxsize=4096)
def parse_labels(raw: bytes) -> Mapping[str, str]:
    """What stands between the braces, as a mapping. Kept, because a series has the same labels on every page."""
    return {name.decode(): _unescape(value) for name, value in _LABEL.findall(raw)}


def _unescape(value: bytes) -> str:
    if b"\\" in value:
        value = _ESCAPE.sub(lambda match: _ESCAPES[match[0]], value)
    return value.decode("utf-8", "replace")


class PageReader:
    """Reads the pages of one server, one after another.

    Once in SCAN_SECONDS a page is scanned as a whole for each metric. In between, a metric whose series stand together
    (as the format demands, and not all servers do) is looked for where it stood, and one that is not there is not
    looked for.
    """

    def __init__(self) -> None:
        self._page = b""
        self._now = 0.0
        self._places: dict[str, int] = {}
        """Where the series of a metric begin; without those that have none, or not all together."""
        self._scan_at: dict[str, float] = {}
        self._found: dict[str, list[Sample]] = {}

    def turn(self, page: bytes, now: float) -> None:
        """Go on to the next page, read at ``now`` (monotonic seconds)."""
        self._page, self._now = page, now
        self._found = {}

    def samples(self, spec: MetricSpec) -> list[Sample]:
        """All series of ``spec`` on the page, in the page's order. Lines that make no sense are passed over."""
        group = self._found.get(spec.name)
        if group is None:
            group = self._found[spec.name] = self._group(spec.name)
        if not spec.labels:
            return group
        wanted = spec.labels.items()
        return [sample for sample in group if wanted <= sample.labels().items()]

    def _group(self, name: str) -> list[Sample]:
        needle = b"\n" + name.encode()
        if self._now < self._scan_at.get(name, -math.inf):
            place = self._places.get(name)
            if place is None:
                return []
            start = self._page.find(needle, max(0, place - NEARBY), place + NEARBY)
            # Only where a group begins: else its first series may stand before the part that was searched.
            if start > 0 and not self._page.startswith(needle, self._page.rfind(b"\n", 0, start)):
                found, _ = self._lines(name, needle, start + 1, whole=False)
                if found:
                    return found
        return self._scan(name, needle)

    def _scan(self, name: str, needle: bytes) -> list[Sample]:
        page = self._page
        self._places.pop(name, None)
        start = 0 if page.startswith(needle[1:]) else page.find(needle) + 1
        at_start = start > 0 or page.startswith(needle[1:])
        found, together = self._lines(name, needle, start, whole=True) if at_start else ([], True)
        self._scan_at[name] = self._now + SCAN_SECONDS if together else -math.inf
        return found

    def _lines(self, name: str, needle: bytes, position: int, whole: bool) -> tuple[list[Sample], bool]:
        """The metric's series from a line on that begins with its name (or with a longer one that begins alike).

        To the end of the page with ``whole``, else to the end of their group; and whether they stand together.
        """
        page, offset = self._page, len(needle) - 1
        found: list[Sample] = []
        together, passed = True, False
        while True:
            end = page.find(b"\n", position)
            sample = _sample(page[position : end if end >= 0 else len(page)], offset)
            if sample is not None:
                if not found:
                    self._places[name] = position
                elif passed:
                    together = False
                found.append(sample)
            if end >= 0 and not page.startswith(needle, end):
                passed = bool(found)
                end = page.find(needle, end) if whole or not found else -1
            if end < 0:
                return found, together
            position = end + 1


def samples(page: bytes, spec: MetricSpec) -> list[Sample]:
    """All series of ``spec`` on one page."""
    reader = PageReader()
    reader.turn(page, 0.0)
    return reader.samples(spec)


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
    return Sample(raw, value) if math.isfinite(value) else None
