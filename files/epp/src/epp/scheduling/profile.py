# SPDX-License-Identifier: GPL-3.0-or-later
"""One scheduling profile: filters in order, weighted scores, one picker."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from epp.model import Endpoint, InferenceRequest
from epp.scheduling.api import Filter, Picker, Plugin, SchedulingRecorder, Scorer

log = logging.getLogger(__name__)

ERROR_INTERVAL = 10.0
"""Seconds between two log lines about the same failing plugin."""


class Scores(Mapping[str, float]):
    """Endpoint (``hostport``) to weighted score. Few ever ask, so nothing is computed before."""

    __slots__ = ("_endpoints", "_totals")

    def __init__(self, endpoints: list[Endpoint], totals: list[float]) -> None:
        self._endpoints = endpoints
        self._totals = totals

    def __getitem__(self, hostport: str) -> float:
        for endpoint, total in zip(self._endpoints, self._totals, strict=True):
            if endpoint.hostport == hostport:
                return total
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
        now, key = time.monotonic(), (plugin.name, consequence)
        if now - self.last.get(key, -ERROR_INTERVAL) >= ERROR_INTERVAL:
            self.last[key] = now
            log.exception("plugin %s (%s) failed; %s", plugin.name, plugin.TYPE, consequence)


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
        self._filters = tuple(filters)
        self._scorers = tuple(scorers)
        self._picker = picker
        self._recorder = recorder
        self._failures = failures

    def run(self, request: InferenceRequest, endpoints: list[Endpoint]) -> Outcome | None:
        """Choose among ``endpoints``; None when the filters leave nothing."""
        for filter_ in self._filters:
            endpoints = self._filter(filter_, request, endpoints)
            if not endpoints:
                return None
        totals = [0.0] * len(endpoints)
        for scorer, weight in self._scorers:
            self._score(scorer, weight, request, endpoints, totals)
        return Outcome(self._pick(endpoints, totals), Scores(endpoints, totals))

    def _filter(self, filter_: Filter, request: InferenceRequest, endpoints: list[Endpoint]) -> list[Endpoint]:
        started = time.perf_counter()
        try:
            kept = filter_.filter(request, endpoints)
            return kept if type(kept) is list else list(kept)
        except Exception:
            self._failures.report(filter_, "its filtering is skipped")
            return endpoints
        finally:
            self._recorder.plugin("Filter", filter_.TYPE, filter_.name, time.perf_counter() - started)

    def _score(
        self, scorer: Scorer, weight: float, request: InferenceRequest, endpoints: list[Endpoint], totals: list[float]
    ) -> None:
        started = time.perf_counter()
        try:
            scores = scorer.score(request, endpoints)
            if len(scores) != len(totals):
                raise ValueError(f"{len(scores)} scores for {len(totals)} endpoints")
            # Written so that NaN, which compares false with everything, counts as 0.
            shares = [weight if score >= 1.0 else weight * score if score > 0.0 else 0.0 for score in scores]
        except Exception:
            self._failures.report(scorer, "its scores count as 0")
            return
        finally:
            self._recorder.plugin("Scorer", scorer.TYPE, scorer.name, time.perf_counter() - started)
        for index, share in enumerate(shares):
            totals[index] += share

    def _pick(self, endpoints: list[Endpoint], totals: list[float]) -> list[Endpoint]:
        started = time.perf_counter()
        try:
            picked = self._picker.pick(endpoints, totals)
            if not picked:
                raise ValueError("it picked nothing")
            return picked
        except Exception:
            self._failures.report(self._picker, "the best-rated endpoint is taken")
            return [endpoints[totals.index(max(totals))]]
        finally:
            self._recorder.plugin("Picker", self._picker.TYPE, self._picker.name, time.perf_counter() - started)
