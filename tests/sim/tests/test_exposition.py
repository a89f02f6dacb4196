# SPDX-License-Identifier: GPL-3.0-or-later
"""The metrics page: what Prometheus reads from it is what the engine holds."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from sim.engine import Engine
from sim.exposition import MetricsPage
from sim.stats import MAX_LORA_SERIES, length_buckets
from sim.tests.virtual import engine, run, sequence

LABELS = {"engine": "0", "model_name": 'a "model"'}


def page(target: Engine) -> MetricsPage:
    """Return the page of an engine whose model time 0 is one million seconds after the epoch."""
    return MetricsPage(target, 'a "model"', lambda model_time: 1e6 + model_time)


def samples(target: Engine) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Return the samples of the page, by name and by labels other than the two that all have."""
    result: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(page(target).render().decode()):
        for sample in family.samples:
            own = tuple(sorted((key, value) for key, value in sample.labels.items() if LABELS.get(key) != value))
            result.setdefault(sample.name, {})[own] = sample.value
    return result


def test_gauges_follow_the_scheduler() -> None:
    target = engine(blocks=64, seqs=1)
    for _ in range(3):
        target.submit(sequence(range(16), max_tokens=2), 0.0)
    values = samples(target)
    assert values["vllm:num_requests_running"][()] == 1
    assert values["vllm:num_requests_waiting"][()] == 2
    assert values["vllm:kv_cache_usage_perc"][()] == 4 / 64
    run(target)
    values = samples(target)
    assert values["vllm:num_requests_running"][()] == values["vllm:num_requests_waiting"][()] == 0
    assert values["vllm:kv_cache_usage_perc"][()] == 0


def test_counters_and_histograms_after_a_run() -> None:
    target = engine()
    for now in (0.0, 10.0):
        target.submit(sequence(range(20), max_tokens=3), now)
        run(target)
    values = samples(target)
    assert values["vllm:prefix_cache_queries_total"][()] == 40
    assert values["vllm:prefix_cache_hits_total"][()] == 16
    assert values["vllm:prompt_tokens_total"][()] == 40
    assert values["vllm:generation_tokens_total"][()] == 6
    assert values["vllm:num_preemptions_total"][()] == 0
    assert values["vllm:request_success_total"][("finished_reason", "length"),] == 2
    assert values["vllm:time_to_first_token_seconds_count"][()] == 2
    assert values["vllm:inter_token_latency_seconds_count"][()] == 4
    buckets = values["vllm:inter_token_latency_seconds_bucket"]
    assert buckets[("le", "0.075"),] == 0
    assert buckets[("le", "0.15"),] == buckets[("le", "+Inf"),] == 4
    info = next(iter(values["vllm:cache_config_info"]))
    assert ("block_size", "4") in info
    assert ("num_gpu_blocks", "64") in info


def test_the_page_is_kept_until_something_changes() -> None:
    target = engine()
    metrics = page(target)
    before = metrics.render()
    assert metrics.render() is before
    target.submit(sequence(range(4)), 0.0)
    assert metrics.render() != before


def test_the_newest_series_of_lora_info_says_what_runs() -> None:
    target = engine(loras=2)
    idle = samples(target)["vllm:lora_requests_info"]
    assert list(idle) == [(("max_lora", "2"), ("running_lora_adapters", ""), ("waiting_lora_adapters", ""))]
    for number, adapter in enumerate(("a", "b", "c")):
        target.submit(sequence([number], max_tokens=3, adapter=adapter), 1.0)
    target.advance(1.02)
    series = samples(target)["vllm:lora_requests_info"]
    newest = dict(max(series.items(), key=lambda item: item[1])[0])
    assert newest == {"max_lora": "2", "running_lora_adapters": "a,b", "waiting_lora_adapters": "c"}
    run(target)
    assert max(samples(target)["vllm:lora_requests_info"].values()) > 1e6 + 1.0


def test_lora_series_do_not_grow_without_bound() -> None:
    target = engine(loras=1)
    for number in range(2 * MAX_LORA_SERIES):
        target.submit(sequence([number], adapter=f"adapter-{number}"), float(number * 10))
        run(target)
    assert len(samples(target)["vllm:lora_requests_info"]) == MAX_LORA_SERIES


def test_without_adapters_there_is_no_lora_info() -> None:
    assert "vllm:lora_requests_info" not in samples(engine())


def test_length_buckets_end_at_the_longest_sequence() -> None:
    assert length_buckets(100) == (1, 2, 5, 10, 20, 50, 100)
    assert length_buckets(99) == (1, 2, 5, 10, 20, 50)
