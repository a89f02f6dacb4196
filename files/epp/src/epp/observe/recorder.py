# SPDX-License-Identifier: GPL-3.0-or-later
"""The EPP's metrics: one method per event, legacy and canonical names behind each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Final

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import Metric

from epp.model import NO_FLOW, Endpoint, FlowShare, Usage
from epp.observe.decisions import DecisionLog
from epp.observe.figures import Figures
from epp.observe.series import Buckets, Value

clock: Final = time.perf_counter
PRECISE: Final = "precise-prefix-cache-producer"
PD_HANDLER: Final = "pd-profile-handler"
"""The plugin whose decisions have a metric of their own, too."""
MAX_VALUES = 256
"""Different values of one label that comes from clients; further ones count as ``other``. Each model name costs some
500 lines of every page, so the reference's bound of 1000 would make pages of 60 MB."""
OTHER: Final = "other"
MAX_ATTEMPTS: Final = 16_384
"""Pairs of model and endpoint whose counter is kept at hand."""


@dataclass(frozen=True)
class PoolView:
    """What pool metrics are computed from."""

    name: str
    """Their ``name`` label."""
    endpoints: Callable[[], Sequence[Endpoint]] = tuple
    staleness: float = 2.0
    """Readings that are overdue by more seconds are left out."""
    problem: Callable[[], str] = str
    """Why the endpoints may be out of date; empty when they are not."""
    producer: str = "inflight-load-producer"
    """Whose counts of requests in flight these are: the name of the plugin that says how they are estimated."""


class _Bound:
    """The figures of one combination of labels, looked up once."""

    __slots__ = (
        "cached_tokens",
        "duration",
        "input_tokens",
        "itl",
        "labels",
        "ntpot",
        "output_tokens",
        "request_bytes",
        "requests",
        "response_bytes",
        "running",
        "tpot",
        "ttft",
    )

    def __init__(self, figures: Figures, labels: tuple[str, str, str, str]) -> None:
        self.labels = labels
        self.requests = figures.requests.value(*labels)
        self.running = figures.running.value(*labels)
        self.duration = figures.duration.histogram(*labels)
        self.request_bytes = figures.request_bytes.histogram(*labels)
        self.response_bytes = figures.response_bytes.histogram(*labels)
        self.input_tokens = figures.input_tokens.histogram(*labels)
        self.output_tokens = figures.output_tokens.histogram(*labels)
        self.cached_tokens = figures.cached_tokens.histogram(*labels)
        self.ntpot = figures.ntpot.histogram(*labels)
        self.tpot = figures.tpot.histogram(*labels)
        self.itl = figures.itl.histogram(*labels)
        self.ttft = {flag: figures.ttft.histogram(*labels, str(flag).lower()) for flag in (False, True)}


class RequestRecord:
    """The metrics of one request from its decision to its end."""

    __slots__ = ("_bound", "_ended", "_figures", "_first_at", "_last_at", "_started")

    def __init__(self, figures: Figures, bound: _Bound) -> None:
        self._figures, self._bound = figures, bound
        self._started = clock()
        self._first_at = self._last_at = 0.0
        self._ended = False

    def piece(self, streaming: bool) -> None:
        """Bytes of the answer's body have arrived: the first ones, or, in a stream of events, further ones."""
        now = clock()
        if not self._first_at:
            self._first_at = now
            self._bound.ttft[streaming].observe(now - self._started)
        elif streaming:
            self._bound.itl.observe(now - self._last_at)
        self._last_at = now if streaming else 0.0

    def finished(self, response_bytes: int, usage: Usage | None) -> None:
        """The answer has ended well or was cut off after its beginning."""
        bound = self._bound
        self._end()
        seconds = clock() - self._started
        bound.duration.observe(seconds)
        bound.response_bytes.observe(response_bytes)
        if usage is None:
            return
        bound.input_tokens.observe(usage.prompt_tokens)
        bound.output_tokens.observe(usage.completion_tokens)
        bound.cached_tokens.observe(usage.cached_tokens)
        if self._last_at and usage.completion_tokens > 1:
            bound.tpot.observe((self._last_at - self._first_at) / (usage.completion_tokens - 1))
        if usage.completion_tokens > 0:
            bound.ntpot.observe(seconds / usage.completion_tokens)

    def failed(self, code: str) -> None:
        """The request ended in an error: a Rejection's ``code``, or ``UpstreamError``, ``ClientDisconnected`` ..."""
        self._end()
        self._figures.errors.value(*self._bound.labels, code).add()

    def _end(self) -> None:
        if self._ended:
            raise RuntimeError("a request was recorded as ended twice")
        self._ended = True
        self._bound.running.add(-1.0)


class Recorder:
    """Counts and measures. Cheap enough for the hot path; used from one event loop."""

    def __init__(self, streams: bool = True) -> None:
        """``streams`` says whether streams are counted and timed (flag enable-grpc-stream-metrics)."""
        self.decisions = DecisionLog()
        self._count_streams = streams
        self.figures = Figures()
        """What is counted; for the recorders of single parts."""
        self.before_reading: list[Callable[[], None]] = []
        """Called whenever metrics are read, to compute what is not kept up to date."""
        self.figures.leader.value().set(1.0)
        if streams:
            self._open_streams = self.figures.streams.value()
            self._stream_seconds = self.figures.stream_seconds.histogram()
        self.figures.info.value("", _version()).set(1.0)
        self._bound: dict[tuple[str, str, str, int], _Bound] = {}
        self._models: set[str] = set()
        self._flows: set[str] = set()
        self._priorities: set[str] = set()
        self._pools: dict[str, PoolView] = {}
        self._prefix_sizes: dict[tuple[str, str], int] = {}
        self._prefix_hits: dict[str, tuple[Buckets, Buckets]] = {}
        self._stream_codes: dict[str, Value] = {}
        self._attempts: dict[tuple[str, Endpoint], Value] = {}
        # Looked up once: these count on every request.
        self._scheduled = self.figures.scheduling.histogram()
        self._processing = {phase: figure.histogram() for phase, figure in self.figures.processing.items()}
        self._kv_counted: dict[tuple[str, str], tuple[int, int, int]] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    def request(
        self, model: str, target_model: str, size: int, priority: int = 0, fairness_id: str = "default-flow"
    ) -> RequestRecord:
        """A request of ``size`` body bytes has been parsed: counts it as running until ``finished`` or ``failed``."""
        bound = self._bound.get((model, target_model, fairness_id, priority))
        if bound is None:
            bound = self._bind(model, target_model, priority, fairness_id)
        bound.requests.add()
        bound.running.add()
        bound.request_bytes.observe(size)
        return RequestRecord(self.figures, bound)

    def _bind(self, model: str, target_model: str, priority: int, fairness_id: str) -> _Bound:
        labels = self.labels(model, target_model, priority, fairness_id)
        bound = _Bound(self.figures, labels)
        if OTHER not in labels and len(self._bound) < MAX_VALUES:
            self._bound[model, target_model, fairness_id, priority] = bound
        return bound

    def labels(self, model: str, target_model: str, priority: int, fairness_id: str) -> tuple[str, str, str, str]:
        """Model, target model, flow and priority as label values, of which there is a bounded number."""
        return (
            _bounded(model, self._models),
            _bounded(target_model, self._models),
            _bounded(fairness_id, self._flows),
            _bounded(str(priority), self._priorities),
        )

    def rejected(self, code: str) -> None:
        """A request was refused before it had a model (bad JSON and the like)."""
        self.figures.errors.value("", "", "", "", code).add()

    def rewritten(self, resource: str, model: str, target_model: str) -> None:
        """An InferenceModelRewrite has put a model in place of another."""
        models = self._models
        self.figures.rewrites.value(resource, _bounded(model, models), _bounded(target_model, models)).add()

    def processing(self, phase: str, seconds: float) -> None:
        """The EPP's own work on one request: ``phase`` is ``request`` or ``response``."""
        self._processing[phase].observe(seconds)

    def stream_opened(self) -> None:
        """An ext_proc stream began."""
        if self._count_streams:
            self._open_streams.value += 1.0

    def stream_closed(self, seconds: float, code: str) -> None:
        """An ext_proc stream ended with a gRPC status ``code`` (``OK``, ``CANCELLED`` ...)."""
        if not self._count_streams:
            return
        self._open_streams.value -= 1.0
        self._stream_seconds.observe(seconds)
        found = self._stream_codes.get(code)
        if found is None:
            found = self._stream_codes[code] = self.figures.stream_codes.value(code)
        found.value += 1.0

    def scheduled(self, seconds: float, target_model: str, endpoint: Endpoint | None) -> None:
        """One scheduling attempt; ``endpoint`` is None when it failed."""
        self._scheduled.observe(seconds)
        model = _bounded(target_model, self._models)
        if endpoint is None:
            self.figures.attempts.value("failure", model, "", "", "").add()
            return
        found = self._attempts.get((model, endpoint))
        if found is None:
            where = (endpoint.pod, endpoint.namespace, str(endpoint.port))
            found = self.figures.attempts.value("success", model, *where)
            if len(self._attempts) >= MAX_ATTEMPTS:
                self._attempts.clear()  # endpoints that are gone
            self._attempts[model, endpoint] = found
        found.value += 1.0

    def timer(self, extension_point: str, plugin_type: str, name: str) -> Callable[[float], None]:
        """What takes the seconds of each call of one plugin."""
        return self.figures.plugins.histogram(extension_point, plugin_type, name).observe

    def prefix_match(self, name: str, hit_bytes: int, total_bytes: int) -> None:
        """Bytes that the chosen endpoint was believed to hold of a prompt, and the bytes of the prompt."""
        found = self._prefix_hits.get(name)
        if found is None:
            labels = (name, "approx-prefix-cache-producer")
            found = (self.figures.hit_bytes.histogram(*labels), self.figures.hit_ratio.histogram(*labels))
            self._prefix_hits[name] = found
        found[0].observe(hit_bytes)
        if total_bytes > 0:
            found[1].observe(hit_bytes / total_bytes)

    def prefix_index_size(self, name: str, entries: int, pool: str = "") -> None:
        """Entries in the prefix index of a plugin now; those of several pools add up."""
        self._prefix_sizes[pool, name] = entries

    def kv_blocks(self, name: str, blocks: int, admitted: int, evicted: int, skipped: int, pool: str = "") -> None:
        """Blocks that engines say they hold now, and how many came, went and could not be placed since the start."""
        figures, counted = self.figures, (admitted, evicted, skipped)
        before = self._kv_counted.get((pool, name), (0, 0, 0))
        self._kv_counted[pool, name] = counted
        for figure, now, then in zip(
            (figures.kv_admissions, figures.kv_evictions, figures.kv_skipped), counted, before, strict=True
        ):
            figure.value(name, PRECISE).add(now - then)
        self._prefix_sizes[pool, name] = blocks

    def kv_lookup(self, name: str, seconds: float, blocks: int, hits: int, best: int) -> None:
        """A prompt of so many blocks was looked up among those: how many were found, anywhere and on one endpoint."""
        figures = self.figures
        figures.kv_lookups.value(name, PRECISE).add()
        figures.kv_hits.value(name, PRECISE).add(hits)
        figures.kv_best.value(name, PRECISE).add(best)
        figures.kv_latency.histogram(name, PRECISE).observe(seconds)

    def prefix_source(self, name: str, source: str) -> None:
        """By what a prompt's prefix was looked up: ``events`` of engines, or an ``estimate``."""
        self.figures.prefix_source.value(name, PRECISE, source).add()

    def predicted_in(self, model: str, target_model: str, seconds: float) -> None:
        """A latency predictor has answered, in this time."""
        labels = (_bounded(model, self._models), _bounded(target_model, self._models))
        for kind in ("ttft", "tpot"):
            self.figures.prediction_took[kind].histogram(*labels).observe(seconds)
            self.figures.request_metric.value(*labels, f"{kind}_prediction_duration").set(seconds)

    def latency(self, model: str, target_model: str, kind: str, actual: float, predicted: float, late: bool) -> None:
        """A latency in seconds as it was and as it was predicted, and whether the client wanted it shorter."""
        labels = (_bounded(model, self._models), _bounded(target_model, self._models))
        self.figures.request_metric.value(*labels, kind).set(actual)
        if predicted > 0:
            self.figures.predicted[kind].histogram(*labels).observe(predicted)
            self.figures.request_metric.value(*labels, f"predicted_{kind}").set(predicted)
        if late:
            self.figures.slo_violations.value(*labels, kind).add()

    def disaggregated(self, plugin_type: str, name: str, model: str, decision: str) -> None:
        """Which stages of a request were given to endpoints of their own (``prefill-decode``, say)."""
        model = _bounded(model or "unknown", self._models)
        self.figures.disagg.value(name, plugin_type, model, decision).add()
        if plugin_type == PD_HANDLER:
            self.figures.pd.value(name, plugin_type, model, decision).add()

    def program_waited(self, program: str, mean_ms: float, evenness: float) -> None:
        """Mean wait of a program's requests, and Jain's fairness index over the mean waits of all programs."""
        self.figures.program_wait.value(_bounded(program, self._flows)).set(mean_ms)
        self.figures.program_evenness.value().set(evenness)

    def program_served(self, program: str, tokens: float) -> None:
        """Service that a program has attained, in weighted tokens, older ones counting less."""
        self.figures.program_service.value(_bounded(program, self._flows)).set(tokens)

    def program_gone(self, program: str) -> None:
        """A program has been forgotten."""
        self.figures.program_wait.forget(program_id=program)
        self.figures.program_service.forget(program_id=program)

    def revision_shares(self, plugin_type: str, name: str, mode: str, shares: Mapping[str, float]) -> None:
        """Which part of the requests each revision gets, 0 to 1; revisions that are not there are gone."""
        self.figures.revision_share.forget(plugin_type=plugin_type, plugin_name=name)
        for revision, share in shares.items():
            self.figures.revision_share.value(plugin_type, name, mode, revision).set(share)

    def strict_header_missed(self, plugin_type: str, name: str, selector: str) -> None:
        """A request's header named a label that no endpoint has."""
        self.figures.strict_missed.value(plugin_type, name, selector).add()

    def scrape_failed(self, endpoint: Endpoint, reason: str, extraction: bool = False) -> None:
        """One reading of an endpoint's metrics failed; ``extraction``: there was a page, with nothing useful on it."""
        if extraction:
            self.figures.extract_errors.value("metrics-data-source", "core-metrics-extractor").add()
        else:
            self.figures.poll_errors.value("metrics-data-source").add()

    def watch_failed(self, reason: str) -> None:
        """One request to the API server for pools or pods failed."""
        self.figures.poll_errors.value("k8s").add()

    def leading(self, leader: bool) -> None:
        """Whether this process may take traffic, as far as the election is concerned."""
        self.figures.leader.value().set(float(leader))

    def peers(self, count: int) -> None:
        """So many replicas share their state with this one."""
        self.figures.peers.value().set(float(count))

    def watch_pool(self, view: PoolView) -> None:
        """Compute this pool's metrics whenever metrics are read."""
        self._pools[view.name] = view

    def render(self) -> bytes:
        """All metrics in Prometheus' text format. May run in another thread than the rest: it only reads."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Every figure under every name; prometheus-client calls this."""
        self.measure()
        for figure in self.figures.all():
            yield from figure.collect()

    def measure(self) -> None:
        """Compute what is not kept up to date."""
        for figure in (self.figures.queue, self.figures.inflight_requests, self.figures.inflight_tokens):
            figure.clear()
        for refresh in self.before_reading:
            refresh()
        for view in self._pools.values():
            self._measure_pool(view)
        totals: dict[str, int] = {}
        for (_, name), size in self._prefix_sizes.items():
            totals[name] = totals.get(name, 0) + size
        for name, total in totals.items():
            self.figures.prefix_size.value(name, "approx-prefix-cache-producer").set(total)

    def _measure_pool(self, view: PoolView) -> None:
        endpoints = view.endpoints()
        now, figures = time.monotonic(), self.figures
        fresh = []
        for endpoint in endpoints:
            self._measure_load(view, endpoint)
            metrics = endpoint.metrics
            if metrics.updated_at and now - metrics.updated_at <= view.staleness + metrics.interval:
                fresh.append(metrics)
                figures.queue.value(view.name, endpoint.name).set(metrics.waiting)
        samples = {
            "kv_cache_utilization": [metrics.kv_cache_usage for metrics in fresh],
            "queue_size": [float(metrics.waiting) for metrics in fresh],
            "running_requests": [float(metrics.running) for metrics in fresh],
        }
        for name, values in samples.items():
            figures.pool[f"average_{name}"].value(view.name).set(statistics.fmean(values) if values else 0.0)
            figures.pool[f"std_dev_{name}"].value(view.name).set(statistics.pstdev(values) if values else 0.0)
        figures.pool["ready_endpoints"].value(view.name).set(len(endpoints))
        figures.source_up.value(view.name).set(0.0 if view.problem() else 1.0)

    def _measure_load(self, view: PoolView, endpoint: Endpoint) -> None:
        """What each flow has in flight; an endpoint without any has one series, which says so.

        Names of flows are those that requests were counted by; those beyond the bound are one.
        """
        # The list is made in one step: the event loop may be at work in another thread.
        for (fairness_id, priority), share in list(endpoint.flows.items()) or [(NO_FLOW, FlowShare())]:
            flow, rank = "", ""
            if share.requests:
                flow = fairness_id if fairness_id in self._flows else OTHER
                rank = str(priority) if str(priority) in self._priorities else OTHER
            where = (endpoint.name, endpoint.namespace, view.producer, flow, rank)
            self.figures.inflight_requests.value(*where).add(share.requests)
            self.figures.inflight_tokens.value(*where).add(share.tokens)


class PoolRecorder:
    """What the scheduler of one pool reports to."""

    def __init__(self, recorder: Recorder, pool: str) -> None:
        self._recorder, self._pool = recorder, pool
        self.scheduled = recorder.scheduled
        self.timer = recorder.timer
        self.prefix_match = recorder.prefix_match
        self.kv_lookup = recorder.kv_lookup
        self.prefix_source = recorder.prefix_source
        self.predicted_in = recorder.predicted_in
        self.latency = recorder.latency
        self.disaggregated = recorder.disaggregated
        self.program_waited = recorder.program_waited
        self.program_served = recorder.program_served
        self.program_gone = recorder.program_gone
        self.revision_shares = recorder.revision_shares
        self.strict_header_missed = recorder.strict_header_missed

    def prefix_index_size(self, name: str, entries: int) -> None:
        """Entries in a prefix index of this pool now."""
        self._recorder.prefix_index_size(name, entries, self._pool)

    def kv_blocks(self, name: str, blocks: int, admitted: int, evicted: int, skipped: int) -> None:
        """Blocks that engines of this pool say they hold now, and what has become of them so far."""
        self._recorder.kv_blocks(name, blocks, admitted, evicted, skipped, self._pool)


def _bounded(value: str, seen: set[str]) -> str:
    """``value``, or ``other`` once there have been too many."""
    if value in seen:
        return value
    if len(seen) >= MAX_VALUES:
        return OTHER
    seen.add(value)
    return value


def _version() -> str:
    try:
        return metadata.version("epp")
    except metadata.PackageNotFoundError:
        return "unknown"
