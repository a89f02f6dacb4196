# SPDX-License-Identifier: GPL-3.0-or-later
"""The metrics of flow control, of one pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from epp.model import InferenceRequest
from epp.observe.figures import Figures
from epp.observe.recorder import OTHER, Recorder
from epp.observe.series import Buckets, Figure


@dataclass(frozen=True)
class Use:
    """How much something holds, and how much it may; limits of 0 are none."""

    requests: int
    max_requests: int
    bytes: int
    max_bytes: int


@dataclass(frozen=True)
class FlowView:
    """What flow control looks like at this moment, for those metrics that are computed when they are read."""

    bands: Callable[[], Mapping[int, Use]]
    """By priority."""
    whole: Callable[[], Use]
    saturation: Callable[[], Mapping[str, float]]
    """By stage (prefill, decode, interleaved), and ``effective``: what counts."""
    stale: Callable[[], Mapping[str, int]]
    """Endpoints without fresh metrics, by detector."""


class FlowSeries:
    """The figures of one combination of model, target model, flow and priority, looked up once."""

    __slots__ = ("_bytes", "_figures", "_labels", "_size", "_waits")

    def __init__(self, figures: Figures, pool: str, labels: tuple[str, str, str, str]) -> None:
        model, target, flow, priority = labels
        self._figures, self._labels = figures, (flow, priority, pool, model, target)
        self._size = figures.flow_size.value(*self._labels)
        self._bytes = figures.flow_bytes.value(*self._labels)
        self._waits: dict[str, Buckets] = {}

    def queued(self, size: int) -> None:
        """A request of ``size`` body bytes waits from now on."""
        self._size.add()
        self._bytes.add(size)

    def left(self, size: int) -> None:
        """It waits no more."""
        self._size.add(-1.0)
        self._bytes.add(-size)

    def enqueued(self, outcome: str, seconds: float) -> None:
        """It took this long to let a request in, or to refuse it."""
        self._figures.flow_enqueue.histogram(*self._labels[:2], outcome).observe(seconds)

    def finished(self, outcome: str, seconds: float) -> None:
        """A request has got its outcome after so many seconds, queued or not."""
        waits = self._waits.get(outcome)
        if waits is None:
            flow, priority, *rest = self._labels
            waits = self._waits[outcome] = self._figures.flow_wait.histogram(flow, priority, outcome, *rest)
        waits.observe(seconds)
        self._figures.flow_outcomes.value(outcome, self._labels[1], self._labels[2]).add()


class FlowRecorder:
    """Counts and measures for one pool."""

    def __init__(self, recorder: Recorder, pool: str, view: FlowView | None = None) -> None:
        self._recorder, self._pool = recorder, pool
        self._figures = recorder.figures
        self._known: dict[tuple[str, str, str, str], FlowSeries] = {}
        self.view = view
        """Asked whenever metrics are read."""
        recorder.before_reading.append(self._measure)

    def series(self, request: InferenceRequest) -> FlowSeries:
        """Where to count this request."""
        labels = self._recorder.labels(request.model, request.target_model, request.priority, request.fairness_id)
        found = self._known.get(labels)
        if found is None:
            found = self._known[labels] = FlowSeries(self._figures, self._pool, labels)
        return found

    def cycle(self, seconds: float) -> None:
        """One dispatch, or the finding that nobody may go."""
        self._figures.flow_cycle.histogram().observe(seconds)

    def revoked(self, request: InferenceRequest) -> None:
        """A request in flight has been given up."""
        self._figures.flow_revoked.value(str(request.priority), self._pool).add()

    def gone(self, fairness_id: str, priority: int) -> None:
        """A flow has been forgotten, so that its gauges need not stand at 0 for ever."""
        if fairness_id == OTHER:
            return
        for figure in (self._figures.flow_size, self._figures.flow_bytes):
            figure.forget(fairness_id=fairness_id, priority=str(priority), inference_pool=self._pool)
        for labels in [labels for labels in self._known if labels[2:] == (fairness_id, str(priority))]:
            del self._known[labels]

    def _measure(self) -> None:
        figures, view = self._figures, self.view
        for group in (figures.flow_use, figures.flow_global_use):
            for figure in group.values():
                figure.forget(inference_pool=self._pool)
        figures.flow_saturation.forget(inference_pool=self._pool)
        if view is None:
            return
        for priority, use in view.bands().items():
            _show(figures.flow_use, use, str(priority), self._pool)
        _show(figures.flow_global_use, view.whole(), self._pool)
        for stage, saturation in view.saturation().items():
            figures.flow_saturation.value(self._pool, stage).set(saturation)
            if stage == "effective":
                figures.flow_saturation_old.value(self._pool).set(saturation)
        for detector, count in view.stale().items():
            figures.flow_stale.value(detector).set(count)


def _show(figures: Mapping[str, Figure], use: Use, *labels: str) -> None:
    """The used part of each limit that there is."""
    if use.max_requests:
        figures["requests"].value(*labels).set(use.requests / use.max_requests)
    if use.max_bytes:
        figures["bytes"].value(*labels).set(use.bytes / use.max_bytes)
