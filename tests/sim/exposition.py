# SPDX-License-Identifier: GPL-3.0-or-later
"""The metrics page of one engine, in the Prometheus text format, with vLLM's names, labels and buckets.

The page is kept until the engine's state changes: scraping an idle instance costs no more than sending it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from sim.engine import Engine
from sim.stats import Histogram, Stats

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_HISTOGRAMS: Final[tuple[tuple[str, str, Callable[[Stats], Histogram]], ...]] = (
    ("time_to_first_token_seconds", "Histogram of time to first token in seconds.", lambda s: s.time_to_first_token),
    ("inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", lambda s: s.inter_token_latency),
    (
        "request_time_per_output_token_seconds",
        "Histogram of time per output token of a request in seconds.",
        lambda s: s.time_per_output_token,
    ),
    (
        "e2e_request_latency_seconds",
        "Histogram of end-to-end request latency in seconds.",
        lambda s: s.e2e_request_latency,
    ),
    ("request_queue_time_seconds", "Histogram of time in the WAITING phase of a request.", lambda s: s.queue_time),
    (
        "request_inference_time_seconds",
        "Histogram of time in the RUNNING phase of a request.",
        lambda s: s.inference_time,
    ),
    ("request_prefill_time_seconds", "Histogram of time in the PREFILL phase of a request.", lambda s: s.prefill_time),
    ("request_decode_time_seconds", "Histogram of time in the DECODE phase of a request.", lambda s: s.decode_time),
    ("request_prompt_tokens", "Number of prompt tokens of a request.", lambda s: s.request_prompt_tokens),
    ("request_generation_tokens", "Number of generated tokens of a request.", lambda s: s.request_generation_tokens),
    (
        "request_params_max_tokens",
        "Histogram of the max_tokens request parameter.",
        lambda s: s.request_params_max_tokens,
    ),
    ("iteration_tokens_total", "Histogram of number of tokens per engine step.", lambda s: s.iteration_tokens),
)


def escape(value: str) -> str:
    """Escape a label value."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


class MetricsPage:
    """Writes the page of one engine."""

    def __init__(self, engine: Engine, model_name: str, wall_time: Callable[[float], float]) -> None:
        """`model_name`: value of the label; `wall_time`: seconds of model time → seconds since the epoch."""
        self._engine = engine
        self._labels = f'engine="0",model_name="{escape(model_name)}"'
        self._wall_time = wall_time
        self._page = b""
        self._revision = -1

    def render(self) -> bytes:
        """Return the page of the engine's present state."""
        if self._revision != self._engine.revision:
            self._revision = self._engine.revision
            self._page = ("\n".join(self._lines()) + "\n").encode()
        return self._page

    def _lines(self) -> Iterator[str]:
        """Yield the lines of the page."""
        engine, stats = self._engine, self._engine.stats
        yield from self._gauge(
            "num_requests_running", "Number of requests in model execution batches.", len(engine.running)
        )
        yield from self._gauge(
            "num_requests_waiting", "Number of requests waiting to be processed.", len(engine.waiting)
        )
        yield from self._gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", engine.pool.usage())
        yield from self._counter(
            "prefix_cache_queries",
            "Prefix cache queries, in terms of number of queried tokens.",
            stats.prefix_cache_queries,
        )
        yield from self._counter(
            "prefix_cache_hits", "Prefix cache hits, in terms of number of cached tokens.", stats.prefix_cache_hits
        )
        yield from self._counter(
            "num_preemptions", "Cumulative number of preemptions from the engine.", stats.num_preemptions
        )
        yield from self._counter("prompt_tokens", "Number of prefill tokens processed.", stats.prompt_tokens)
        yield from self._counter("generation_tokens", "Number of generation tokens processed.", stats.generation_tokens)
        yield from self._request_success()
        for name, help_text, select in _HISTOGRAMS:
            yield from self._histogram(name, help_text, select(stats))
        yield from self._lora_info()
        yield from self._cache_config()

    @staticmethod
    def _head(name: str, help_text: str, kind: str) -> Iterator[str]:
        """Yield the HELP and TYPE lines of a metric."""
        yield f"# HELP vllm:{name} {help_text}"
        yield f"# TYPE vllm:{name} {kind}"

    def _gauge(self, name: str, help_text: str, value: float) -> Iterator[str]:
        """Yield a gauge."""
        yield from self._head(name, help_text, "gauge")
        yield f"vllm:{name}{{{self._labels}}} {float(value)}"

    def _counter(self, name: str, help_text: str, value: int) -> Iterator[str]:
        """Yield a counter, whose sample is called `<name>_total`, and the time of its creation."""
        yield from self._head(f"{name}_total", help_text, "counter")
        yield f"vllm:{name}_total{{{self._labels}}} {float(value)}"
        yield from self._created(name, help_text)

    def _created(self, name: str, help_text: str) -> Iterator[str]:
        """Yield the `_created` gauge that prometheus-client writes beside every counter and histogram."""
        yield from self._head(f"{name}_created", help_text, "gauge")
        yield f"vllm:{name}_created{{{self._labels}}} {self._wall_time(0.0)}"

    def _request_success(self) -> Iterator[str]:
        """Yield the counter of finished requests by reason."""
        yield from self._head("request_success_total", "Count of successfully processed requests.", "counter")
        for reason, value in self._engine.stats.request_success.items():
            yield (
                f'vllm:request_success_total{{engine="0",finished_reason="{reason}",'
                f"{self._labels.partition(',')[2]}}} {float(value)}"
            )

    def _histogram(self, name: str, help_text: str, histogram: Histogram) -> Iterator[str]:
        """Yield a histogram with cumulative buckets."""
        yield from self._head(name, help_text, "histogram")
        model_label = self._labels.partition(",")[2]
        seen = 0
        for bound, number in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts, strict=True):
            seen += number
            yield f'vllm:{name}_bucket{{engine="0",le="{bound}",{model_label}}} {float(seen)}'
        yield f"vllm:{name}_count{{{self._labels}}} {float(seen)}"
        yield f"vllm:{name}_sum{{{self._labels}}} {histogram.total}"
        yield from self._created(name, help_text)

    def _lora_info(self) -> Iterator[str]:
        """Yield one series for each combination of running and waiting adapters; its value is the time it was last
        so.
        """
        slots = self._engine.settings.max_loras
        if not slots:
            return
        yield from self._head("lora_requests_info", "Running stats on lora requests.", "gauge")
        for (running, waiting), when in self._engine.stats.lora_info.items():
            adapters = f'running_lora_adapters="{escape(running)}",waiting_lora_adapters="{escape(waiting)}"'
            yield f'vllm:lora_requests_info{{max_lora="{slots}",{adapters}}} {self._wall_time(when)}'

    def _cache_config(self) -> Iterator[str]:
        """Yield the cache's configuration."""
        settings = self._engine.settings
        yield from self._head("cache_config_info", "Information of the LLMEngine CacheConfig", "gauge")
        yield (
            f'vllm:cache_config_info{{block_size="{settings.block_size}",cache_dtype="auto",'
            f'enable_prefix_caching="{settings.enable_prefix_caching}",engine="0",gpu_memory_utilization="0.9",'
            f'num_cpu_blocks="None",num_gpu_blocks="{settings.num_gpu_blocks}",'
            f'num_gpu_blocks_override="{settings.num_gpu_blocks}",sliding_window="None"}} 1.0'
        )
