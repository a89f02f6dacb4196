# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding series on a page, and what pages come to for each engine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from epp.datalayer.exposition import MetricSpec, samples
from epp.datalayer.mapping import ENGINES, EngineMetrics, Mapper, NoMetrics
from epp.model import EndpointMetrics

PAGE = b"""\
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
vllm:num_requests_running{engine="0",model_name="m"} 7.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:lora_requests_info{max_lora="4",running_lora_adapters="old",waiting_lora_adapters=""} 1.7e9
vllm:lora_requests_info{max_lora="4",running_lora_adapters="a, b",waiting_lora_adapters="c"} 1.8e9
vllm:lora_requests_info{max_lora="4",running_lora_adapters="older",waiting_lora_adapters=""} 1.6e9
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",num_gpu_blocks="512"} 1.0
"""


def values(page: bytes, text: str) -> list[float]:
    return [sample.value for sample in samples(page, MetricSpec.parse(text))]


def read(page: bytes, old: EndpointMetrics | None = None, engine: str = "") -> EndpointMetrics:
    labels = {"llm-d.ai/engine-type": engine} if engine else {}
    return Mapper().read(page, labels, old or EndpointMetrics())


def test_a_vllm_page() -> None:
    metrics = read(PAGE)
    assert (metrics.waiting, metrics.running, metrics.kv_cache_usage) == (3, 7, 0.25)
    assert (metrics.block_size, metrics.num_blocks, metrics.max_lora) == (16, 512, 4)
    assert metrics.running_adapters == {"a", "b"}
    assert metrics.waiting_adapters == {"c"}


def test_what_a_page_leaves_out_stays() -> None:
    old = read(PAGE)
    new = read(b"vllm:num_requests_waiting 1\n", old)
    assert (new.waiting, new.running, new.kv_cache_usage, new.num_blocks) == (1, 7, 0.25, 512)
    assert new.running_adapters == old.running_adapters
    assert new is not old


def test_several_engines_behind_one_endpoint_add_up() -> None:
    page = b"".join(
        b'vllm:num_requests_waiting{engine="%d"} %d\nvllm:kv_cache_usage_perc{engine="%d"} 0.%d\n'
        b'vllm:cache_config_info{block_size="16",engine="%d",num_gpu_blocks="100"} 1\n' % (i, i + 1, i, 2 * i, i)
        for i in range(3)
    )
    metrics = read(page)
    assert (metrics.waiting, metrics.num_blocks) == (6, 300)
    assert metrics.kv_cache_usage == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (b"x 1\n", [1.0]),
        (b"x 1", [1.0]),
        (b"x{} 2\n", [2.0]),
        (b'x{a="}"} 3 1700000000\n', [3.0]),
        (b'# x 9\ny 1\nx{a="q\\"}"} 4\n', [4.0]),
        (b"xx 1\nx_total 2\n", []),
        (b"x 1\nx 2\ny 9\nx 3\n", [1.0, 2.0, 3.0]),
        (b"x NaN\nx +Inf\nx -Inf\n", []),
        (b"x\nx \nx{\nx{} \nx abc\nx 5\n", [5.0]),
        (b"x 1\r\n", [1.0]),
        (b"x\t6\n", [6.0]),
        (b"", []),
    ],
)
def test_lines(page: bytes, expected: list[float]) -> None:
    assert values(page, "x") == expected


def test_labels_select_series() -> None:
    page = b'm{kind="a",n="1"} 1\nm{kind="b"} 2\nm{kind="a"} 3\n'
    assert values(page, "m{kind=a}") == [1.0, 3.0]
    assert values(page, 'm{kind="a", n="1"}') == [1.0]
    assert values(page, "m{kind=c}") == []


def test_labels_are_unescaped() -> None:
    (sample,) = samples(b'm{a="1\\\\2\\"3\\n4",b=""} 1\n', MetricSpec("m"))
    assert sample.labels() == {"a": '1\\2"3\n4', "b": ""}


@pytest.mark.parametrize("text", ["", "9a", "a{", "a{b}", "a{b=c", "a b", 'a{b="c}'])
def test_no_specs(text: str) -> None:
    with pytest.raises(ValueError, match="is not a metric"):
        MetricSpec.parse(text)


@given(st.binary(max_size=400))
def test_any_page_is_survived(page: bytes) -> None:
    list(samples(b"x" + page + b"\nx" + page, MetricSpec.parse("x{a=b}")))


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.floats(-1e9, 1e9), min_size=1, max_size=5
    )
)
def test_agrees_with_the_clients_own_writer(series: dict[str, float]) -> None:
    registry = CollectorRegistry()
    gauge = Gauge("g", "text\nof two lines", ["label"], registry=registry)
    for label, value in series.items():
        gauge.labels(label).set(value)
    found = samples(generate_latest(registry), MetricSpec("g"))
    assert {sample.labels()["label"]: sample.value for sample in found} == pytest.approx(series)


@pytest.mark.parametrize(
    ("engine", "page", "expected"),
    [
        (
            "sglang",
            b"sglang:num_queue_reqs 2\nsglang:num_running_reqs 5\nsglang:token_usage 0.5\n"
            b'sglang:cache_config_info{num_pages="99",page_size="64"} 1\n',
            (2, 5, 0.5, 64, 99),
        ),
        (
            "trtllm-serve",
            b"trtllm_num_requests_waiting 1\ntrtllm_num_requests_running 2\ntrtllm_kv_cache_utilization 0.1\n"
            b"trtllm_kv_cache_tokens_per_block 32\ntrtllm_kv_cache_max_blocks 1000\n",
            (1, 2, 0.1, 32, 1000),
        ),
        (
            "triton-tensorrt-llm",
            b'nv_trt_llm_request_metrics{request_type="waiting"} 4\n'
            b'nv_trt_llm_request_metrics{request_type="scheduled"} 6\n'
            b'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction"} 0.9\n'
            b'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="tokens_per"} 64\n'
            b'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max"} 77\n',
            (4, 6, 0.9, 64, 77),
        ),
        ("triton", b"nv_inference_pending_request_count 8\nnv_inference_exec_count 3\n", (8, 0, 0.0, 0, 0)),
    ],
)
def test_other_engines(engine: str, page: bytes, expected: tuple[float, ...]) -> None:
    metrics = read(page, engine=engine)
    got = (metrics.waiting, metrics.running, metrics.kv_cache_usage, metrics.block_size, metrics.num_blocks)
    assert got == expected


def test_engine_by_label() -> None:
    mapper = Mapper({**ENGINES, "own": EngineMetrics("own")}, "sglang", ("engine",))
    assert mapper.engine({}).name == "sglang"
    assert mapper.engine({"engine": "own"}).name == "own"
    assert mapper.engine({"engine": "what"}).name == "sglang"
    assert Mapper().engine({"inference.networking.k8s.io/engine-type": "triton"}).name == "triton"


def test_odd_values_are_kept_within_reason() -> None:
    page = b'vllm:num_requests_waiting -4\nvllm:kv_cache_usage_perc 7\nvllm:cache_config_info{block_size="None"} 1\n'
    metrics = read(page)
    assert (metrics.waiting, metrics.kv_cache_usage, metrics.block_size) == (0, 1.0, 0)


def test_a_page_without_load_is_an_error() -> None:
    with pytest.raises(NoMetrics, match="none of vllm's metrics \\(vllm:num_requests_waiting"):
        read(b"python_info 1\n")
