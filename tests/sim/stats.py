# SPDX-License-Identifier: GPL-3.0-or-later
"""What an engine counts, under vLLM's names. Plain numbers and histograms; `sim.exposition` writes them as a metrics
page.

All durations are in seconds of model time: what the modelled server would have measured, whatever the time scale of
the run.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

FinishReason = Literal["stop", "length", "abort", "error"]
FINISH_REASONS: Final[tuple[FinishReason, ...]] = ("stop", "length", "abort", "error")

# Buckets as vLLM has them (vllm/v1/metrics/loggers.py).
TTFT_BUCKETS: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
TOKEN_LATENCY_BUCKETS: Final = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
REQUEST_LATENCY_BUCKETS: Final = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
ITERATION_TOKEN_BUCKETS: Final = tuple(float(2**power) for power in (0, *range(3, 15)))
MAX_LORA_SERIES: Final = 100
_LORA_TIME_STEP: Final = 1e-6


def length_buckets(max_model_len: int) -> tuple[float, ...]:
    """Return vLLM's buckets for lengths in tokens: 1, 2, 5, 10, 20, 50 ... up to `max_model_len`."""
    buckets: list[float] = []
    scale = 1
    while True:
        for mantissa in (1, 2, 5):
            if mantissa * scale > max_model_len:
                return tuple(buckets)
            buckets.append(float(mantissa * scale))
        scale *= 10


class Histogram:
    """A Prometheus histogram without labels: counts per bucket (not cumulative), the last one being +Inf, and the
    sum.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """Number of values seen."""
        return sum(self.counts)


@dataclass(slots=True)
class RequestTimes:
    """When things happened to one request, in seconds of model time; None until they do."""

    arrival: float
    first_scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None


@dataclass(slots=True)
class Stats:
    """The counters and histograms of one engine since its start."""

    max_model_len: int
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    num_preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    request_success: dict[FinishReason, int] = field(default_factory=lambda: dict.fromkeys(FINISH_REASONS, 0))
    time_to_first_token: Histogram = field(default_factory=lambda: Histogram(TTFT_BUCKETS))
    inter_token_latency: Histogram = field(default_factory=lambda: Histogram(TOKEN_LATENCY_BUCKETS))
    time_per_output_token: Histogram = field(default_factory=lambda: Histogram(TOKEN_LATENCY_BUCKETS))
    e2e_request_latency: Histogram = field(default_factory=lambda: Histogram(REQUEST_LATENCY_BUCKETS))
    queue_time: Histogram = field(default_factory=lambda: Histogram(REQUEST_LATENCY_BUCKETS))
    inference_time: Histogram = field(default_factory=lambda: Histogram(REQUEST_LATENCY_BUCKETS))
    prefill_time: Histogram = field(default_factory=lambda: Histogram(REQUEST_LATENCY_BUCKETS))
    decode_time: Histogram = field(default_factory=lambda: Histogram(REQUEST_LATENCY_BUCKETS))
    iteration_tokens: Histogram = field(default_factory=lambda: Histogram(ITERATION_TOKEN_BUCKETS))
    request_prompt_tokens: Histogram = field(init=False)
    request_generation_tokens: Histogram = field(init=False)
    request_params_max_tokens: Histogram = field(init=False)
    # (running adapters, waiting adapters), comma-separated names -> model time when it was last so; the newest last
    lora_info: OrderedDict[tuple[str, str], float] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        """Make the histograms whose buckets depend on the longest sequence."""
        bounds = length_buckets(self.max_model_len)
        self.request_prompt_tokens = Histogram(bounds)
        self.request_generation_tokens = Histogram(bounds)
        self.request_params_max_tokens = Histogram(bounds)

    def record_lora(self, running: str, waiting: str, now: float) -> None:
        """Note which adapters run and wait. Like vLLM, old combinations stay on the page; unlike it, at most
        MAX_LORA_SERIES.
        """
        # Readers take the newest series for the present one, so no two may have the same time.
        newest = next(reversed(self.lora_info.values()), -1.0)
        self.lora_info[running, waiting] = max(now, newest + _LORA_TIME_STEP)
        self.lora_info.move_to_end((running, waiting))
        if len(self.lora_info) > MAX_LORA_SERIES:
            self.lora_info.popitem(last=False)

    def record_token(self, times: RequestTimes, now: float, prompt_tokens: int) -> None:
        """Count one generated token of a request, at `now`; `prompt_tokens` is the length of its prompt."""
        self.generation_tokens += 1
        if times.first_token is None or times.last_token is None:
            times.first_token = now
            self.prompt_tokens += prompt_tokens
            self.time_to_first_token.observe(now - times.arrival)
        else:
            self.inter_token_latency.observe(now - times.last_token)
        times.last_token = now

    def record_finished(
        self, times: RequestTimes, reason: FinishReason, prompt: int, generated: int, max_tokens: int
    ) -> None:
        """Count the end of a request; `prompt`, `generated` and `max_tokens` in tokens."""
        self.request_success[reason] += 1
        if times.first_scheduled is None or times.first_token is None or times.last_token is None:
            return  # aborted before its first token: it has no latencies
        self.e2e_request_latency.observe(times.last_token - times.arrival)
        self.queue_time.observe(times.first_scheduled - times.arrival)
        self.prefill_time.observe(times.first_token - times.first_scheduled)
        self.inference_time.observe(times.last_token - times.first_scheduled)
        self.decode_time.observe(times.last_token - times.first_token)
        if generated > 1:
            self.time_per_output_token.observe((times.last_token - times.first_token) / (generated - 1))
        self.request_prompt_tokens.observe(prompt)
        self.request_generation_tokens.observe(generated)
        self.request_params_max_tokens.observe(max_tokens)
