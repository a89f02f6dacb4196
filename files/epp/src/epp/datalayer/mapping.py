# SPDX-License-Identifier: GPL-3.0-or-later
"""Which metric of which engine says what, and how a page becomes EndpointMetrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from epp.datalayer.exposition import MetricSpec, PageReader
from epp.model import EndpointMetrics


class NoMetrics(Exception):
    """A page that has none of the engine's load metrics; the text names what was looked for."""


@dataclass(frozen=True)
class Place:
    """Where an engine shows its metrics unless somebody says otherwise; port 0 is the endpoint's own."""

    path: str = "/metrics"
    port: int = 0


@dataclass(frozen=True)
class CustomMetric:
    """One more figure to take: the first series that ``spec`` matches."""

    key: str
    """Under which it stands in ``EndpointMetrics.custom``."""
    spec: MetricSpec
    optional: bool = False
    """Nobody is told when it is not on the page."""


@dataclass(frozen=True)
class EngineMetrics:
    """Names of one engine's metrics; None where the engine has no such metric.

    The size of the KV cache is either in labels of an info metric (``cache_info``) or in two gauges of its own; of an
    engine that has had both the page tells which.
    An engine with none of the metrics is not read at all: the requests in flight stand in.
    """

    name: str
    waiting: MetricSpec | None = None
    running: MetricSpec | None = None
    kv_usage: MetricSpec | None = None
    lora: MetricSpec | None = None
    cache_info: MetricSpec | None = None
    block_size_label: str = "block_size"
    num_blocks_label: str = "num_gpu_blocks"
    block_size: MetricSpec | None = None
    num_blocks: MetricSpec | None = None
    custom: tuple[CustomMetric, ...] = ()
    places: tuple[Place, ...] = (Place(),)
    """Tried in turn until one of them has the metrics."""
    part_label: str = ""
    """Requests with a value in this label are counted in a series without one, too, and not taken twice."""

    def load(self) -> tuple[MetricSpec, ...]:
        """The metrics of which a page must have one."""
        return tuple(spec for spec in (self.waiting, self.running, self.kv_usage) if spec is not None)

    def is_read(self) -> bool:
        """Whether there is anything to read."""
        return bool(self.load() or self.custom)


_TRITON_BLOCKS = "nv_trt_llm_kv_cache_block_metrics"
_TRITON_REQUESTS = "nv_trt_llm_request_metrics"
_TRITON_PLACES = (Place(), Place(port=8002))

ENGINES: Mapping[str, EngineMetrics] = {
    engine.name: engine
    for engine in (
        EngineMetrics(
            "vllm",
            waiting=MetricSpec("vllm:num_requests_waiting"),
            running=MetricSpec("vllm:num_requests_running"),
            kv_usage=MetricSpec("vllm:kv_cache_usage_perc"),
            lora=MetricSpec("vllm:lora_requests_info"),
            cache_info=MetricSpec("vllm:cache_config_info"),
        ),
        EngineMetrics(
            "sglang",
            waiting=MetricSpec("sglang:num_queue_reqs"),
            running=MetricSpec("sglang:num_running_reqs"),
            kv_usage=MetricSpec("sglang:token_usage"),
            # Servers before 0.5.11; the gauges are those of the later ones.
            cache_info=MetricSpec("sglang:cache_config_info"),
            block_size_label="page_size",
            num_blocks_label="num_pages",
            block_size=MetricSpec("sglang:page_size"),
            num_blocks=MetricSpec("sglang:num_pages"),
            part_label="priority",
        ),
        EngineMetrics(
            "trtllm-serve",
            waiting=MetricSpec("trtllm_num_requests_waiting"),
            running=MetricSpec("trtllm_num_requests_running"),
            kv_usage=MetricSpec("trtllm_kv_cache_utilization"),
            block_size=MetricSpec("trtllm_kv_cache_tokens_per_block"),
            num_blocks=MetricSpec("trtllm_kv_cache_max_blocks"),
            # Its /metrics is JSON of another kind.
            places=(Place("/prometheus/metrics"), Place()),
        ),
        EngineMetrics(
            "triton-tensorrt-llm",
            waiting=MetricSpec(_TRITON_REQUESTS, {"request_type": "waiting"}),
            running=MetricSpec(_TRITON_REQUESTS, {"request_type": "scheduled"}),
            kv_usage=MetricSpec(_TRITON_BLOCKS, {"kv_cache_block_type": "fraction"}),
            block_size=MetricSpec(_TRITON_BLOCKS, {"kv_cache_block_type": "tokens_per"}),
            num_blocks=MetricSpec(_TRITON_BLOCKS, {"kv_cache_block_type": "max"}),
            places=_TRITON_PLACES,
        ),
        EngineMetrics(
            "triton",
            waiting=MetricSpec("nv_inference_pending_request_count"),
            # The reference takes nv_inference_exec_count for running requests. It counts all that ever ran, so that
            # the endpoint that has served longest would look the busiest for ever.
            places=_TRITON_PLACES,
        ),
        EngineMetrics(
            "llamacpp",
            waiting=MetricSpec("llamacpp:requests_deferred"),
            running=MetricSpec("llamacpp:requests_processing"),
            # Servers of 2025 and later have lost it.
            kv_usage=MetricSpec("llamacpp:kv_cache_usage_ratio"),
        ),
        EngineMetrics("none"),
    )
}
"""Engines known without configuration, by the value of the pod's engine label; ``none`` has no metrics."""

ENGINE_LABELS = ("llm-d.ai/engine-type", "inference.networking.k8s.io/engine-type")
"""Pod labels that name the engine; the first that is there counts."""


@dataclass(frozen=True)
class Mapper:
    """Turns pages into EndpointMetrics, by engine."""

    engines: Mapping[str, EngineMetrics] = field(default_factory=lambda: ENGINES)
    default: str = "vllm"
    labels: tuple[str, ...] = ENGINE_LABELS

    def engine(self, labels: Mapping[str, str]) -> EngineMetrics:
        """The engine of a pod with these labels; the default engine for a name that is not known."""
        return self.engines.get(self.named(labels), self.engines[self.default])

    def named(self, labels: Mapping[str, str]) -> str:
        """The engine that the labels name, known or not; empty when they name none."""
        return next((name for key in self.labels if (name := labels.get(key))), "")

    def read(
        self, page: bytes, labels: Mapping[str, str], old: EndpointMetrics, reader: PageReader | None = None
    ) -> EndpointMetrics:
        """A new reading; what the page does not say stays as it was. ``updated_at`` is the caller's to set.

        ``reader`` has been turned to the page; without one the page is read on its own. Raises NoMetrics when the page
        has none of the engine's load metrics.
        """
        if reader is None:
            reader = PageReader()
            reader.turn(page, 0.0)
        engine = self.engine(labels)
        waiting, running = (_total(reader, spec, engine.part_label) for spec in (engine.waiting, engine.running))
        kv_usage = _mean(reader, engine.kv_usage)
        if waiting is None and running is None and kv_usage is None and engine.load():
            names = ", ".join(spec.name for spec in engine.load())
            raise NoMetrics(f"the page has none of {engine.name}'s metrics ({names})")
        new = old.copy()
        new.waiting = old.waiting if waiting is None else max(0, int(waiting))
        new.running = old.running if running is None else max(0, int(running))
        new.kv_cache_usage = old.kv_cache_usage if kv_usage is None else min(1.0, max(0.0, kv_usage))
        new.reports_waiting = engine.waiting is not None
        new.reports_running = engine.running is not None
        _read_cache(reader, engine, new)
        _read_lora(reader, engine, new)
        if engine.custom:
            new.custom = _custom(reader, engine.custom)
        return new


def _total(reader: PageReader, spec: MetricSpec | None, part: str = "") -> float | None:
    """Sum over a metric's series (a data-parallel server has one per engine), without parts of others among them."""
    series = reader.samples(spec) if spec is not None else []
    values = [sample.value for sample in series if not part or not sample.labels().get(part)]
    return sum(values) if values else None


def _mean(reader: PageReader, spec: MetricSpec | None) -> float | None:
    values = [sample.value for sample in reader.samples(spec)] if spec is not None else []
    return sum(values) / len(values) if values else None


def _custom(reader: PageReader, wanted: tuple[CustomMetric, ...]) -> dict[str, float]:
    found = ((metric.key, reader.samples(metric.spec)) for metric in wanted)
    return {key: series[0].value for key, series in found if series}


def _read_cache(reader: PageReader, engine: EngineMetrics, new: EndpointMetrics) -> None:
    """Block size (tokens) and number of blocks; several engines behind one endpoint add up their blocks."""
    infos = [sample.labels() for sample in reader.samples(engine.cache_info)] if engine.cache_info is not None else []
    if infos:
        sizes = [_count(info.get(engine.block_size_label, "")) for info in infos]
        blocks = [_count(info.get(engine.num_blocks_label, "")) for info in infos]
        new.block_size = next((size for size in sizes if size), new.block_size)
        new.num_blocks = sum(blocks) or new.num_blocks
        return
    size, count = _mean(reader, engine.block_size), _total(reader, engine.num_blocks)
    new.block_size = int(size) if size and size > 0 else new.block_size
    new.num_blocks = int(count) if count and count > 0 else new.num_blocks


def _count(text: str) -> int:
    """A positive whole number from a label; 0 for anything else (vLLM writes ``None`` before it knows)."""
    return int(text) if text.isdecimal() and len(text) < 16 else 0


def _read_lora(reader: PageReader, engine: EngineMetrics, new: EndpointMetrics) -> None:
    """Adapters from the newest info series: vLLM leaves old ones standing, their value is their time."""
    if engine.lora is None:
        return
    newest = max(reader.samples(engine.lora), key=lambda sample: sample.value, default=None)
    if newest is None:
        return
    labels = newest.labels()
    new.max_lora = _count(labels.get("max_lora", ""))
    new.running_adapters = _names(labels.get("running_lora_adapters", ""))
    new.waiting_adapters = _names(labels.get("waiting_lora_adapters", ""))


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(",") if name.strip())
