# SPDX-License-Identifier: GPL-3.0-or-later
"""JSON bodies, answers, metric pages, HTTP answers, configurations and flags that somebody else wrote."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp import config
from epp.bbr.adapters import model_family
from epp.bbr.plugins import build
from epp.bbr.settings import plugin_text
from epp.config import ConfigError
from epp.datalayer import http
from epp.datalayer.exposition import MetricSpec, PageReader, samples
from epp.datalayer.file import EndpointsFileError
from epp.datalayer.file import parse as parse_endpoints
from epp.datalayer.mapping import ENGINES, Mapper, NoMetrics
from epp.datalayer.models import merged_models, read_models
from epp.flags import FlagError
from epp.flags import parse as parse_flags
from epp.model import Endpoint, EndpointMetrics
from epp.requests import BodyError, ModelRenamer, Parsers, UsageTail, replace_model
from epp.requests.apis import APIS, READERS
from epp.requests.members import MemberReader

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
KEYS = (
    *("model", "prompt", "messages", "input", "stream", "max_tokens", "usage", "instructions", "cache_salt", "x"),
    *("tools", "system", "token_ids", "sampling_params", "meta_info", "image_url", "input_audio", "source", "url"),
)
DOCUMENTS = st.dictionaries(st.sampled_from(KEYS), JSON, max_size=6)
MODELS = st.dictionaries(st.sampled_from(KEYS), JSON, max_size=5).flatmap(
    lambda rest: st.text(max_size=8).map(lambda model: {**rest, "model": model})
)
SEPARATORS = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", " :\t")])
PARSERS = Parsers([*APIS, *READERS])
ENDS = [api.end for apis in APIS.values() for api in apis]
ENDS += [end for readers in READERS.values() for reader in readers for end in reader.PATHS]
PATHS = st.sampled_from([*ENDS, "/x", ""])
KINDS = st.sampled_from(["application/json", "", "multipart/form-data; boundary=b", "application/grpc", "text/plain"])
PARTS = st.lists(
    st.sampled_from(
        [
            *(
                '"image_url":"data:image/png;base64,iVBORw0KGgo',
                '"source":{"media_type":"image/',
                '"data":"',
                "\\",
                '"',
            ),
            *('"input_audio":{"data":"UklGRgAAAABXQVZFZm10IA', '"url":"data:', "}", "]", '"video_url":{'),
        ]
    ),
    max_size=8,
).map(lambda texts: ('{"model":"m","messages":[{' + "".join(texts) + "}]}").encode())
FORMS = st.lists(
    st.sampled_from(
        [
            *(b"--b", b"\r\n", b"--", b'Content-Disposition: form-data; name="model"', b"; filename=x", b"m", b"\0"),
            b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n',
        ]
    ),
    max_size=10,
).map(b"".join)
FRAMES = st.binary(max_size=40).flatmap(
    lambda data: st.sampled_from([data, b"\0" + len(data).to_bytes(4, "big") + data])
)


def damaged(text: bytes) -> st.SearchStrategy[bytes]:
    """The text, cut, or with some bytes put in."""
    cut = st.integers(0, len(text)).map(lambda at: text[:at])
    put = st.tuples(st.integers(0, len(text)), st.binary(max_size=3)).map(lambda p: text[: p[0]] + p[1] + text[p[0] :])
    return st.one_of(st.just(text), cut, put)


BODIES = st.one_of(
    st.binary(max_size=100),
    PARTS.flatmap(lambda body: damaged(body)),
    FORMS,
    FRAMES,
    DOCUMENTS.map(lambda document: json.dumps(document).encode()).flatmap(lambda body: damaged(body)),
)


def parse_anything(path: str, kind: str, body: bytes) -> None:
    for truncated in (False, True):
        with contextlib.suppress(BodyError):
            PARSERS.parse(path, kind, body, truncated=truncated)
    replace_model(body, "other", kind)
    tail = UsageTail()
    tail.feed(body)
    tail.usage()


def splice(document: dict[str, Any], separators: tuple[str, str], ascii_only: bool, cuts: list[int]) -> None:
    body = json.dumps(document, separators=separators, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    with contextlib.suppress(BodyError, UnicodeDecodeError):
        parsed = PARSERS.parse("/v1/completions", "", body)
        assert parsed.model == document["model"]
        replaced = replace_model(body, "other")
        assert replaced is not None
        assert json.loads(replaced.body) == {**document, "model": "other"}
        assert replaced.model == document["model"]
    places = sorted({cut % (len(body) + 1) for cut in cuts})
    whole, renamer = ModelRenamer("m", "client"), ModelRenamer("m", "client")
    parts = [body[a:b] for a, b in zip([0, *places], [*places, len(body)], strict=True)]
    out = b"".join(renamer.feed(part, False) for part in parts) + renamer.feed(b"", True)
    assert out == whole.feed(body, True), "how an answer is cut must not matter"


def test_bodies(campaign: Any, one_round: Any) -> None:
    @one_round
    @given(PATHS, KINDS, BODIES)
    def target(path: str, kind: str, body: bytes) -> None:
        campaign.timed(lambda: parse_anything(path, kind, body))

    campaign.run(target)


def test_splicing(campaign: Any, one_round: Any) -> None:
    @one_round
    @given(MODELS, SEPARATORS, st.booleans(), st.lists(st.integers(0, 500), max_size=4))
    def target(document: dict[str, Any], separators: Any, ascii_only: bool, cuts: list[int]) -> None:
        campaign.timed(lambda: splice(document, separators, ascii_only, cuts))

    campaign.run(target)


METRICS = [
    b'vllm:num_requests_waiting{model_name="m"} 3.0',
    b"vllm:num_requests_running 2",
    b'vllm:kv_cache_usage_perc{engine="0"} 0.5',
    b'vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0',
    b'vllm:lora_requests_info{max_lora="2",running_lora_adapters="a, b",waiting_lora_adapters=""} 1.7e9',
    b"# HELP vllm:num_requests_waiting text",
    b'nv_trt_llm_request_metrics{request_type="waiting"} NaN',
]
LINES = st.lists(st.sampled_from(METRICS).flatmap(damaged), max_size=8).map(b"\n".join)


READER = PageReader()


def read_page(page: bytes, engine: str, now: float) -> None:
    READER.turn(page, now)
    spec = MetricSpec("vllm:num_requests_waiting")
    whole = samples(page, spec)
    assert all(sample in whole for sample in READER.samples(spec)), "what it remembers is never taken for what is there"
    with contextlib.suppress(NoMetrics):
        found = Mapper().read(page, {"llm-d.ai/engine-type": engine}, EndpointMetrics())
        assert found.waiting >= 0
        assert found.running >= 0
        assert 0.0 <= found.kv_cache_usage <= 1.0
        assert found.block_size >= 0
        assert found.num_blocks >= 0
    list(samples(page, MetricSpec("vllm:num_requests_waiting", {"model_name": "m"})))


def read_answer(parts: list[bytes]) -> None:
    parser = http._Parser()
    with contextlib.suppress(http.HttpError):
        for part in parts:
            if parser.feed(part) is not None:
                return
        parser.end()


ANSWERS = st.one_of(
    st.binary(max_size=80),
    st.sampled_from(
        [
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            b"HTTP/1.0 200 OK\r\n\r\nabc",
        ]
    ).flatmap(damaged),
)


def test_metric_pages_and_http(campaign: Any, one_round: Any) -> None:
    @one_round
    @given(LINES | st.binary(max_size=100), st.sampled_from(sorted(ENGINES)), ANSWERS, st.integers(1, 9))
    def target(page: bytes, engine: str, answer: bytes, step: int) -> None:
        campaign.timed(lambda: read_page(page, engine, step * 0.3))
        campaign.timed(lambda: read_answer([answer[at : at + step] for at in range(0, len(answer), step)]))

    campaign.run(target)


MODEL_LISTS = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([b'{"object":"list","data":[{"id":"a","x":[1]},{"id":"b"}]}', b'{"data":[{"id":1}]}']).flatmap(
        lambda page: damaged(page)
    ),
)
FAMILIES = st.dictionaries(
    st.sampled_from(["baseModel", "adapters", "config"]),
    st.sampled_from(["m", "- a\n- b", "baseModel: m\nadapters: [a]", "&a [*a]", "[", "- {a: b}", "~"])
    | st.text(max_size=9),
)
PLUGINS = st.tuples(
    st.sampled_from(["body-field-to-header", "base-model-to-header", "x", ""]),
    st.text(max_size=5),
    st.text(max_size=20),
).map(":".join)
MEMBERS = MemberReader(["model", "stream", "a-b"])


def route_by_body(kind: str, body: bytes, page: bytes, data: dict[str, str], text: str) -> None:
    for truncated in (False, True):
        with contextlib.suppress(BodyError):
            found = MEMBERS.read(kind, body, truncated)
            assert all(isinstance(value, str) for value in found.values())
    with contextlib.suppress(ValueError):
        endpoint = Endpoint("e", "", "e", "10.0.0.1", 1)
        endpoint.models = read_models(page)
        merged = json.loads(merged_models([endpoint, endpoint]) or "")
        assert [each["id"] for each in merged["data"]] == sorted(endpoint.models)
    with contextlib.suppress(ValueError):
        assert model_family(data).base
    with contextlib.suppress(FlagError):
        build([plugin_text(text)], str)


def test_bodies_to_headers_and_lists_of_models(campaign: Any, one_round: Any) -> None:
    @one_round
    @given(KINDS, BODIES, MODEL_LISTS, FAMILIES, PLUGINS)
    def target(kind: str, body: bytes, page: bytes, data: dict[str, str], text: str) -> None:
        campaign.timed(lambda: route_by_body(kind, body, page, data, text))

    campaign.run(target)


WORDS = st.sampled_from(
    [
        *("apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n", "plugins:\n", "- type: queue-scorer\n"),
        *("- {type: prefix-cache-scorer, parameters: {blockSize: 5}}\n", "- {type: max-score-picker, name: p}\n"),
        *(
            "schedulingProfiles:\n- name: d\n  plugins: [{pluginRef: queue-scorer}]\n",
            "  weight: .inf\n",
        ),
        *("saturationDetector: {queueDepthThreshold: 5}\n", "flowControl: {maxBytes: 1Gi}\n", "featureGates: [x]\n"),
        *("dataLayer: {sources: []}\n", "  parameters: ", "&a [*a, *a]\n", "? [x]\n: y\n", "\t", "{", "- ", "~\n"),
        *("requestHandler: {parsers: [{pluginRef: x}]}\n", "!!python/object:os.system x\n", "2024-01-01\n"),
    ]
)
CONFIGS = st.lists(WORDS | st.text(max_size=6), max_size=8).map("".join)
ENDPOINTS = st.fixed_dictionaries(
    {
        "endpoints": st.lists(
            DOCUMENTS
            | st.dictionaries(
                st.sampled_from(["name", "address", "port", "labels", "namespace"]),
                JSON | st.just("10.0.0.1"),
                max_size=5,
            ),
            max_size=3,
        )
    }
)


def load_anything(text: str, endpoints: dict[str, Any]) -> None:
    for document in (text, "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n" + text):
        with contextlib.suppress(ConfigError):
            loaded = config.load(document, "fuzz")
            assert config.load(config.effective(loaded), "again") == loaded
        with contextlib.suppress(EndpointsFileError):
            parse_endpoints(document, "fuzz")
    with contextlib.suppress(EndpointsFileError):
        parse_endpoints(json.dumps(endpoints), "fuzz")


def test_configurations(campaign: Any, one_round: Any) -> None:
    @one_round
    @given(CONFIGS, ENDPOINTS)
    def target(text: str, endpoints: dict[str, Any]) -> None:
        campaign.timed(lambda: load_anything(text, endpoints))

    campaign.run(target)


FLAGS = st.sampled_from(
    [
        "--pool-name",
        "--grpc-port",
        "--v",
        "-v",
        "--drain-timeout",
        "--tls-cipher-suites",
        "--endpoint-target-ports",
        "--x",
    ]
)
ARGUMENTS = st.lists(st.tuples(FLAGS, st.sampled_from(["=", " ", ""]), st.text(max_size=6)).map("".join), max_size=4)


def test_flags(campaign: Any, one_round: Any) -> None:
    def attempt(arguments: list[str]) -> None:
        with contextlib.suppress(FlagError):
            parse_flags(arguments, {})

    @one_round
    @given(ARGUMENTS)
    def target(arguments: list[str]) -> None:
        campaign.timed(lambda: attempt(arguments))

    campaign.run(target)


def test_a_failure_is_found(campaign: Any, one_round: Any) -> None:
    """The campaign itself: a broken property ends it."""

    @one_round
    @given(st.integers())
    def target(number: int) -> None:
        campaign.timed(lambda: None)
        assert number < 1000

    with pytest.raises(AssertionError):
        campaign.run(target)
