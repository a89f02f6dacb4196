# SPDX-License-Identifier: GPL-3.0-or-later
"""One scheduling profile: filters in order, weighted scores, one picker."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from epp.datalayer.known import Column, Known
from epp.model import Endpoint, InferenceRequest
from epp.scheduling.api import Filter, Picker, Plugin, SchedulingRecorder, Scorer
from epp.scheduling.sums import added, rated
from epp.scheduling.totals import weighted

clock: Final = time.perf_counter
log: Final = logging.getLogger(__name__)

Timer = Callable[[float], None]
"""Takes the seconds of each call of one plugin."""
NOTHING: Final = "its scores count as 0"
ERROR_INTERVAL: Final = 10.0
"""Seconds between two log lines about the same failing plugin."""


class Scores(Mapping[str, float]):
    """Endpoint (``hostport``) to weighted score. Few ever ask, so nothing is computed before."""

    __slots__ = ("_endpoints", "_totals")

    def __init__(self, endpoints: list[Endpoint], totals: list[float] | Column) -> None:
        self._endpoints = endpoints
        self._totals = totals

    def __getitem__(self, hostport: str) -> float:
        for endpoint, total in zip(self._endpoints, self._totals, strict=True):
            if endpoint.hostport == hostport:
                return float(total)
        raise KeyError(hostport)

    def __iter__(self) -> Iterator[str]:
        return (endpoint.hostport for endpoint in self._endpoints)

    def __len__(self) -> int:
        return len(self._endpoints)


@dataclass(slots=True)
class Outcome:
    """What a profile came to: the picked endpoints and the weighted score of every endpoint that was rated."""

    picked: list[Endpoint]
    scores: Scores


@dataclass
class Failures:
    """Logs a plugin's failures with their traceback, but not on every request."""

    last: dict[tuple[str, str], float] = field(default_factory=dict)

    def report(self, plugin: Plugin, consequence: str) -> None:
        """Call this while handling the exception."""
        if self._is_time(plugin, consequence):
            log.exception("plugin %s (%s) failed; %s", plugin.name, plugin.TYPE, consequence)

    def late(self, plugin: Plugin, seconds: float, consequence: str) -> None:
        """It has not ended within ``seconds``, and was given up."""
        if self._is_time(plugin, consequence):
            log.warning("plugin %s (%s) took more than %g s; %s", plugin.name, plugin.TYPE, seconds, consequence)

    def _is_time(self, plugin: Plugin, consequence: str) -> bool:
        now, key = time.monotonic(), (plugin.name, consequence)
        if now - self.last.get(key, -ERROR_INTERVAL) < ERROR_INTERVAL:
            return False
        self.last[key] = now
        return True


class ProfileRunner:
    """Runs one profile. A plugin that fails costs its own contribution, not the request."""

    def __init__(
        self,
        name: str,
        filters: Sequence[Filter],
        scorers: Sequence[tuple[Scorer, float]],
        picker: Picker,
        recorder: SchedulingRecorder,
        failures: Failures,
    ) -> None:
        self.name = name
        # Plugins are Any from here on: their methods are asked for what they should return, and may return otherwise,
        # which compiled code would not take.
        self._filters: list[tuple[Any, Timer]] = [
            (each, recorder.timer("Filter", each.TYPE, each.name)) for each in filters
        ]
        self._scorers: list[tuple[Any, float, Timer]] = [
            (each, weight, recorder.timer("Scorer", each.TYPE, each.name)) for each, weight in scorers
        ]
        self._in_columns = {each for each, _ in scorers if _agree(type(each), "score", "column")}
        self._picker: Any = picker
        self._picks_of_columns = _agree(type(picker), "pick", "pick_of_column")
        self._timed = recorder.timer("Picker", picker.TYPE, picker.name)
        self._failures = failures

    def run(self, request: InferenceRequest, endpoints: list[Endpoint]) -> Outcome | None:
        """Choose among ``endpoints``; None when the filters leave nothing."""
        # The end of one plugin is the beginning of the next: the clock is read once for each.
        before = clock()
        for filter_, timed in self._filters:
            endpoints = self._filter(filter_, request, endpoints)
            now = clock()
            timed(now - before)
            before = now
            if not endpoints:
                return None
        count = len(endpoints)
        arrays: list[tuple[Column, float]] = []
        columns: list[list[float]] = []
        weights: list[float] = []
        raters: list[Scorer] = []
        for scorer, weight, timed in self._scorers:
            try:
                scores = self._scores(scorer, request, endpoints)
                if not isinstance(scores, list):
                    arrays.append((scores, weight))
                elif any(scores):  # often nobody knows the prompt
                    columns.append(scores)
                    weights.append(weight)
                    raters.append(scorer)
            except Exception:
                self._failures.report(scorer, NOTHING)
            now = clock()
            timed(now - before)
            before = now
        totals: list[float] | Column = []
        if columns or not arrays:
            try:
                totals = weighted(columns, weights, count)
            except Exception:
                totals = self._without_nonsense(columns, weights, raters, count)
        if arrays:
            totals = added(arrays, totals if columns else np.zeros(count))
        before = clock()
        picked = self._pick(endpoints, totals)
        self._timed(clock() - before)
        return Outcome(picked, Scores(endpoints, totals))

    def _scores(self, scorer: Any, request: InferenceRequest, endpoints: list[Endpoint]) -> list[float] | Column:
        """What the scorer says, one for each endpoint. Raises ValueError for others, and whatever it raises."""
        count = len(endpoints)
        if isinstance(endpoints, Known) and scorer in self._in_columns:
            column = scorer.column(request, endpoints)
            if column is not None:
                return rated(column, count)
        scores = scorer.score(request, endpoints)
        if len(scores) != count:
            raise ValueError(f"{len(scores)} scores for {count} endpoints")
        return scores if type(scores) is list else list(scores)

    def _without_nonsense(
        self, columns: list[list[float]], weights: list[float], raters: list[Scorer], count: int
    ) -> list[float]:
        """The sums without the scores of those who gave something that is no number."""
        good: list[list[float]] = []
        theirs: list[float] = []
        for scores, weight, scorer in zip(columns, weights, raters, strict=True):
            try:
                weighted([scores], [weight], count)
            except Exception:
                self._failures.report(scorer, NOTHING)
            else:
                good.append(scores)
                theirs.append(weight)
        return weighted(good, theirs, count)

    def _filter(self, filter_: Any, request: InferenceRequest, endpoints: list[Endpoint]) -> list[Endpoint]:
        try:
            kept = filter_.filter(request, endpoints)
            return kept if type(kept) is list else list(kept)
        except Exception:
            self._failures.report(filter_, "its filtering is skipped")
            return endpoints

    def _pick(self, endpoints: list[Endpoint], totals: list[float] | Column) -> list[Endpoint]:
        try:
            if isinstance(totals, list):
                picked = self._picker.pick(endpoints, totals)
            elif self._picks_of_columns:
                picked = self._picker.pick_of_column(endpoints, totals)
            else:
                picked = self._picker.pick(endpoints, totals.tolist())
            if not picked:
                raise ValueError("it picked nothing")
            return picked if type(picked) is list else list(picked)
        except Exception:
            self._failures.report(self._picker, "the best-rated endpoint is taken")
            return [endpoints[int(np.argmax(totals))]]


def _agree(plugin: type[Plugin], plain: str, columnar: str) -> bool:
    """Whether the second of these methods does what the first one does: not where a subclass has another first one."""
    for each in plugin.__mro__:
        if columnar in vars(each):
            return True
        if plain in vars(each):
            return False
    return False
