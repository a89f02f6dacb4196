# SPDX-License-Identifier: GPL-3.0-or-later
"""Horizontal bars on a logarithmic scale, as SVG text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#0b7285", "#adb5bd", "#868e96", "#e8590c")
WIDTH, LABEL, BAR, GAP, TOP = 760, 190, 16, 14, 56  # pixels


@dataclass(frozen=True)
class Bar:
    """``value`` with the ``least`` and ``most`` that were measured."""

    label: str
    series: int
    value: float
    least: float
    most: float


def figures(value: float) -> str:
    """Three digits at least, and no exponent for what is large."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}".replace(",", " ")


def chart(title: str, note: str, groups: Sequence[tuple[str, Sequence[Bar]]], unit: str = "s") -> str:
    """The chart: one group of bars under each heading; all values in ``unit``."""
    bars = [bar for _heading, members in groups for bar in members]
    low = 10 ** math.floor(math.log10(min(bar.least for bar in bars)))
    high = 10 ** math.ceil(math.log10(max(bar.most for bar in bars)))
    span = math.log10(high / low)

    def place(value: float) -> float:
        return LABEL + (WIDTH - LABEL - 70) * math.log10(value / low) / span

    height = TOP + sum(GAP + 18 + len(members) * (BAR + 3) for _heading, members in groups) + 30
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="12" y="22" font-size="15" font-weight="bold">{escape(title)}</text>',
        f'<text x="12" y="40" fill="#495057">{escape(note)}</text>',
    ]
    for power in range(round(span) + 1):
        x = place(low * 10**power)
        lines.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{height - 24}" stroke="#dee2e6"/>')
        label = f"{figures(low * 10**power)} {unit}"
        lines.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle" fill="#495057">{label}</text>')
    y = TOP
    for heading, members in groups:
        y += GAP
        lines.append(f'<text x="12" y="{y + 12}" font-weight="bold">{escape(heading)}</text>')
        y += 18
        for bar in members:
            lines.extend(_bar(bar, y, place, unit))
            y += BAR + 3
    return "\n".join([*lines, "</svg>", ""])


def _bar(bar: Bar, y: int, place: Callable[[float], float], unit: str) -> list[str]:
    middle, end = y + BAR / 2, place(bar.value)
    return [
        f'<text x="{LABEL - 8}" y="{y + 12}" text-anchor="end">{escape(bar.label)}</text>',
        f'<rect x="{LABEL}" y="{y}" width="{max(1.0, end - LABEL):.1f}" height="{BAR}" '
        f'fill="{COLOURS[bar.series % len(COLOURS)]}"/>',
        f'<line x1="{place(bar.least):.1f}" y1="{middle}" x2="{place(bar.most):.1f}" y2="{middle}" stroke="black"/>',
        f'<text x="{max(end, place(bar.most)) + 5:.1f}" y="{y + 12}">{figures(bar.value)} {unit}</text>',
    ]
