# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading and changing bodies."""

from __future__ import annotations

import functools
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.model import Usage
from epp.requests import BodyError, ModelRenamer, ParsedBody, Parsers, UsageTail, replace_model
from epp.requests.scan import members
from epp.requests.usage import TAIL_BYTES

JSON = "application/json"
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


parse_body = Parsers().parse
parse_partial = functools.partial(parse_body, truncated=True)


class TestParse:
    @pytest.mark.parametrize(
        ("path", "body", "prompt"),
        [
            ("/v1/completions", b'{"model":"m","prompt":"a b"}', b'"a b"'),
            ("/v1/completions?x=1", b'{"model":"m","prompt":[1, 2]}', b"[1, 2]"),
            ("/v1/chat/completions", b'{"messages":[{"role":"user"}],"model":"m"}', b'[{"role":"user"}]'),
            ("/v1/embeddings", b'{"model":"m","input":["x"]}', b'["x"]'),
            ("/v1/responses", b'{"model":"m","instructions":"be","input":"x"}', b'"be""x"'),
            ("/score", b'{"model":"m","input":"x"}', b'"x"'),
            ("/v1/completions", b'{"model":"m","prompt":null,"messages":[]}', b"[]"),
            ("/v1/completions", b'{"model":"m"}', b""),
        ],
    )
    def test_prompt_is_the_clients_bytes(self, path: str, body: bytes, prompt: bytes) -> None:
        parsed = parse_body(path, JSON, body)
        assert (parsed.model, parsed.prompt) == ("m", prompt)

    def test_scalars(self) -> None:
        body = b'{"model":"m","stream":true,"max_completion_tokens":5,"max_tokens":9,"cache_salt":"s"}'
        assert parse_body("", JSON, body) == ParsedBody("m", b"", True, 5, "s")

    def test_wrong_types_are_the_engines_to_refuse(self) -> None:
        body = b'{"model":"m","stream":"yes","max_tokens":-1,"cache_salt":3,"messages":7}'
        assert parse_body("/v1/chat/completions", JSON, body) == ParsedBody("m", b"7", False, 0, "")

    @pytest.mark.parametrize("kind", ["", "application/json; charset=utf-8", "Application/JSON", "application/x+json"])
    def test_json_by_content_type(self, kind: str) -> None:
        assert parse_body("/v1/completions", kind, b'{"model":"m"}').model == "m"

    @pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "text/plain", "application/octet-stream"])
    def test_other_content_is_not_looked_into(self, kind: str) -> None:
        assert parse_body("/v1/audio/transcriptions", kind, b"\x00{") == ParsedBody()

    def test_empty_body(self) -> None:
        assert parse_body("/v1/completions", JSON, b"") == ParsedBody()

    @pytest.mark.parametrize(
        "body", [b"{", b"[]", b'"x"', b"nonsense", b'{"model": "m"} x', b"\xff", b'{"a":' + b"[" * 100_000]
    )
    def test_broken_json(self, body: bytes) -> None:
        with pytest.raises(BodyError, match="failed to parse request body: "):
            parse_body("/v1/completions", JSON, body)

    @pytest.mark.parametrize(
        "path", ["/v1/completions", "/v1/chat/completions?a", "/v1/embeddings", "/v1/responses", ""]
    )
    @pytest.mark.parametrize("body", [b"{}", b'{"model": 3}', b'{"model": null}'])
    def test_model_is_missing(self, path: str, body: bytes) -> None:
        with pytest.raises(BodyError, match="model not found in request body"):
            parse_body(path, JSON, body)

    def test_other_paths_need_no_model(self) -> None:
        assert parse_body("/v1/load_lora_adapter", JSON, b'{"lora_name": "a"}') == ParsedBody()


class TestPartial:
    WHOLE = b'{"a": {"model": "inner"}, "model": "m", "stream": true, "prompt": "one two"}'

    @pytest.mark.parametrize("size", range(2, len(WHOLE) + 1))
    def test_every_cut(self, size: int) -> None:
        parsed = parse_partial("/v1/completions", JSON, self.WHOLE[:size])
        assert parsed.model == ("m" if size >= self.WHOLE.index(b', "stream') else "")
        assert parsed.stream == (size > self.WHOLE.index(b', "prompt'))
        assert b'"one two"'.startswith(parsed.prompt)

    def test_what_no_end_could_mend(self) -> None:
        with pytest.raises(BodyError, match="expected an object"):
            parse_partial("", JSON, b"[1")

    def test_not_json(self) -> None:
        assert parse_partial("", "text/plain", b"[1") == ParsedBody()


class TestReplaceModel:
    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            (b'{"model":"m"}', b'{"model":"new"}'),
            (b' { "x":{"model":"m"} , "model" : "m", "y":"\\"model\\":1"}', None),
            (b'{"mod\\u0065l":"m"}', b'{"mod\\u0065l":"new"}'),
            (b'{"model":"a","model":"m"}', b'{"model":"new","model":"new"}'),
        ],
    )
    def test_only_the_value_changes(self, body: bytes, expected: bytes | None) -> None:
        replaced = replace_model(body, "new")
        assert replaced is not None
        assert replaced.body == (expected or body.replace(b'"model" : "m"', b'"model" : "new"'))
        assert replaced.model == "m"

    @pytest.mark.parametrize(
        "body", [b"", b"{}", b'{"model":', b'{"model":"m', b'{"model":3}', b"[1]", b'{"x":{"model":"m"}}']
    )
    def test_none_to_replace(self, body: bytes) -> None:
        assert replace_model(body, "new") is None

    @given(st.dictionaries(st.text(), values, max_size=5), st.text(), st.text(), st.booleans())
    def test_equals_decoding_and_encoding(self, rest: dict[str, object], old: str, new: str, ascii_only: bool) -> None:
        document = {**rest, "model": old}
        try:
            body = json.dumps(document, ensure_ascii=ascii_only).encode()
            new.encode()
        except UnicodeEncodeError:
            return
        replaced = replace_model(body, new)
        assert replaced is not None
        assert json.loads(replaced.body) == {**document, "model": new}


class TestMembers:
    @given(st.dictionaries(st.text(st.characters(codec="utf-8")), values, max_size=6), st.integers(0, 3))
    def test_agrees_with_a_decoder(self, document: dict[str, object], indent: int) -> None:
        body = json.dumps(document, indent=indent or None).encode()
        found = {member.key: json.loads(body[member.start : member.end]) for member in members(body) if member.complete}
        assert found == document

    @given(st.binary(max_size=200))
    def test_never_fails(self, data: bytes) -> None:
        for member in members(b"{" + data):
            assert 0 < member.start <= member.end <= len(data) + 1

    @pytest.mark.parametrize("body", [b'{"a"', b'{"a" 1}', b'{"a":', b"{a:1}"])
    def test_stops_at_what_is_no_member(self, body: bytes) -> None:
        assert list(members(body)) == []


class TestModelRenamer:
    TEXT = b'{"model":"t/x","c":"\\"model\\":\\"t/x\\"","r":{"model" :\n "t/x"},"model":"other"}\n\n'
    WANT = TEXT.replace(b'{"model":"t/x"', b'{"model":"m"').replace(b'"model" :\n "t/x"', b'"model" :\n "m"')

    @given(st.lists(st.integers(0, len(TEXT)), max_size=6))
    def test_wherever_it_is_cut(self, cuts: list[int]) -> None:
        renamer = ModelRenamer("t/x", "m")
        edges = [0, *sorted(cuts), len(self.TEXT)]
        pieces = [
            renamer.feed(self.TEXT[start:end], end=index == len(edges) - 2)
            for index, (start, end) in enumerate(itertools.pairwise(edges))
        ]
        assert b"".join(pieces) == self.WANT

    def test_whole_events_are_never_held(self) -> None:
        renamer = ModelRenamer("t", "m")
        assert renamer.feed(b'data: {"model":"t"}\n\n', end=False) == b'data: {"model":"m"}\n\n'

    def test_either_spelling_of_other_alphabets(self) -> None:
        assert ModelRenamer("ü", "m").feed('{"model":"ü"} {"model":"\\u00fc"}'.encode(), end=True) == (
            b'{"model":"m"} {"model":"m"}'
        )


class TestUsageTail:
    def read(self, *chunks: bytes) -> Usage | None:
        tail = UsageTail()
        for chunk in chunks:
            tail.feed(chunk)
        return tail.usage()

    def test_plain_answer(self) -> None:
        usage = b'{"prompt_tokens":5,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":4}}'
        assert self.read(b'{"choices":[],"usage":' + usage + b"}") == Usage(5, 2, 4)

    @pytest.mark.parametrize(
        "usage",
        [
            b'{"input_tokens":5,"output_tokens":2,"input_tokens_details":{"cached_tokens":4}}',
            b'{"input_tokens":1,"output_tokens":2,"cache_read_input_tokens":4}',
        ],
    )
    def test_names_of_other_apis(self, usage: bytes) -> None:
        assert self.read(b'{"usage":' + usage + b"}") == Usage(5, 2, 4)

    def test_stream_whose_last_usage_counts(self) -> None:
        first = b'data: {"usage": {"prompt_tokens": 5, "completion_tokens": 1}}\n\n'
        last = b'data: {"usage": {"prompt_tokens": 5, "completion_tokens": 9, "prompt_tokens_details": null}}\n\n'
        assert self.read(first, last[:20], last[20:], b"data: [DONE]\n\n") == Usage(5, 9, 0)

    def test_without_usage(self) -> None:
        assert self.read() is None
        assert self.read(b'data: {"usage": null}\n\n', b"data: [DONE]\n\n") is None
        assert self.read(b'{"text": "\\"usage\\": {\\"prompt_tokens\\": 1}"}') is None

    def test_cut_off_or_strange_usage_falls_back_to_the_one_before(self) -> None:
        good = b'data: {"usage": {"prompt_tokens": 5}}\n\n'
        assert self.read(good, b'data: {"usage": {"prompt_tok') == Usage(5, 0, 0)
        assert self.read(good, b'data: {"usage": {"prompt_tokens": "many"}}') == Usage(5, 0, 0)

    START = (
        b'event: message_start\ndata: {"type":"message_start","message":{"id":"1","content":[],"usage":'
        b'{"input_tokens":25,"cache_creation_input_tokens":3,"cache_read_input_tokens":7,"output_tokens":1}}}\n\n'
    )
    DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"abc"}}\n\n'
    END = b'event: message_delta\ndata: {"type":"message_delta","delta":{},"usage":{"output_tokens":15}}\n\n'

    @pytest.mark.parametrize("deltas", [1, 1000])
    @pytest.mark.parametrize("size", [0, 200, 100_000])
    def test_anthropic_says_the_input_first_and_the_output_last(self, deltas: int, size: int) -> None:
        events = [self.START, *[self.DELTA] * deltas, self.END]
        whole = b"".join(events)
        pieces = [whole[at : at + size] for at in range(0, len(whole), size)] if size else events
        assert self.read(*pieces) == Usage(35, 15, 7)

    def test_anthropic_cut_off(self) -> None:
        assert self.read(self.START, self.DELTA) == Usage(35, 1, 7)

    def test_the_responses_api(self) -> None:
        usage = b'{"input_tokens":36,"input_tokens_details":{"cached_tokens":32},"output_tokens":87,"total_tokens":123}'
        events = [
            b'event: response.created\ndata: {"type":"response.created","response":{"usage":null}}\n\n',
            b'event: response.output_text.delta\ndata: {"delta":"x"}\n\n' * 500,
            b'event: response.completed\ndata: {"response":{"output":["long"],"usage":' + usage + b',"user":null}}\n\n',
        ]
        assert self.read(*events) == Usage(36, 87, 32)

    def test_sglang(self) -> None:
        counts = b'{"finish_reason":null,"prompt_tokens":5,"completion_tokens":2,"cached_tokens":4}'
        answer = b'{"text":"a","meta_info":' + counts + b"}"
        assert self.read(answer) == Usage(5, 2, 4)
        assert self.read(b"data: " + answer + b"\n\n", b"data: [DONE]\n\n") == Usage(5, 2, 4)

    def test_a_usage_with_long_lists_behind_it(self) -> None:
        usage = b'"usage":{"prompt_tokens":9,"completion_tokens":3},"prompt_token_ids":['
        assert self.read(b"x" * 100_000 + usage, *[b"1," * 4000] * 20, b"1]}") == Usage(9, 3, 0)

    def test_a_usage_in_every_piece(self) -> None:
        event = b'data: {"usage":{"prompt_tokens":9,"completion_tokens":%d}}\n\n'
        pieces = [event % number for number in range(2000)]
        assert self.read(*pieces, *[b"data: [DONE]\n\n"] * 2000) == Usage(9, 1999, 0)

    def test_the_word_alone_is_kept_for_nothing(self) -> None:
        assert self.read(b'{"usage": null}', b"x" * 40_000, b"y" * 40_000) is None

    def test_the_word_alone_does_not_hide_the_usage(self) -> None:
        word = b'data: {"text":"x","usage":null}\n\n'
        usage = b'data: {"usage":{"prompt_tokens":9,"completion_tokens":3}}\n\n'
        assert self.read(*[word] * 2000, usage, *[word] * 2000) == Usage(9, 3, 0)

    @pytest.mark.parametrize("cut", range(0, 80, 3))
    def test_a_usage_across_the_edge_of_the_tail(self, cut: int) -> None:
        usage = b'"usage": {"prompt_tokens":9,"completion_tokens":3}'
        before = b"x" * (TAIL_BYTES - cut)
        assert self.read(before, usage, b"y" * (2 * TAIL_BYTES - len(before) - len(usage))) == Usage(9, 3, 0)

    def test_inside_of_grpc(self) -> None:
        assert self.read(b'\0\0\0\0\x40\x12{"usage":{"prompt_tokens":9}}\x1a') == Usage(9, 0, 0)

    def test_memory_is_bounded(self) -> None:
        tail = UsageTail()
        for _ in range(10_000):
            tail.feed(b"x" * 1000)
        assert tail._size < 2 * TAIL_BYTES
        tail.feed(b'"usage":{"prompt_tokens":1}')
        assert tail.usage() == Usage(1, 0, 0)
