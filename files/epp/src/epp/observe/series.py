# SPDX-License-Identifier: GPL-3.0-or-later
"""Counters, gauges and histograms that cost a dictionary access and an addition, under several names each.

The reference exposes most figures twice, by a legacy and a canonical name with other labels. Here a figure is counted
once, by its full labels, and each name is a view of it that is made when somebody reads the metrics. Values belong to
one event loop, so there are no locks.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric


@dataclass(frozen=True)
class View:
    """One name of a figure. ``labels`` are pairs of the name to show and the name it is counted by."""

    name: str
    text: str
    labels: tuple[tuple[str, str], ...]


def view(name: str, text: str, *labels: str) -> View:
    """A view whose labels are ``counted`` or ``shown=counted``."""
    pairs = []
    for label in labels:
        shown, equals, counted = label.partition("=")
        pairs.append((shown, counted if equals else shown))
    return View(name, text, tuple(pairs))


class Value:
    """One number, added to or set."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, amount: float = 1.0) -> None:
        """Add ``amount``."""
        self.value += amount

    def set(self, value: float) -> None:
        """Become ``value``."""
        self.value = value


class Buckets:
    """One histogram."""

    __slots__ = ("bounds", "counts", "first", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.first = bounds[0] if bounds else math.inf
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count ``value`` in its bucket; a bucket's bound belongs to it."""
        # Most of what is timed takes less than there are buckets for.
        self.counts[0 if value <= self.first else bisect_left(self.bounds, value)] += 1
        self.total += value


State = tuple[list[tuple[tuple[str, ...], float]], list[tuple[tuple[str, ...], list[int], float]]]
"""Numbers by their labels; counts per bucket and totals by theirs."""


class Figure:
    """A counter (``total``), a gauge, or a histogram (with ``bounds``) by label values, and its views."""

    def __init__(
        self, labels: Sequence[str], views: Sequence[View], bounds: Sequence[float] = (), counter: bool = False
    ) -> None:
        self._labels, self._views, self._bounds, self._counter = tuple(labels), tuple(views), tuple(bounds), counter
        self._values: dict[tuple[str, ...], Value] = {}
        self._histograms: dict[tuple[str, ...], Buckets] = {}

    def value(self, *labels: str) -> Value:
        """The number for these label values."""
        found = self._values.get(labels)
        if found is None:
            found = self._values[labels] = Value()
        return found

    def histogram(self, *labels: str) -> Buckets:
        """The histogram for these label values."""
        found = self._histograms.get(labels)
        if found is None:
            found = self._histograms[labels] = Buckets(self._bounds)
        return found

    def items(self) -> Iterator[tuple[tuple[str, ...], Value | Buckets]]:
        """The numbers and histograms there are, by their label values."""
        yield from self._values.items()
        yield from self._histograms.items()

    def clear(self) -> None:
        """Forget everything, for gauges that are computed anew."""
        self._values.clear()

    def forget(self, **labels: str) -> None:
        """Leave out the numbers that have these label values: what they count is gone, or computed anew."""
        wanted = [(self._labels.index(name), value) for name, value in labels.items()]
        for key in [key for key in self._values if all(key[index] == value for index, value in wanted)]:
            del self._values[key]

    def state(self) -> State:
        """All that has been counted."""
        numbers = [(labels, value.value) for labels, value in list(self._values.items())]
        buckets = [(labels, list(each.counts), each.total) for labels, each in list(self._histograms.items())]
        return numbers, buckets

    def add(self, state: State, largest: bool = False) -> None:
        """Count what another process has counted, too; ``largest`` takes the larger number in place of the sum."""
        numbers, histograms = state
        for labels, number in numbers:
            value = self.value(*labels)
            value.value = max(value.value, number) if largest else value.value + number
        for labels, counts, total in histograms:
            into = self.histogram(*labels)
            into.counts = [a + b for a, b in zip(into.counts, counts, strict=True)]
            into.total += total

    @property
    def gauge(self) -> bool:
        """What is counted goes up and down."""
        return not self._counter and not self._bounds

    def collect(self) -> Iterator[Metric]:
        """All views, for prometheus-client."""
        for each in self._views:
            yield self._histogram_family(each) if self._bounds else self._number_family(each)

    def _positions(self, each: View) -> list[int]:
        return [self._labels.index(counted) for _, counted in each.labels]

    def _number_family(self, each: View) -> Metric:
        names = [shown for shown, _ in each.labels]
        positions = self._positions(each)
        sums: dict[tuple[str, ...], float] = {}
        for labels, value in list(self._values.items()):
            key = tuple(labels[position] for position in positions)
            sums[key] = sums.get(key, 0.0) + value.value
        kind = CounterMetricFamily if self._counter else GaugeMetricFamily
        family = kind(each.name, each.text, labels=names)
        for key, total in sums.items():
            family.add_metric(key, total)
        return family

    def _histogram_family(self, each: View) -> Metric:
        positions = self._positions(each)
        merged: dict[tuple[str, ...], Buckets] = {}
        for labels, histogram in list(self._histograms.items()):
            key = tuple(labels[position] for position in positions)
            into = merged.setdefault(key, Buckets(self._bounds))
            into.counts = [a + b for a, b in zip(into.counts, histogram.counts, strict=True)]
            into.total += histogram.total
        family = HistogramMetricFamily(each.name, each.text, labels=[shown for shown, _ in each.labels])
        for key, histogram in merged.items():
            running, buckets = 0, []
            for bound, count in zip((*self._bounds, float("inf")), histogram.counts, strict=True):
                running += count
                buckets.append(("+Inf" if bound == float("inf") else repr(float(bound)), running))
            family.add_metric(key, buckets, histogram.total)
        return family
