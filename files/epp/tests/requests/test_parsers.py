# SPDX-License-Identifier: GPL-3.0-or-later
"""Parsers: which of them takes which path, and what each finds in its bodies."""

from __future__ import annotations

import json

import pytest

from epp.config.loader import DEFAULT_PARSERS
from epp.plugins import registry
from epp.requests import BodyError, ParsedBody, Parsers, replace_model
from epp.requests.apis import APIS, DEFAULT, READERS
from epp.requests.protobuf import WireError
from epp.requests.wrapped import unwrap

JSON = "application/json"
FORM = 'multipart/form-data; boundary="b 1"'


def parse(path: str, body: object, kind: str = JSON, parsers: tuple[str, ...] = DEFAULT, **more: object) -> ParsedBody:
    data = body if isinstance(body, bytes) else json.dumps(body, separators=(",", ":")).encode()
    return Parsers(parsers).parse(path, kind, data, **more)  # type: ignore[arg-type]


def test_every_parser_is_a_plugin_and_the_other_way_round() -> None:
    assert {*APIS, *READERS} == {name for name in registry() if name.endswith("-parser")}
    assert DEFAULT_PARSERS == DEFAULT


class TestPaths:
    @pytest.mark.parametrize(
        ("path", "prompt"),
        [
            ("/v1/chat/completions", '"messages"'),
            ("/v1/completions", '"prompt"'),
            ("/v1/chat/completions/render", '"messages"'),
            ("/v1/completions/render?x=1", '"prompt"'),
            ("/v1/embeddings/", '"input"'),
            ("/v1/responses", '"input"'),
            ("/v1/conversations", '"items"'),
            ("/v1/images/generations", '"prompt"'),
            ("/v1/audio/speech", '"input"'),
            ("/prefix/v1/messages", '"messages"'),
            ("/v1/messages/count_tokens", '"messages"'),
            ("/inference/v1/generate", '"token_ids"'),
            ("/tokenize", '"messages"'),
            ("/v2/rerank", '"messages"'),
            ("/something/else", '"messages"'),
        ],
    )
    def test_the_longest_end_counts(self, path: str, prompt: str) -> None:
        names = ("messages", "prompt", "input", "items", "token_ids", "text", "query")
        body = {"model": "m", **{name: name for name in names}}
        assert parse(path, body).prompt.decode() == prompt

    def test_the_longest_end_of_all_parsers_counts(self) -> None:
        body = {"model": "m", "token_ids": [1], "input_ids": [2]}
        assert parse("/inference/v1/generate", body, parsers=("sglanghttp-parser", "vllmhttp-parser")).prompt == b"[1]"
        assert parse("/inference/v1/generate", body, parsers=("sglanghttp-parser",)).prompt == b"[2]"

    @pytest.mark.parametrize("parsers", [("openai-parser",), ("anthropic-parser", "sglanghttp-parser")])
    def test_without_a_fallback_unknown_paths_are_refused(self, parsers: tuple[str, ...]) -> None:
        with pytest.raises(BodyError, match="no parser understands the path '/what'; configured are"):
            parse("/what?x", {"model": "m"}, parsers=parsers)
        assert Parsers(parsers).parse("/what", JSON, b"") == ParsedBody(), (
            "a request without a body has nothing to read"
        )

    def test_vllms_parser_speaks_openai_too(self) -> None:
        assert parse("/v1/completions", {"model": "m", "prompt": "x"}, parsers=("vllmhttp-parser",)).model == "m"

    def test_passthrough_alone_reads_nothing(self) -> None:
        assert parse("/v1/completions", {"model": "m"}, parsers=("passthrough-parser",)) == ParsedBody()
        assert parse("/v1/completions", b"{", parsers=("passthrough-parser",)) == ParsedBody()

    @pytest.mark.parametrize("body", [b"{", b"[1]", b"\xff", b'{"model":3}'])
    @pytest.mark.parametrize("truncated", [False, True])
    def test_a_fallback_insists_on_nothing(self, body: bytes, truncated: bool) -> None:
        assert parse("/what", body, truncated=truncated) == ParsedBody()

    def test_many_paths_cost_no_memory(self) -> None:
        parsers = Parsers()
        for number in range(3000):
            assert parsers.parse(f"/v1/completions?{number}", JSON, b'{"model":"m"}').model == "m"
        assert len(parsers._paths) <= 1024

    def test_an_unknown_parser(self) -> None:
        with pytest.raises(KeyError):
            Parsers(["none-parser"])


class TestBodies:
    def test_anthropic(self) -> None:
        body = {
            "model": "m",
            "system": "be",
            "messages": [1],
            "tools": [{"name": "t"}],
            "max_tokens": 9,
            "stream": True,
        }
        parsed = parse("/v1/messages", body)
        assert (parsed.prompt, parsed.max_tokens, parsed.stream) == (b'[{"name":"t"}]"be"[1]', 9, True)
        assert parsed.prompt[parsed.lead :] == b"[1]"

    @pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
    def test_anthropic_needs_a_model(self, path: str) -> None:
        with pytest.raises(BodyError, match="model not found"):
            parse(path, {"messages": []})

    def test_tools_and_instructions_stand_before_the_prompt(self) -> None:
        body = {"model": "m", "input": "x", "instructions": "be", "tools": None, "messages": "y"}
        assert parse("/v1/responses", body).prompt == b'"be""x"'
        assert parse("/v1/chat/completions", {**body, "tools": [1]}).prompt == b'[1]"y"'

    @pytest.mark.parametrize(
        ("path", "body", "tokens", "limit", "salt"),
        [
            ("/inference/v1/generate", {"token_ids": [1, 2, 3], "sampling_params": {"max_tokens": 7}}, 3, 7, ""),
            ("/generate", {"input_ids": [1], "sampling_params": {"max_new_tokens": 5}, "extra_key": "k"}, 1, 5, "k"),
            ("/generate", {"text": "hello", "sampling_params": [{"max_new_tokens": 5}]}, 0, 0, ""),
            ("/generate", {"text": "hello", "sampling_params": {"max_new_tokens": "5"}}, 0, 0, ""),
            ("/v1/completions", {"model": "m", "prompt": [5, 6], "cache_salt": "s"}, 2, 0, "s"),
            ("/v1/completions", {"model": "m", "prompt": ["a", "b"]}, 0, 0, ""),
        ],
    )
    def test_token_ids_limits_and_salts(self, path: str, body: object, tokens: int, limit: int, salt: str) -> None:
        parsed = parse(path, body, parsers=("openai-parser", "vllmhttp-parser", "sglanghttp-parser"))
        assert (parsed.tokens, parsed.max_tokens, parsed.cache_salt) == (tokens, limit, salt)

    def test_sampling_params_that_are_cut_short(self) -> None:
        body = b'{"token_ids":[1,2],"sampling_params":{"max_tokens":'
        assert parse("/inference/v1/generate", body, truncated=True).max_tokens == 0

    def test_images_need_no_model(self) -> None:
        assert parse("/v1/images/generations", {"prompt": "a cat"}).prompt == b'"a cat"'


def form(*fields: tuple[str, bytes], edge: bytes = b"b 1") -> bytes:
    parts = [
        b"--%b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (edge, head.encode(), value)
        for head, value in fields
    ]
    return b"".join(parts) + b"--%b--\r\n" % edge


AUDIO = form(
    ('name="language"', b"en"),
    ('name="file"; filename="name=model.wav"', b"RIFF" + b"\0" * 32_000),
    ('name="model"', b"whisper"),
    ('name="stream"', b"true"),
)


class TestForms:
    def test_an_upload(self) -> None:
        parsed = parse("/v1/audio/transcriptions", AUDIO, FORM)
        assert (parsed.model, parsed.stream, parsed.prompt, parsed.parts) == ("whisper", True, b"", 1)
        assert parsed.tokens == 50, "two seconds at 16 000 bytes"
        longer = parse("/v1/audio/transcriptions", AUDIO, FORM, headers={"x-llm-d-audio-duration-seconds": "8"})
        assert longer.tokens == 200

    def test_the_model_changes_where_it_stands(self) -> None:
        replaced = replace_model(AUDIO, "größer", FORM)
        assert replaced is not None
        assert replaced.model == "whisper"
        assert replaced.body == AUDIO.replace(b"whisper", "größer".encode())

    @pytest.mark.parametrize("size", range(0, len(AUDIO), 997))
    def test_every_cut(self, size: int) -> None:
        parsed = parse("/v1/audio/transcriptions", AUDIO[:size] or b"-", FORM, truncated=True)
        assert parsed.model in ("", "whisper")
        replaced = replace_model(AUDIO[:size], "x", FORM)
        assert (replaced is not None) == (parsed.model == "whisper")

    @pytest.mark.parametrize(
        ("kind", "body"),
        [
            ("multipart/form-data", AUDIO),
            ("multipart/mixed; boundary=b", form(('name="model"', b"m"), edge=b"b")),
            (FORM, b"x" + AUDIO),
            (FORM, b"--b 1x" + AUDIO),
            (FORM, b"--b 1\r\n" + b"x" * 9000),
            (FORM, b"--b 1\r\nContent-Type: x\r\n\r\nm\r\n--b 1--"),
            (FORM, b"--b 1\r\nContent-Disposition: form-data; filename=model\r\n\r\nm\r\n--b 1--"),
        ],
    )
    def test_no_form(self, kind: str, body: bytes) -> None:
        assert parse("/v1/audio/transcriptions", body, kind).model == ""

    @pytest.mark.parametrize("name", ['name="model"', "name=model", 'x=y; NAME="model"'])
    def test_spellings(self, name: str) -> None:
        body = b"preamble\r\n" + form((name, b"m"), edge=b"q")
        assert parse("/v1/audio/translations", body, "Multipart/Form-Data; charset=x; Boundary=q").model == "m"

    def test_an_endless_form_ends(self) -> None:
        body = form(*[('name="x"', b"")] * 1000, ('name="model"', b"m"))
        assert parse("/v1/audio/translations", body, FORM).model == ""


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


def wrap(document: bytes, endpoint: bytes = b"projects/p/endpoints/e") -> bytes:
    http = field(1, b"application/json") + field(2, document) + field(3, b"ext")
    message = field(1, endpoint) + field(2, http) + b"\x18\x05" + b"\x25abcd" + b"\x29abcdefgh"
    return b"\0" + len(message).to_bytes(4, "big") + message


class TestVertexAI:
    PARSERS = ("vertexai-parser",)
    PATH = "/google.cloud.aiplatform.v1beta1.PredictionService/"

    @pytest.mark.parametrize("method", ["ChatCompletions", "RawPredict", "StreamRawPredict"])
    def test_json_in_grpc(self, method: str) -> None:
        document = json.dumps({"model": "m", "messages": "x" * 200, "stream": True}).encode()
        parsed = parse(self.PATH + method, wrap(document), "application/grpc", self.PARSERS)
        assert (parsed.model, parsed.stream, len(parsed.prompt)) == ("m", True, 202)

    def test_the_model_changes_and_the_lengths_around_it(self) -> None:
        document = json.dumps({"model": "m", "messages": "x" * 100}).encode()
        replaced = replace_model(wrap(document), "a-much-longer-name", "application/grpc+proto")
        assert replaced is not None
        assert replaced == (wrap(document.replace(b'"m"', b'"a-much-longer-name"')), "m")

    def test_other_paths_pass(self) -> None:
        assert parse(self.PATH + "Explain", b"\0\0", "application/grpc", self.PARSERS) == ParsedBody()

    def test_a_part_is_not_looked_into(self) -> None:
        assert parse(self.PATH + "RawPredict", b"\0", "application/grpc", self.PARSERS, truncated=True) == ParsedBody()

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            (b"\0\0", "shorter than a gRPC message"),
            (b"\1" + wrap(b"{}")[1:], "compressed"),
            (wrap(b"{}") + b"x", "not one whole"),
            (b"\0\0\0\0\0", "no http_body"),
            (b"\0\0\0\0\2" + field(2, b""), "no data"),
            (b"\0\0\0\0\2\x12\x05", "longer than the message"),
            (b"\0\0\0\0\2\x08\xff", "has no end"),
            (b"\0\0\0\0\1\x0b", "not a protobuf message"),
            (wrap(b"{"), "failed to parse request body"),
            (wrap(b'{"messages":[]}'), "model not found"),
        ],
    )
    def test_nonsense(self, body: bytes, message: str) -> None:
        with pytest.raises(BodyError, match=message):
            parse(self.PATH + "ChatCompletions", body, "application/grpc", self.PARSERS)
        assert replace_model(body, "x", "application/grpc") is None

    def test_every_cut_is_refused(self) -> None:
        whole = wrap(b'{"model":"m"}')
        for size in range(len(whole)):
            with pytest.raises(WireError):
                unwrap(whole[:size])
