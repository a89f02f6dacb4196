# SPDX-License-Identifier: GPL-3.0-or-later
"""Which metric of which engine says what, and how a page becomes EndpointMetrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from epp.datalayer.exposition import MetricSpec, samples
from epp.model import EndpointMetrics


class NoMetrics(Exception):
    """A page that has none of the engine's load metrics; the text names what was looked for."""


@dataclass(frozen=True)
class EngineMetrics:
    """Names of one engine's metrics; None where the engine has no such metric.

    The size of the KV cache is either in labels of an info metric (``cache_info``) or in two gauges of its own.
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


_TRITON_BLOCKS = "nv_trt_llm_kv_cache_block_metrics"
_TRITON_REQUESTS = "nv_trt_llm_request_metrics"

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
            cache_info=MetricSpec("sglang:cache_config_info"),
            block_size_label="page_size",
            num_blocks_label="num_pages",
        ),
        EngineMetrics(
            "trtllm-serve",
            waiting=MetricSpec("trtllm_num_requests_waiting"),
            running=MetricSpec("trtllm_num_requests_running"),
            kv_usage=MetricSpec("trtllm_kv_cache_utilization"),
            block_size=MetricSpec("trtllm_kv_cache_tokens_per_block"),
            num_blocks=MetricSpec("trtllm_kv_cache_max_blocks"),
        ),
        EngineMetrics(
            "triton-tensorrt-llm",
            waiting=MetricSpec(_TRITON_REQUESTS, {"request_type": "waiting"}),
            running=MetricSpec(_TRITON_REQUESTS, {"request_type": "scheduled"}),
            kv_usage=MetricSpec(_TRITON_BLOCKS, {"kv_cache_block_type": "fraction"}),
            block_size=MetricSpec(_TRITON_BLOCKS, {"kv_cache_block_type": "tokens_per"}),
            num_blocks=MetricSpec(_TRITON_BLOCKS, {"kv_cache_block_type": "max"}),
        ),
        EngineMetrics(
            "triton",
            waiting=MetricSpec("nv_inference_pending_request_count"),
            running=MetricSpec("nv_inference_exec_count"),
        ),
    )
}
"""Engines known without configuration, by the value of the pod's engine label."""

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
        for key in self.labels:
            name = labels.get(key)
            if name:
                return self.engines.get(name, self.engines[self.default])
        return self.engines[self.default]

    def read(self, page: bytes, labels: Mapping[str, str], old: EndpointMetrics) -> EndpointMetrics:
        """A new reading; what the page does not say stays as it was. ``updated_at`` is the caller's to set.

        Raises NoMetrics when the page has neither waiting nor running requests nor KV-cache usage.
        """
        engine = self.engine(labels)
        waiting, running = _total(page, engine.waiting), _total(page, engine.running)
        kv_usage = _mean(page, engine.kv_usage)
        if waiting is None and running is None and kv_usage is None:
            specs = [spec.name for spec in (engine.waiting, engine.running, engine.kv_usage) if spec is not None]
            raise NoMetrics(f"the page has none of {engine.name}'s metrics ({', '.join(specs)})")
        new = replace(old)
        new.waiting = old.waiting if waiting is None else max(0, int(waiting))
        new.running = old.running if running is None else max(0, int(running))
        new.kv_cache_usage = old.kv_cache_usage if kv_usage is None else min(1.0, max(0.0, kv_usage))
        _read_cache(page, engine, new)
        _read_lora(page, engine, new)
        return new


def _total(page: bytes, spec: MetricSpec | None) -> float | None:
    """Sum over a metric's series: a data-parallel server has one per engine."""
    values = [sample.value for sample in samples(page, spec)] if spec is not None else []
    return sum(values) if values else None


def _mean(page: bytes, spec: MetricSpec | None) -> float | None:
    values = [sample.value for sample in samples(page, spec)] if spec is not None else []
    return sum(values) / len(values) if values else None


def _read_cache(page: bytes, engine: EngineMetrics, new: EndpointMetrics) -> None:
    """Block size (tokens) and number of blocks; several engines behind one endpoint add up their blocks."""
    if engine.cache_info is not None:
        infos = [sample.labels() for sample in samples(page, engine.cache_info)]
        sizes = [_count(info.get(engine.block_size_label, "")) for info in infos]
        blocks = [_count(info.get(engine.num_blocks_label, "")) for info in infos]
        new.block_size = next((size for size in sizes if size), new.block_size)
        new.num_blocks = sum(blocks) or new.num_blocks
        return
    size, count = _mean(page, engine.block_size), _total(page, engine.num_blocks)
    new.block_size = int(size) if size and size > 0 else new.block_size
    new.num_blocks = int(count) if count and count > 0 else new.num_blocks


def _count(text: str) -> int:
    """A positive whole number from a label; 0 for anything else (vLLM writes ``None`` before it knows)."""
    return int(text) if text.isdecimal() and len(text) < 16 else 0


def _read_lora(page: bytes, engine: EngineMetrics, new: EndpointMetrics) -> None:
    """Adapters from the newest info series: vLLM leaves old ones standing, their value is their time."""
    if engine.lora is None:
        return
    newest = max(samples(page, engine.lora), key=lambda sample: sample.value, default=None)
    if newest is None:
        return
    labels = newest.labels()
    new.max_lora = _count(labels.get("max_lora", ""))
    new.running_adapters = _names(labels.get("running_lora_adapters", ""))
    new.waiting_adapters = _names(labels.get("waiting_lora_adapters", ""))


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(",") if name.strip())
