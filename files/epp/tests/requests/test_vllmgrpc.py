# SPDX-License-Identifier: GPL-3.0-or-later
"""vLLM's gRPC interface: what is read from requests and answers, against messages that protobuf itself encodes."""

from __future__ import annotations

import contextlib
import functools
import json
from typing import Any

import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from hypothesis import given
from hypothesis import strategies as st

from epp.model import RawRequest, Usage
from epp.requests import BodyError, ParsedBody, Parsers, UsageTail
from epp.requests.vllmgrpc import MAX_MESSAGE, EmbedAnswer, Generate, GenerateAnswer

GENERATE, EMBED = "/vllm.grpc.engine.VllmEngine/Generate", "/vllm.grpc.engine.VllmEngine/Embed"
KIND = "application/grpc"
# A message's fields: name, number, type; "*" before a type is a repeated field, "=" a packed one.
SCHEMA = {
    "Tokenized": "original_text 1 string, input_ids 2 =uint32",
    "Unpacked": "input_ids 2 *uint32",
    "Sampling": "temperature 1 float, max_tokens 8 uint32, stop 10 *string, seed 24 int32",
    "Range": "offset 1 uint32, length 2 uint32",
    "Multimodal": "pixel_values 2 bytes, mm_placeholders 5 *Range, mm_hashes 6 *string",
    "Generate": "request_id 1 string, tokenized 2 Tokenized, text 3 string, sampling_params 4 Sampling, stream 5 bool, "
    "mm_inputs 7 Multimodal",
    "GenerateUnpacked": "tokenized 2 Unpacked",
    "Chunk": "token_ids 1 =uint32, prompt_tokens 2 uint32, completion_tokens 3 uint32, cached_tokens 4 uint32, "
    "output_logprobs 5 bytes, index 7 uint32",
    "Complete": "output_ids 1 =uint32, finish_reason 2 string, prompt_tokens 3 uint32, completion_tokens 4 uint32, "
    "cached_tokens 5 uint32, index 8 uint32, matched_stop 10 uint32",
    "Answer": "chunk 1 Chunk, complete 2 Complete",
    "OldAnswer": "request_id 1 string, chunk 2 Chunk, complete 3 Complete, error 4 string",
    "EmbedAnswer": "embedding 1 =float, prompt_tokens 2 uint32, embedding_dim 3 uint32",
    "OldEmbedAnswer": "request_id 1 string, complete 2 EmbedAnswer",
}


@functools.cache
def schema() -> dict[str, Any]:
    """Classes of protobuf for all of :data:`SCHEMA`."""
    file = FileDescriptorProto(name="vllmgrpc_test.proto", package="test", syntax="proto3")
    for name, written in SCHEMA.items():
        message = file.message_type.add(name=name)
        for field in written.split(", "):
            key, number, kind = field.split()
            many, base = kind[0] in "*=", kind.lstrip("*=")
            added = message.field.add(name=key, number=int(number))
            added.label = FieldDescriptorProto.LABEL_REPEATED if many else FieldDescriptorProto.LABEL_OPTIONAL
            if base in SCHEMA:
                added.type, added.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".test.{base}"
            else:
                added.type = FieldDescriptorProto.Type.Value(f"TYPE_{base.upper()}")
                if kind == "*uint32":
                    added.options.packed = False
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"test.{name}")) for name in SCHEMA}


def framed(name: str, **values: Any) -> bytes:
    message: bytes = schema()[name](**values).SerializeToString()
    return b"\0" + len(message).to_bytes(4, "big") + message


def parse(body: bytes, path: str = GENERATE, **more: Any) -> ParsedBody:
    return Parsers(["vllmgrpc-parser"]).parse(path, KIND, body, **more)


class TestRequests:
    def test_text(self) -> None:
        body = framed("Generate", request_id="r", text='say "héllo"', stream=True, sampling_params={"max_tokens": 7})
        assert parse(body) == ParsedBody(prompt=b'"say \\"h\xc3\xa9llo\\""', stream=True, max_tokens=7)

    @pytest.mark.parametrize("ids", [[1, 127, 128, 151_643, 2**31 - 1], [], list(range(100_000))])
    def test_token_ids(self, ids: list[int]) -> None:
        sampling = {"temperature": 0.5, "max_tokens": 300, "stop": ["a"], "seed": -1}
        body = framed("Generate", tokenized={"original_text": "x", "input_ids": ids}, sampling_params=sampling)
        parsed = parse(body)
        assert (json.loads(parsed.prompt), parsed.tokens, parsed.max_tokens) == (ids, len(ids), 300)
        assert not parsed.stream

    def test_they_look_as_they_do_over_http(self) -> None:
        body = json.dumps({"token_ids": [5, 600, 70_000]}, separators=(",", ":")).encode()
        other = Parsers(["vllmhttp-parser"]).parse("/inference/v1/generate", "application/json", body)
        found = parse(framed("Generate", tokenized={"input_ids": [5, 600, 70_000]}))
        assert (found.prompt, found.tokens) == (other.prompt, other.tokens)

    def test_numbers_one_by_one(self) -> None:
        assert parse(framed("GenerateUnpacked", tokenized={"input_ids": [5, 600]})).prompt == b"[5,600]"

    def test_pictures_are_counted(self) -> None:
        pictures = {
            "pixel_values": b"\xff" * 1000,
            "mm_placeholders": [{"length": 2}, {"offset": 4}],
            "mm_hashes": ["a"],
        }
        parsed = parse(framed("Generate", tokenized={"input_ids": [1, 2]}, mm_inputs=pictures))
        assert (parsed.parts, parsed.tokens) == (2, 2)

    def test_embed(self) -> None:
        assert parse(framed("Generate", tokenized={"input_ids": [4, 5, 6]}), EMBED) == ParsedBody(
            prompt=b"[4,5,6]", tokens=3
        )

    @pytest.mark.parametrize("path", ["/vllm.grpc.engine.VllmEngine/HealthCheck", "/grpc.health.v1.Health/Check"])
    def test_other_methods_pass(self, path: str) -> None:
        assert parse(b"\1nonsense", path) == ParsedBody()

    @pytest.mark.parametrize("path", [GENERATE, EMBED])
    def test_a_part_is_not_looked_into(self, path: str) -> None:
        assert parse(b"\0", path, truncated=True) == ParsedBody()

    @pytest.mark.parametrize(
        ("path", "body", "message"),
        [
            (GENERATE, b"\0\0", "shorter than a gRPC message"),
            (GENERATE, b"\1\0\0\0\0", "compressed"),
            (GENERATE, framed("Generate", text="x") + b"x", "not one whole"),
            (GENERATE, framed("Generate"), "neither text nor tokens"),
            (GENERATE, b"\0\0\0\0\2\x12\x05", "longer than the message"),
            (GENERATE, b"\0\0\0\0\5\x12\x03\x12\x01\xff", "failed to parse request body"),
            (EMBED, framed("Generate", text="x"), "no tokens"),
            (EMBED, b"\1\0\0\0\0", "compressed"),
        ],
    )
    def test_nonsense(self, path: str, body: bytes, message: str) -> None:
        with pytest.raises(BodyError, match=message):
            parse(body, path)

    @given(st.binary(max_size=60))
    def test_any_bytes(self, body: bytes) -> None:
        for data in (body, b"\0" + len(body).to_bytes(4, "big") + body):
            with contextlib.suppress(BodyError):
                Generate().parse(RawRequest(GENERATE, {}, data))

    def test_beside_others(self) -> None:
        parsers = Parsers(["openai-parser", "vllmgrpc-parser"])
        assert parsers.parse("/v1/completions", "application/json", b'{"model":"m"}').model == "m"
        assert parsers.reader("/v1/completions") is None
        assert parsers.reader(GENERATE) is not None
        assert parsers.reader("/what") is None
        assert Parsers(["openai-parser"]).reader("/what") is None


def read(*pieces: bytes) -> Usage | None:
    found = GenerateAnswer()
    for piece in pieces:
        found.feed(piece)
    return found.usage()


def chunk(count: int, form: str = "Answer", counted: int | None = None, index: int = 0) -> bytes:
    """A chunk with so many tokens. The first edition has an id before it."""
    told = count if counted is None else counted
    values = {"token_ids": [150_000] * count, "prompt_tokens": 10, "completion_tokens": told, "cached_tokens": 4}
    return framed(form, chunk={**values, "index": index}, **({"request_id": "r" * 40} if form == "OldAnswer" else {}))


def complete(count: int, form: str = "Answer", ids: int = 0, index: int = 0) -> bytes:
    values = {"output_ids": [1] * ids, "prompt_tokens": 10, "completion_tokens": count, "cached_tokens": 4}
    more = {"request_id": "r"} if form == "OldAnswer" else {}
    return framed(form, complete={**values, "finish_reason": "stop", "index": index}, **more)


@pytest.mark.parametrize("form", ["Answer", "OldAnswer"])
class TestAnswers:
    def test_not_streamed(self, form: str) -> None:
        assert read(complete(9, form, ids=9)) == Usage(10, 9, 4)

    def test_streamed_by_what_is_new(self, form: str) -> None:
        """The last message repeats the last piece, as vLLM's server does."""
        assert read(*[chunk(2, form)] * 5, complete(2, form, ids=2)) == Usage(10, 10, 4)

    def test_streamed_by_what_there_is(self, form: str) -> None:
        pieces = [chunk(2, form, counted=2 * number) for number in range(1, 6)]
        assert read(*pieces, complete(10, form)) == Usage(10, 10, 4)

    def test_several_outputs(self, form: str) -> None:
        pieces = [chunk(3, form, index=number % 2) for number in range(6)]
        assert read(*pieces, complete(3, form, index=0), complete(3, form, index=1)) == Usage(10, 18, 4)
        assert read(complete(3, form), complete(4, form, index=1)) == Usage(10, 7, 4)

    def test_cut_anywhere(self, form: str) -> None:
        whole = b"".join([*[chunk(7, form)] * 20, complete(7, form)])
        for size in (1, 3, 64, len(whole)):
            assert read(*(whole[at : at + size] for at in range(0, len(whole), size))) == Usage(10, 140, 4)

    def test_it_breaks_off(self, form: str) -> None:
        assert read(chunk(3, form), chunk(3, form)[:-2]) == Usage(10, 3, 4)


class TestOtherAnswers:
    def test_nothing(self) -> None:
        assert read() is None
        assert read(framed("Answer"), framed("OldAnswer", request_id="r", error="no"), b"\0\0\0\0\1\x0f") is None

    def test_compressed_ones_pass_unread(self) -> None:
        assert read(b"\1" + chunk(3)[1:], chunk(2)) == Usage(10, 2, 4)

    def test_large_ones_pass_unread(self) -> None:
        large = framed("Answer", chunk={"output_logprobs": b"x" * MAX_MESSAGE, "prompt_tokens": 99})
        whole = large + chunk(2) + large + chunk(2)
        assert read(whole) == Usage(10, 4, 4)
        answer = GenerateAnswer()
        for at in range(0, len(whole), 65_000):
            answer.feed(whole[at : at + 65_000])
            assert len(answer._messages._held) < 66_000
        assert answer.usage() == Usage(10, 4, 4)

    @pytest.mark.parametrize(
        "body",
        [
            framed("EmbedAnswer", embedding=[0.5] * 1000, prompt_tokens=12, embedding_dim=1000),
            framed("OldEmbedAnswer", request_id="r", complete={"embedding": [0.5], "prompt_tokens": 12}),
        ],
    )
    def test_embeddings(self, body: bytes) -> None:
        answer = EmbedAnswer()
        assert answer.usage() is None
        answer.feed(b"\0\0\0\0\1\x0f" + body[:50])
        answer.feed(body[50:])
        assert answer.usage() == Usage(12, 0, 0)

    @given(st.binary(max_size=80))
    def test_any_bytes(self, body: bytes) -> None:
        for answer in (GenerateAnswer(), EmbedAnswer(), UsageTail()):
            answer.feed(body)
            answer.feed(b"\0" + len(body).to_bytes(4, "big") + body)
            answer.usage()
