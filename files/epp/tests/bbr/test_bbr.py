# SPDX-License-Identifier: GPL-3.0-or-later
"""Body-based routing: flags, plugins, ConfigMaps, and what becomes of requests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    HttpBody,
    HttpHeaders,
    HttpTrailers,
    ProcessingRequest,
    ProcessingResponse,
    ProtocolConfiguration,
)

from epp.bbr.adapters import LABELS, Adapters, AdapterWatcher, ModelFamily, model_family
from epp.bbr.figures import Figures
from epp.bbr.plugins import BASE_MODEL_HEADER, MODEL_HEADER, build, needs_adapters
from epp.bbr.router import BodyRouter
from epp.bbr.settings import BbrSettings, PluginText, parse, plugin_text
from epp.extproc import StreamMachine, StreamService, Tracing
from epp.extproc.messages import BodyMode
from epp.flags import FlagError, help_text
from epp.requests import BodyError
from epp.requests.members import MemberReader

JSON = {":method": "POST", ":path": "/v1/completions", "content-type": "application/json"}
BASES = {"sql-lora": "llama", "llama": "llama"}
BODY = b'{"prompt": "x", "model": "sql-lora"}'


class TestFlags:
    def test_defaults(self) -> None:
        settings = parse([], {"NAMESPACE": "ns"})
        assert (settings.grpc_port, settings.grpc_health_port, settings.metrics_port) == (9004, 9005, 9090)
        assert (settings.secure_serving, settings.metrics_endpoint_auth, settings.streaming) == (True, True, False)
        assert settings.namespace == "ns"
        assert parse(["--namespace=other"], {"NAMESPACE": "ns"}).namespace == "other"

    def test_plugins_may_be_repeated_and_have_commas(self) -> None:
        texts = ['body-field-to-header:a:{"fieldName":"x","headerName":"X-A"}', "base-model-to-header:b"]
        settings = parse([f"--plugin={text}" for text in texts], {})
        assert settings.plugin == tuple(texts)
        assert plugin_text(texts[1]) == PluginText("base-model-to-header", "b", {})

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--grpc-port=70000"], "ports end at 65535"),
            (["--grpc-port=9090"], "must differ"),
            (["--plugin=x"], "write TYPE:NAME"),
            (["--plugin=x:y:{"], "no JSON"),
            (["--plugin=x:y:[]"], "JSON object"),
            (["--enable-cert-reload"], "needs --cert-path"),
            (["--zap-encoder=xml"], "write json or console"),
            (["--pool-name=x"], "unknown flag --pool-name"),
            (["--transport=tcp"], "write h2 or grpcio"),
        ],
    )
    def test_nonsense(self, arguments: list[str], message: str) -> None:
        with pytest.raises(FlagError, match=message):
            parse(arguments, {})

    def test_help(self) -> None:
        assert "--streaming" in help_text(BbrSettings)
        assert "(default 9004)" in help_text(BbrSettings)


class TestPlugins:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("other:x", "unknown type"),
            ("body-field-to-header:x", "needs the parameter fieldName"),
            ('body-field-to-header:x:{"fieldName":"a","headerName":3}', "needs the parameter headerName"),
            ('body-field-to-header:x:{"fieldName":"a","headerName":"a b"}', "no name of a header"),
            ('body-field-to-header:x:{"fieldName":"a","headerName":"b","c":1}', "unknown parameter 'c'"),
            ('base-model-to-header:x:{"a":1}', "known are none"),
        ],
    )
    def test_nonsense(self, text: str, message: str) -> None:
        with pytest.raises(FlagError, match=message):
            build([plugin_text(text)], str)

    def test_older_spelling_of_parameters(self) -> None:
        (found,) = build([plugin_text('body-field-to-header:x:{"field_name":"a","header_name":"B"}')], str)
        assert (found.member, found.header) == ("a", "B")

    def test_who_needs_adapters(self) -> None:
        assert needs_adapters([])
        assert not needs_adapters([plugin_text("body-field-to-header:x")])


class TestMembers:
    def test_scalars(self) -> None:
        body = b'{"a":"x\\u00e9","b":1.50,"c":true,"d":null,"e":{},"f":[],"g":""}'
        found = MemberReader(list("abcdefgh")).read("application/json", body)
        assert found == {"a": "x\u00e9", "b": "1.50", "c": "true", "g": ""}
        assert MemberReader(["a"]).read("application/json", body[:20], truncated=True) == {"a": "x\u00e9"}

    def test_forms(self) -> None:
        body = (
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n\0\r\n'
            b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n--b--\r\n'
        )
        kind = "multipart/form-data; boundary=b"
        assert MemberReader(["model", "file"]).read(kind, body) == {"model": "whisper"}

    @pytest.mark.parametrize("kind", ["text/plain", "application/grpc"])
    def test_other_content(self, kind: str) -> None:
        assert MemberReader(["a"]).read(kind, b"\0{") == {}
        assert MemberReader(["a"]).read("application/json", b"") == {}

    @pytest.mark.parametrize(("body", "truncated"), [(b"{", False), (b"[1", True), (b"[]", False)])
    def test_no_json(self, body: bytes, truncated: bool) -> None:
        with pytest.raises(BodyError, match="failed to parse request body"):
            MemberReader(["a"]).read("application/json", body, truncated)

    def test_a_name_that_is_no_identifier(self) -> None:
        assert MemberReader(["a-b", "a-b"]).read("", b'{"a-b":"x"}') == {"a-b": "x"}


class Answers:
    """A service with its default plugins."""

    def __init__(self, mode: BodyMode = BodyMode.BUFFERED, tracing: Tracing | None = None, *texts: str) -> None:
        self.figures = Figures()
        plugins = build([plugin_text(text) for text in texts], lambda model: BASES.get(model, ""))
        router = BodyRouter(plugins, self.figures, tracing)
        self.service = StreamService(
            router, self.figures, machine=lambda hints: StreamMachine(hints, assumed=mode, marks=False)
        )

    def play(self, *messages: ProcessingRequest) -> list[ProcessingResponse]:
        exchange = self.service.open()
        found = []
        for message in messages:
            answers = exchange.receive(message.SerializeToString())
            found += [ProcessingResponse.FromString(answer) for answer in answers]  # type: ignore[union-attr]
        exchange.close("OK")
        return found

    def count(self, name: str) -> float:
        lines = self.figures.render().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def headers(fields: Mapping[str, str] = JSON, end: bool = False, mode: int | None = None) -> ProcessingRequest:
    pairs = [HeaderValue(key=key, raw_value=value.encode()) for key, value in fields.items()]
    message = ProcessingRequest(request_headers=HttpHeaders(headers=HeaderMap(headers=pairs), end_of_stream=end))
    if mode is not None:
        message.protocol_config.CopyFrom(ProtocolConfiguration(request_body_mode=mode))
    return message


def body(data: bytes, end: bool = True) -> ProcessingRequest:
    return ProcessingRequest(request_body=HttpBody(body=data, end_of_stream=end))


def set_on(message: ProcessingResponse) -> dict[str, str]:
    common = getattr(message, message.WhichOneof("response")).response
    return {each.header.key: each.header.raw_value.decode() for each in common.header_mutation.set_headers}


class TestStreams:
    def test_buffered(self) -> None:
        answers = Answers()
        first, second = answers.play(headers(), body(BODY))
        assert not set_on(first)
        assert set_on(second) == {MODEL_HEADER: "sql-lora", BASE_MODEL_HEADER: "llama"}
        assert second.request_body.response.clear_route_cache
        assert not second.HasField("dynamic_metadata")
        assert answers.count("bbr_success_total") == 1
        assert answers.count("bbr_plugin_duration_seconds_count") == 2

    @pytest.mark.parametrize("announced", [True, False])
    def test_full_duplex(self, announced: bool) -> None:
        answers = Answers(BodyMode.BUFFERED if announced else BodyMode.FULL_DUPLEX_STREAMED)
        mode = ProcessingMode.FULL_DUPLEX_STREAMED if announced else None
        first, *pieces = answers.play(headers(mode=mode), body(BODY[:9], end=False), body(BODY[9:]))
        assert set_on(first)[MODEL_HEADER] == "sql-lora"
        assert first.request_headers.response.clear_route_cache
        whole = b"".join(each.request_body.response.body_mutation.streamed_response.body for each in pieces)
        assert whole == BODY

    def test_a_part_of_a_body(self) -> None:
        part = b'{"model": "m", "prompt": "' + b"x" * 100
        _, second = Answers().play(headers(mode=ProcessingMode.BUFFERED_PARTIAL), body(part, end=False))
        assert set_on(second) == {MODEL_HEADER: "m"}

    def test_streamed_bodies_go_on_before_they_are_seen(self) -> None:
        first, second = Answers().play(headers(mode=ProcessingMode.STREAMED), body(BODY))
        assert not set_on(first)
        assert not set_on(second)

    def test_without_a_body(self) -> None:
        (only,) = Answers().play(headers({":method": "GET", ":path": "/v1/models"}, end=True))
        assert only.WhichOneof("response") == "request_headers"
        assert not only.request_headers.response.clear_route_cache

    @pytest.mark.parametrize("data", [b"{", b"[]", b"nonsense"])
    def test_broken_json(self, data: bytes) -> None:
        answers = Answers()
        _, second = answers.play(headers(), body(data))
        assert second.immediate_response.status.code == 400
        assert b"failed to parse request body" in second.immediate_response.body
        assert answers.count("bbr_model_not_parsed_total") == 1

    @pytest.mark.parametrize(
        ("data", "figure"),
        [
            (b'{"prompt":"x"}', 'bbr_body_field_not_found_total{field="model"}'),
            (b'{"model":null}', "bbr_model_not_in_body_total"),
            (b'{"model":""}', 'bbr_body_field_empty_total{field="model"}'),
        ],
    )
    def test_without_a_model_it_goes_on_unchanged(self, data: bytes, figure: str) -> None:
        answers = Answers()
        _, second = answers.play(headers(), body(data))
        assert second.WhichOneof("response") == "request_body"
        assert not set_on(second)
        assert answers.count(figure) == 1
        assert answers.count("bbr_success_total") == 0

    def test_an_unknown_model_takes_the_clients_base_model_away(self) -> None:
        sent = {**JSON, BASE_MODEL_HEADER.lower(): "forged"}
        _, second = Answers().play(headers(sent), body(b'{"model":"unknown"}'))
        mutation = second.request_body.response.header_mutation
        assert list(mutation.remove_headers) == [BASE_MODEL_HEADER.lower()]
        assert set_on(second) == {MODEL_HEADER: "unknown"}

    def test_a_name_that_is_no_header(self) -> None:
        _, second = Answers().play(headers(), body(b'{"model":"a\\r\\nx-evil: 1"}'))
        assert second.immediate_response.status.code == 400

    def test_plugins_of_ones_own(self) -> None:
        text = 'body-field-to-header:stream:{"fieldName":"stream","headerName":"x-stream"}'
        _, second = Answers(BodyMode.BUFFERED, None, text).play(headers(), body(b'{"model":"m","stream":true}'))
        assert set_on(second) == {"x-stream": "true"}

    def test_answers_and_trailers_pass_unmarked(self) -> None:
        answer = HeaderMap(headers=[HeaderValue(key=":status", raw_value=b"200")])
        found = Answers().play(
            headers(),
            body(BODY),
            ProcessingRequest(response_headers=HttpHeaders(headers=answer)),
            ProcessingRequest(response_body=HttpBody(body=b"x", end_of_stream=False)),
            ProcessingRequest(response_trailers=HttpTrailers()),
        )
        assert [each.WhichOneof("response") for each in found[2:]] == [
            "response_headers",
            "response_body",
            "response_trailers",
        ]
        assert not set_on(found[2])

    def test_traces_begin_here(self) -> None:
        _, second = Answers(BodyMode.BUFFERED, Tracing()).play(headers(), body(BODY))
        assert "traceparent" in set_on(second)


class TestAdapters:
    @pytest.mark.parametrize(
        ("data", "family"),
        [
            ({"baseModel": " llama ", "adapters": "- a\n- b\n- ''\n"}, ModelFamily("llama", frozenset("ab"))),
            ({"baseModel": "llama"}, ModelFamily("llama", frozenset())),
            ({"config": "baseModel: llama\nadapters: [a]\n"}, ModelFamily("llama", frozenset("a"))),
        ],
    )
    def test_config_maps(self, data: dict[str, str], family: ModelFamily) -> None:
        assert model_family(data) == family

    @pytest.mark.parametrize(
        "data",
        [
            {},
            {"baseModel": " "},
            {"baseModel": "m", "adapters": "a: b"},
            {"baseModel": "m", "adapters": "- 1"},
            {"baseModel": "m", "adapters": "["},
            {"config": "x"},
            {"config": "{"},
        ],
    )
    def test_nonsense(self, data: dict[str, str]) -> None:
        with pytest.raises(ValueError, match=r"baseModel|adapters|config"):
            model_family(data)

    def test_several_tell_of_one_model(self) -> None:
        adapters = Adapters()
        adapters.put("one", ModelFamily("llama", frozenset(["a"])))
        adapters.put("two", ModelFamily("llama", frozenset(["b"])))
        adapters.put("three", ModelFamily("qwen", frozenset(["a"])))
        assert [adapters.base_of(name) for name in ("a", "b", "llama", "qwen", "x", " b ")] == [
            *("llama", "llama", "llama", "qwen", "", "llama"),
        ]
        adapters.put("one", None)
        assert [adapters.base_of(name) for name in ("a", "llama")] == ["qwen", "llama"]

    def test_lists_and_events(self, caplog: pytest.LogCaptureFixture) -> None:
        watcher = AdapterWatcher(None, "ns")  # type: ignore[arg-type]
        assert not watcher.synced
        first, second = (reflector for reflector in watcher._reflectors)
        item = config_map("one", baseModel="llama", adapters="[a]")
        first._on_list([item, config_map("broken")])
        assert not watcher.synced
        second._on_list([config_map("one", baseModel="qwen", adapters="[q]")])
        assert watcher.synced
        assert [watcher.adapters.base_of(name) for name in "aq"] == ["llama", "qwen"]
        assert "ConfigMap ns/broken is not used: baseModel is missing" in caplog.text
        first._on_event("MODIFIED", config_map("one", baseModel="llama", adapters="[c]"))
        assert [watcher.adapters.base_of(name) for name in "acq"] == ["", "llama", "qwen"]
        first._on_event("DELETED", item)
        second._on_list([])
        assert [watcher.adapters.base_of(name) for name in "cq"] == ["", ""]


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {LABELS[0]: "true"}}, "data": json.loads(json.dumps(data))}
