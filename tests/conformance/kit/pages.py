# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics pages as the engines write them: their names, labels, order and noise, with the figures a case wants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

MODEL = "meta-llama/Llama-3.1-8B-Instruct"


@dataclass(frozen=True)
class Figures:
    """What a page says of an engine's load."""

    waiting: int = 0
    running: int = 0
    kv: float = 0.0
    """Used part of the KV cache, 0 to 1."""
    block_size: int = 16
    blocks: int = 2048
    ran: int = 0
    """Requests that have ended."""


def vllm(figures: Figures) -> str:
    """vLLM's, with one engine core."""
    own = {"engine": "0", "model_name": MODEL}
    config = {
        "_block_size_resolved": "True",
        "block_size": f"{figures.block_size}",
        "cache_dtype": "auto",
        "effective_attention_block_size": f"{figures.block_size}",
        "enable_prefix_caching": "True",
        "engine": "0",
        "gpu_memory_utilization": "0.92",
        "hash_block_size": "None",
        "kv_cache_size_tokens": f"{figures.block_size * figures.blocks}",
        "num_cpu_blocks": "None",
        "num_gpu_blocks": f"{figures.blocks}",
        "num_gpu_blocks_override": "None",
        "prefix_caching_hash_algo": "sha256",
        "sliding_window": "None",
        "user_specified_block_size": "False",
    }
    return "".join(
        (
            _process(),
            _gauge("vllm:num_requests_running", "Number of requests in model execution batches.", own, figures.running),
            _gauge("vllm:num_requests_waiting", "Number of requests waiting to be processed.", own, figures.waiting),
            _gauge(
                "vllm:num_requests_waiting_by_reason",
                "Number of waiting requests by reason.",
                {**own, "reason": "capacity"},
                99,
            ),
            _gauges(
                "vllm:engine_sleep_state",
                "Engine sleep state.",
                "sleep_state",
                own,
                {"awake": 1, "weights_offloaded": 0, "discard_all": 0},
            ),
            _gauge("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", own, figures.kv),
            _counter("vllm:prefix_cache_queries", "Prefix cache queries, in tokens.", own, 1000),
            _counter("vllm:request_success", "Count of processed requests.", {**own, "finished_reason": "stop"}, 7),
            _histogram("vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", own),
            _histogram("vllm:e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", own),
            _gauge("vllm:cache_config_info", "Information of the LLMEngine CacheConfig", config, 1),
        )
    )


def sglang(figures: Figures, info: bool = False) -> str:
    """SGLang's; servers before 0.5.11 have the size of the cache in the labels of an ``info``."""
    own = {"engine_type": "unified", "model_name": MODEL, "moe_ep_rank": "0", "pp_rank": "0", "tp_rank": "0"}
    config = {"page_size": f"{figures.block_size}", "num_pages": f"{figures.blocks}"}
    size = (
        _gauge("sglang:page_size", "KV cache page size in tokens.", own, figures.block_size),
        _gauge("sglang:num_pages", "Number of KV cache pages.", own, figures.blocks),
    )
    return "".join(
        (
            _gauge("sglang:num_running_reqs", "The number of running requests.", own, figures.running),
            _gauge("sglang:num_queue_reqs", "The number of requests in the waiting queue.", own, figures.waiting),
            _gauge("sglang:num_grammar_queue_reqs", "The number of requests in the grammar queue.", own, 77),
            _gauge("sglang:gen_throughput", "The generation throughput (token/s).", own, 812.5),
            _gauge("sglang:cache_hit_rate", "The prefix cache hit rate.", own, 0.4),
            _gauge("sglang:token_usage", "The token usage.", own, figures.kv),
            _gauge("sglang:full_token_usage", "The token usage for full attention layers.", own, 0.99),
            _gauge("sglang:num_used_tokens", "The number of used tokens.", own, 12345),
            _gauge("sglang:cache_config_info", "Information of the cache configuration.", config, 1) if info else "",
            *(() if info else size),
            _histogram("sglang:time_to_first_token_seconds", "Histogram of time to first token in seconds.", own),
        )
    )


def sglang_with_info(figures: Figures) -> str:
    """The same, of an older server."""
    return sglang(figures, info=True)


def trtllm_serve(figures: Figures) -> str:
    """trtllm-serve's, at ``/prometheus/metrics``."""
    own = {"engine_type": "trtllm", "model_name": MODEL}
    return "".join(
        (
            _process(),
            _counter("trtllm_request_success", "Count of successfully processed requests.", own, 12),
            _histogram("trtllm_e2e_request_latency_seconds", "Histogram of end to end request latency.", own),
            _gauge("trtllm_num_requests_running", "Number of requests being processed.", own, figures.running),
            _gauge("trtllm_num_requests_waiting", "Number of requests that wait.", own, figures.waiting),
            _gauge("trtllm_kv_cache_hit_rate", "KV cache hit rate", own, 0.3),
            _gauge("trtllm_kv_cache_utilization", "KV cache utilization", own, figures.kv),
            _gauge("trtllm_kv_cache_tokens_per_block", "Tokens per KV cache block", own, figures.block_size),
            _gauge("trtllm_kv_cache_max_blocks", "KV cache blocks", own, figures.blocks),
        )
    )


def triton_tensorrt_llm(figures: Figures) -> str:
    """Triton's with its TensorRT-LLM backend."""
    own = {"model": "tensorrt_llm", "version": "1"}
    requests = {"context": 1, "scheduled": figures.running, "max": 512, "active": 600, "waiting": figures.waiting}
    blocks = {
        "fraction": figures.kv,
        "tokens_per": figures.block_size,
        "used": 3,
        "free": 9,
        "max": figures.blocks,
    }
    memory = {"pinned": 0, "gpu": 1610236, "cpu": 0}
    return "".join(
        (
            _triton(),
            _gauges("nv_trt_llm_request_metrics", "TRT LLM request metrics", "request_type", own, requests),
            _gauges("nv_trt_llm_runtime_memory_metrics", "TRT LLM runtime memory metrics", "memory_type", own, memory),
            _gauges(
                "nv_trt_llm_kv_cache_block_metrics",
                "TRT LLM KV cache block metrics",
                "kv_cache_block_type",
                own,
                blocks,
            ),
        )
    )


def triton(figures: Figures) -> str:
    """Triton's with other backends: it has no gauge of what it works on, and counts what it ever did."""
    own = {"model": "bert", "version": "1"}
    text = "Instantaneous number of pending requests awaiting execution per-model."
    return "".join(
        (
            _triton(),
            _counter("nv_inference_exec_count", "Number of model executions performed", own, figures.ran, suffix=""),
            _gauge("nv_inference_pending_request_count", text, own, figures.waiting),
        )
    )


def llamacpp(figures: Figures, kv: bool = False) -> str:
    """llama.cpp's server (``--metrics``), without labels; older ones have ``kv``."""
    usage = _gauge("llamacpp:kv_cache_usage_ratio", "KV-cache usage. 1 means 100 percent usage", {}, figures.kv)
    return "".join(
        (
            _counter("llamacpp:prompt_tokens", "Number of prompt tokens processed", {}, 371),
            _counter("llamacpp:tokens_predicted", "Number of generation tokens processed", {}, 150),
            _counter("llamacpp:n_decode", "Total number of llama_decode() calls", {}, 160),
            _counter("llamacpp:n_tokens_max", "Largest observed sequence length", {}, 128, suffix=""),
            _gauge("llamacpp:prompt_tokens_seconds", "Average prompt throughput in tokens/s", {}, 30.3),
            _gauge("llamacpp:predicted_tokens_seconds", "Average generation throughput in tokens/s", {}, 12.5),
            usage if kv else "",
            _gauge("llamacpp:requests_processing", "Number of requests processing", {}, figures.running),
            _gauge("llamacpp:requests_deferred", "Number of requests deferred", {}, figures.waiting),
            _gauge("llamacpp:n_busy_slots_per_decode", "Average number of busy slots", {}, 1.5),
        )
    )


def llamacpp_with_kv(figures: Figures) -> str:
    """The same, of an older server."""
    return llamacpp(figures, kv=True)


def ollama(figures: Figures) -> str:
    """Somebody's who has a page, and none of the figures on it."""
    return _process()


PAGES: Mapping[str, Callable[[Figures], str]] = {
    "vllm": vllm,
    "sglang": sglang,
    "trtllm-serve": trtllm_serve,
    "triton-tensorrt-llm": triton_tensorrt_llm,
    "triton": triton,
    "llamacpp": llamacpp,
}
"""By the value of the pod's engine label."""


def _process() -> str:
    python = {"implementation": "CPython", "major": "3", "minor": "12", "patchlevel": "13", "version": "3.12.13"}
    return "".join(
        (
            _counter("python_gc_objects_collected", "Objects collected during gc", {"generation": "0"}, 9581),
            _gauge("python_info", "Python platform information", python, 1),
            _gauge("process_resident_memory_bytes", "Resident memory size in bytes.", {}, 5.8e9),
            _counter("process_cpu_seconds", "Total user and system CPU time spent in seconds.", {}, 61.7),
        )
    )


def _triton() -> str:
    own = {"model": "tensorrt_llm", "version": "1"}
    return "".join(
        (
            _counter("nv_inference_request_success", "Number of successful inference requests", own, 12, suffix=""),
            _counter(
                "nv_inference_queue_duration_us", "Cumulative queuing duration in microseconds", own, 8, suffix=""
            ),
            _gauge("nv_gpu_utilization", "GPU utilization rate [0.0 - 1.0)", {"gpu_uuid": "GPU-1a2b"}, 0.97),
        )
    )


def _gauge(name: str, text: str, labels: Mapping[str, str], value: float) -> str:
    return f"# HELP {name} {text}\n# TYPE {name} gauge\n{name}{_labels(labels)} {value:.12g}\n"


def _gauges(name: str, text: str, label: str, labels: Mapping[str, str], values: Mapping[str, float]) -> str:
    lines = [f"{name}{_labels({label: kind, **labels})} {value:.12g}\n" for kind, value in values.items()]
    return f"# HELP {name} {text}\n# TYPE {name} gauge\n" + "".join(lines)


def _counter(name: str, text: str, labels: Mapping[str, str], value: float, suffix: str = "_total") -> str:
    full = name + suffix
    return f"# HELP {full} {text}\n# TYPE {full} counter\n{full}{_labels(labels)} {value:.12g}\n"


def _histogram(name: str, text: str, labels: Mapping[str, str], bounds: Sequence[float] = (0.1, 0.5, 1, 5, 10)) -> str:
    buckets = [f"{name}_bucket{_labels({'le': f'{bound:g}', **labels})} 3\n" for bound in bounds]
    rest = f"{name}_bucket{_labels({'le': '+Inf', **labels})} 3\n{name}_count{_labels(labels)} 3\n{name}_sum"
    return f"# HELP {name} {text}\n# TYPE {name} histogram\n{''.join(buckets)}{rest}{_labels(labels)} 1.5\n"


def _labels(labels: Mapping[str, str]) -> str:
    pairs = ",".join(f'{key}="{value}"' for key, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""
