# SPDX-License-Identifier: GPL-3.0-or-later
"""The response phase in FULL_DUPLEX_STREAMED: answers pass through, in the order and as soon as they come."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from conformance.kit import wire
from conformance.kit.picker import Picker
from conformance.kit.talk import Routed, Talk, completion, talk
from conformance.kit.world import Pool, World

REENCODES = "v1.3 decodes and re-encodes JSON answers"
TRAILERS = "v1.3 ignores response trailers: Envoy waits for a reply that never comes"
NAME = "v1.3 does not write the client's model name back into answers"
DIES = "v1.3 dies of it: the whole process, with every request in flight"
USAGE = b'"usage":{"prompt_tokens":7,"completion_tokens":10,"total_tokens":17}'
ANSWER = b'{"id": "1",  "model":"m", "choices": [{"text": "h\\u00e9"}], ' + USAGE + b"}"
EVENTS = [f'data: {{"model":"m","choices":[{{"text":"{number}"}}]}}\n\n'.encode() for number in range(5)]
REWRITE = {"x-gateway-model-name-rewrite": "target"}


@pytest.fixture
def one(picker: Picker) -> Iterator[Talk]:
    """A request that has been routed."""
    with talk(picker) as found:
        assert isinstance(found.ask(), Routed)
        yield found


class TestHeaders:
    def test_mark(self, one: Talk) -> None:
        """The answer carries x-went-into-resp-headers."""
        one.stream.send(wire.response_headers())
        reply = one.stream.receive()
        assert wire.kind(reply) == "response_headers"
        assert wire.headers_of(reply)["x-went-into-resp-headers"] == "true"

    def test_others_stay(self, one: Talk) -> None:
        """No header of the answer is changed or removed."""
        one.stream.send(wire.response_headers(201, "application/json; charset=utf-8"))
        reply = one.stream.receive()
        found = wire.headers_of(reply)
        mutation = wire.common(reply).header_mutation
        assert found.get("content-type", "application/json; charset=utf-8") == "application/json; charset=utf-8"
        assert found.get(":status", "201") == "201"
        assert mutation is not None
        assert not mutation.remove_headers

    def test_an_answer_without_body(self, one: Talk) -> None:
        """Headers that end the answer are answered once, and the stream ends well."""
        one.stream.send(wire.response_headers(204, end=True))
        assert wire.kind(one.stream.receive()) == "response_headers"
        assert one.finish() == "OK"

    def test_headers_do_not_wait_for_the_body(self, one: Talk) -> None:
        """They are answered at once, and with nothing else."""
        one.stream.send(wire.response_headers(content_type=wire.EVENTS))
        assert wire.kind(one.stream.receive()) == "response_headers"
        assert one.stream.silent()


class TestPlain:
    @pytest.mark.differs(go=REENCODES)
    def test_unchanged(self, one: Talk) -> None:
        """A JSON answer passes byte by byte."""
        assert one.answer(ANSWER) == ANSWER

    def test_same_content(self, one: Talk) -> None:
        """A JSON answer says the same as before."""
        assert json.loads(one.answer(ANSWER)) == json.loads(ANSWER)

    def test_in_pieces(self, one: Talk) -> None:
        """A JSON answer that comes in ten pieces."""
        assert json.loads(one.answer(ANSWER, pieces=10)) == json.loads(ANSWER)

    def test_large(self, one: Talk) -> None:
        """Pieces of a large answer keep the limit of 62 000 bytes."""
        answer = json.dumps({"model": "m", "choices": [{"text": "x" * 400_000}]}).encode()
        one.stream.send(wire.response_headers())
        one.stream.receive()
        one.stream.send(wire.response_body(answer))
        pieces = one.answer_pieces()
        assert max(len(body) for body, _ in pieces) <= wire.CHUNK
        assert [end for _, end in pieces] == [False] * (len(pieces) - 1) + [True]
        assert json.loads(b"".join(body for body, _ in pieces)) == json.loads(answer)

    @pytest.mark.parametrize(
        ("body", "content_type"),
        [
            (b'{"model": "m", "usage": {"prompt_tok', wire.JSON),
            (b"upstream connect error", "text/plain"),
            (b"\x00\xff\xfe" * 50, "audio/wav"),
            (b"", wire.JSON),
            (b"<html></html>", "text/html"),
        ],
        ids=["cut off", "text", "binary", "empty", "html"],
    )
    def test_anything_else(self, one: Talk, body: bytes, content_type: str) -> None:
        """What is no JSON passes unchanged."""
        assert one.answer(body, content_type) == body

    @pytest.mark.differs(go=DIES)
    @pytest.mark.parametrize("usage", ['"many"', "[]", '{"prompt_tokens":"7"}'])
    def test_strange_usage(self, one: Talk, usage: str) -> None:
        """Usage in an unknown form breaks nothing."""
        answer = b'{"model":"m","usage":%s}' % usage.encode()
        assert json.loads(one.answer(answer)) == json.loads(answer)

    def test_an_error_of_the_model_server(self, one: Talk) -> None:
        """Its text reaches the client."""
        answer = b'{"error":{"message":"out of memory","code":500}}'
        assert json.loads(one.answer(answer, status=500)) == json.loads(answer)


class TestStreamed:
    def test_each_event_at_once(self, one: Talk) -> None:
        """An event is passed on before the next one comes."""
        one.stream.send(wire.response_headers(content_type=wire.EVENTS))
        one.stream.receive()
        for each in EVENTS:
            one.stream.send(wire.response_body(each, end=False))
            assert wire.piece(one.stream.receive()) == (each, False)
        one.stream.send(wire.response_body(b"data: [DONE]\n\n"))
        assert wire.piece(one.stream.receive()) == (b"data: [DONE]\n\n", True)

    def test_pieces_within_events(self, one: Talk) -> None:
        """Events cut anywhere are the same in the end."""
        stream = b"".join(EVENTS) + b"data: [DONE]\n\n"
        assert one.answer(stream, wire.EVENTS, pieces=37) == stream

    def test_a_large_event(self, one: Talk) -> None:
        """A piece larger than 62 000 bytes is cut."""
        event = b"data: " + b"x" * 150_000 + b"\n\n"
        one.stream.send(wire.response_headers(content_type=wire.EVENTS))
        one.stream.receive()
        one.stream.send(wire.response_body(event, end=True))
        pieces = one.answer_pieces()
        assert max(len(body) for body, _ in pieces) <= wire.CHUNK
        assert b"".join(body for body, _ in pieces) == event

    def test_an_empty_end(self, one: Talk) -> None:
        """The end may come as an empty piece."""
        one.stream.send(wire.response_headers(content_type=wire.EVENTS))
        one.stream.receive()
        one.stream.send(wire.response_body(EVENTS[0], end=False), wire.response_body(b"", end=True))
        assert b"".join(body for body, _ in one.answer_pieces()) == EVENTS[0]

    def test_another_type(self, one: Talk) -> None:
        """A streamed answer of another type is complete in the end."""
        assert one.answer(b"x" * 1000, "application/x-ndjson", pieces=10) == b"x" * 1000

    def test_parameters_of_the_type(self, one: Talk) -> None:
        """text/event-stream; charset=utf-8 is a stream, too."""
        one.stream.send(wire.response_headers(content_type="text/event-stream; charset=utf-8"))
        one.stream.receive()
        one.stream.send(wire.response_body(EVENTS[0], end=False))
        assert wire.piece(one.stream.receive()) == (EVENTS[0], False)


@pytest.mark.differs(go=TRAILERS)
@pytest.mark.parametrize("content_type", [wire.JSON, wire.EVENTS])
def test_trailers(one: Talk, content_type: str) -> None:
    """Trailers that end an answer: its body is complete, and they are answered."""
    one.stream.send(wire.response_headers(content_type=content_type))
    one.stream.receive()
    one.stream.send(wire.response_body(b'{"model":"m"}', end=False), wire.response_trailers())
    body = b""
    while wire.kind(reply := one.stream.receive()) == "response_body":
        body += wire.piece(reply)[0]
    assert wire.kind(reply) == "response_trailers"
    assert body == b'{"model":"m"}'


class TestWithoutRequest:
    """Streams that begin with the answer, as when Envoy does not send requests to the picker."""

    def test_headers(self, picker: Picker) -> None:
        """The headers are answered."""
        with talk(picker) as one:
            one.stream.send(wire.response_headers())
            assert wire.kind(one.stream.receive()) == "response_headers"

    @pytest.mark.parametrize("content_type", [wire.JSON, wire.EVENTS])
    def test_body(self, picker: Picker, content_type: str) -> None:
        """The answer passes."""
        with talk(picker) as one:
            assert json.loads(one.answer(b'{"model":"m"}', content_type)) == {"model": "m"}


class TestModelName:
    """The client's model name, where the engine knows the model by another."""

    @pytest.mark.parametrize(
        "header",
        [
            "x-gateway-model-name-rewrite",
            pytest.param(
                "x-llm-d-model-name-rewrite",
                marks=pytest.mark.differs(go="v1.3 knows the older family of headers only"),
            ),
        ],
    )
    def test_in_the_request(self, picker: Picker, header: str) -> None:
        """The engine is asked for its own name."""
        with talk(picker) as one:
            outcome = one.ask(completion(model="asked"), {header: "target"})
            assert isinstance(outcome, Routed)
            assert outcome.document == {"model": "target", "prompt": "hello"}

    def test_the_length_fits(self, picker: Picker) -> None:
        """A content-length that is set is that of the changed body."""
        with talk(picker) as one:
            outcome = one.ask(completion(model="a"), {**REWRITE, "content-length": "30"})
            assert isinstance(outcome, Routed)
            assert int(outcome.headers.get("content-length", len(outcome.body))) == len(outcome.body)

    @pytest.mark.differs(go=NAME)
    @pytest.mark.parametrize("pieces", [1, 7])
    def test_in_a_plain_answer(self, picker: Picker, pieces: int) -> None:
        """The client gets the name that it asked for."""
        with talk(picker) as one:
            one.ask(completion(model="asked"), REWRITE)
            found = one.answer(b'{"id":"1","model":"target","choices":[]}', pieces=pieces)
        assert json.loads(found) == {"id": "1", "model": "asked", "choices": []}

    @pytest.mark.differs(go=NAME)
    @pytest.mark.parametrize("pieces", [1, 23])
    def test_in_a_streamed_answer(self, picker: Picker, pieces: int) -> None:
        """In every event."""
        events = b"".join(b'data: {"model":"target","n":%d}\n\n' % number for number in range(4)) + b"data: [DONE]\n\n"
        with talk(picker) as one:
            one.ask(completion(model="asked", stream=True), REWRITE)
            found = one.answer(events, wire.EVENTS, pieces=pieces)
        assert found == events.replace(b"target", b"asked")

    def test_content_is_left_alone(self, picker: Picker) -> None:
        """The engine's name within the text is no model name."""
        answer = b'{"model":"target","choices":[{"text":"\\"model\\":\\"target\\""}]}'
        with talk(picker) as one:
            one.ask(completion(model="asked"), REWRITE)
            assert json.loads(one.answer(answer))["choices"] == [{"text": '"model":"target"'}]


class TestServed:
    """The endpoint that Envoy used, in the metadata of the answer."""

    CONFIG = """
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer
- type: destination-endpoint-served-verifier
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: queue-scorer
"""

    def test_it_is_read(self, around: World, main_pool: Pool) -> None:
        """With the plugin destination-endpoint-served-verifier the answer's headers repeat it."""
        with around.picker(main_pool.name, config=self.CONFIG) as found, talk(found) as one:
            one.ask()
            one.stream.send(wire.response_headers(served="10.1.2.3:8000"))
            assert wire.headers_of(one.stream.receive())["x-conformance-test-served-endpoint"] == "10.1.2.3:8000"

    def test_without_the_plugin(self, one: Talk) -> None:
        """Without it the metadata is no trouble."""
        one.stream.send(wire.response_headers(served="10.1.2.3:8000"))
        assert wire.kind(one.stream.receive()) == "response_headers"
