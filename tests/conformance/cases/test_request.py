# SPDX-License-Identifier: GPL-3.0-or-later
"""The request phase in FULL_DUPLEX_STREAMED: the order of messages, the destination, and what becomes of the body."""

from __future__ import annotations

import json
import re
import uuid

import pytest

from conformance.kit import wire
from conformance.kit.picker import Picker
from conformance.kit.talk import Routed, ask, completion, route, served, talk
from conformance.kit.world import Pool

REENCODES = "v1.3 decodes and re-encodes bodies: keys are sorted, spaces and escapes change, large numbers lose digits"
NO_PROMPT = "v1.3 knows completions and chat completions only, and refuses bodies without a prompt or messages"
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class TestOrder:
    def test_headers_wait_for_the_body(self, picker: Picker) -> None:
        """No reply to headers while the body is to come."""
        with talk(picker) as one:
            one.stream.send(wire.request_headers())
            assert one.stream.silent()

    def test_the_body_is_collected(self, picker: Picker) -> None:
        """No reply before the end of the body."""
        with talk(picker) as one:
            one.stream.send(wire.request_headers(), wire.request_body(completion(), end=False))
            assert one.stream.silent()
            one.stream.send(wire.request_body(b"", end=True))
            assert wire.kind(one.stream.receive()) == "request_headers"

    def test_headers_come_before_the_body(self, picker: Picker) -> None:
        """First the reply to the headers, then the body."""
        found = route(picker)
        assert [wire.kind(each) for each in found.replies] == ["request_headers", "request_body"]

    def test_end_of_stream_is_on_the_last_piece_only(self, picker: Picker) -> None:
        """Exactly the last piece of the body ends the stream."""
        ends = [end for _, end in route(picker, completion("x" * 300_000)).pieces]
        assert ends == [False] * (len(ends) - 1) + [True]

    def test_the_route_is_looked_up_again(self, picker: Picker) -> None:
        """clear_route_cache, so that the gateway sees the new headers."""
        assert wire.common(route(picker).replies[0]).clear_route_cache

    def test_the_stream_stays_open_for_the_answer(self, picker: Picker) -> None:
        """Nothing follows the body until the answer comes."""
        with talk(picker) as one:
            one.ask()
            assert one.stream.silent()

    @pytest.mark.differs(go="v1.3 ignores trailers: a request that ends with them is never answered")
    def test_trailers_end_a_request(self, picker: Picker) -> None:
        """A body without end_of_stream, then trailers: headers, body and trailers are answered in this order."""
        with talk(picker) as one:
            one.stream.send(wire.request_headers(), wire.request_body(completion(), end=False))
            one.stream.send(wire.request_trailers())
            kinds = [wire.kind(one.stream.receive()) for _ in range(3)]
        assert kinds == ["request_headers", "request_body", "request_trailers"]

    def test_requests_do_not_mix(self, picker: Picker) -> None:
        """Two streams, their messages interleaved: each gets its own body."""
        with talk(picker) as one, talk(picker) as two:
            for each in (one, two):
                each.stream.send(wire.request_headers())
            one.stream.send(wire.request_body(b'{"model":"m","prompt":"on', end=False))
            two.stream.send(wire.request_body(b'{"model":"m","prompt":"tw', end=False))
            two.stream.send(wire.request_body(b'o"}'))
            one.stream.send(wire.request_body(b'e"}'))
            found = [Routed([each.stream.receive(), each.stream.receive()]) for each in (one, two)]
        assert [each.document["prompt"] for each in found] == ["one", "two"]

    def test_many_streams_at_once(self, picker: Picker) -> None:
        """64 requests on the same connection, all begun before any is finished."""
        streams = [picker.stream() for _ in range(64)]
        for each in streams:
            each.send(wire.request_headers())
        for number, each in enumerate(streams):
            each.send(wire.request_body(completion(f"prompt {number}")))
        found = [Routed([each.receive(), each.receive()]) for each in streams]
        for each in streams:
            each.close()
        assert [each.document["prompt"] for each in found] == [f"prompt {number}" for number in range(64)]


class TestDestination:
    def test_header(self, picker: Picker, pool: Pool) -> None:
        """The destination is an endpoint of the pool, as ip:port."""
        assert route(picker).destination in pool.hostports

    def test_raw_value(self, picker: Picker) -> None:
        """It is set as raw bytes, which is what Envoy reads by default."""
        mutation = wire.common(route(picker).replies[0]).header_mutation
        assert mutation is not None
        headers = [option.header for option in mutation.set_headers if option.header]
        chosen = [header for header in headers if header.key == wire.DESTINATION]
        assert len(chosen) == 1
        assert chosen[0].raw_value
        assert not chosen[0].value

    def test_metadata(self, picker: Picker) -> None:
        """The same is in the dynamic metadata envoy.lb."""
        found = route(picker)
        assert found.metadata["envoy.lb"][wire.DESTINATION] == found.destination

    def test_a_client_cannot_choose(self, picker: Picker, pool: Pool) -> None:
        """A destination header of the client's is overwritten."""
        found = route(picker, headers={wire.DESTINATION: "10.9.9.9:1"})
        assert found.destination in pool.hostports

    def test_overwriting(self, picker: Picker) -> None:
        """The header replaces what is there, it is not added to it."""
        mutation = wire.common(route(picker, headers={wire.DESTINATION: "10.9.9.9:1"}).replies[0]).header_mutation
        assert mutation is not None
        options = [option for option in mutation.set_headers if option.header and option.header.key == wire.DESTINATION]
        # OVERWRITE_IF_EXISTS_OR_ADD, or nothing said: Envoy's ext_proc overwrites by default.
        assert [int(option.append_action) for option in options] in ([2], [0])
        assert not any(option.append for option in options)

    @pytest.mark.parametrize("method", ["GET", "DELETE", "POST"])
    def test_without_a_body(self, picker: Picker, pool: Pool, method: str) -> None:
        """A request that ends with its headers goes to an endpoint of the pool, too."""
        found = route(picker, b"", method=method, path="/v1/models")
        assert found.destination in pool.hostports
        assert found.metadata["envoy.lb"][wire.DESTINATION] == found.destination
        assert wire.common(found.replies[0]).clear_route_cache


class TestHeaders:
    def test_others_stay(self, picker: Picker) -> None:
        """A header of the client's is left alone or set to what it was; none is removed."""
        sent = {"x-custom": "one, two", "authorization": "Bearer secret", "accept": "*/*"}
        found = route(picker, headers=sent)
        mutation = wire.common(found.replies[0]).header_mutation
        assert mutation is not None
        assert not {key for key, value in sent.items() if found.headers.get(key, value) != value}
        assert not set(mutation.remove_headers) & set(sent)

    def test_request_id_is_made(self, picker: Picker) -> None:
        """A request without x-request-id gets one, a UUID."""
        assert uuid.UUID(route(picker).headers["x-request-id"])

    def test_request_ids_are_different(self, picker: Picker) -> None:
        """And no other request gets the same."""
        assert len({route(picker).headers["x-request-id"] for _ in range(5)}) == 5

    def test_request_id_is_kept(self, picker: Picker) -> None:
        """A request id that is there stays."""
        found = route(picker, headers={"x-request-id": "mine"})
        assert found.headers.get("x-request-id", "mine") == "mine"

    def test_content_length_fits(self, picker: Picker) -> None:
        """A content-length that is set is the length of the body that goes on."""
        body = completion()
        found = route(picker, body, headers={"content-length": str(len(body))})
        assert int(found.headers.get("content-length", len(body))) == len(found.body)

    def test_trace_goes_on(self, picker: Picker) -> None:
        """A W3C trace stays the same trace."""
        found = route(picker, headers={"traceparent": TRACEPARENT}).headers.get("traceparent", TRACEPARENT)
        assert found.split("-")[:2] == TRACEPARENT.split("-")[:2]
        assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]", found)

    @pytest.mark.parametrize("family", ["x-gateway-", "x-llm-d-"])
    def test_control_headers_are_not_changed(self, picker: Picker, family: str) -> None:
        """What the client told the picker is not told to the engine in another way."""
        sent = {f"{family}inference-fairness-id": "flow", f"{family}inference-objective": "o"}
        found = route(picker, headers=sent)
        assert not {key for key, value in sent.items() if found.headers.get(key, value) != value}


class TestBody:
    @pytest.mark.differs(go=REENCODES)
    @pytest.mark.parametrize(
        "body",
        [
            b'{ "prompt" : "a",\n "model":"m" }',
            '{"model":"m","prompt":"grün 日本 \\u00e9 \\/"}'.encode(),
            b'{"model":"m","prompt":"x","seed":12345678901234567890,"t":1.0,"u":1e2}',
            b'{"model":"m","prompt":"x","a":{"z":1,"b":2},"a2":[1, 2]}  \n',
        ],
        ids=["spaces", "escapes", "numbers", "order"],
    )
    def test_it_goes_on_byte_by_byte(self, picker: Picker, body: bytes) -> None:
        """The body that goes on is the one that came."""
        assert route(picker, body).body == body

    def test_its_content_goes_on(self, picker: Picker) -> None:
        """The body that goes on says the same as the one that came."""
        sent = {"model": "m", "prompt": "a \"b\" 'c' \n ü", "max_tokens": 5, "stop": ["x", None], "nested": {"a": [1]}}
        assert route(picker, json.dumps(sent).encode()).document == sent

    def test_chunks_are_limited(self, picker: Picker) -> None:
        """No piece is larger than 62 000 bytes."""
        found = route(picker, completion("x" * 500_000))
        assert max(len(body) for body, _ in found.pieces) <= wire.CHUNK
        assert len(found.document["prompt"]) == 500_000

    @pytest.mark.parametrize(("extra", "pieces"), [(-1, 1), (0, 1), (1, 2)])
    def test_at_the_limit(self, picker: Picker, extra: int, pieces: int) -> None:
        """A body of just the limit goes in one piece, a byte more needs two."""
        frame = len(json.dumps({"model": "m", "prompt": ""}, separators=(",", ":")))
        body = json.dumps({"model": "m", "prompt": "x" * (wire.CHUNK + extra - frame)}, separators=(",", ":")).encode()
        assert len(route(picker, body).pieces) == pieces

    def test_many_small_pieces(self, picker: Picker) -> None:
        """A body that comes in 500 pieces."""
        assert route(picker, completion("y" * 5000), pieces=500).document["prompt"] == "y" * 5000

    def test_a_piece_within_a_character(self, picker: Picker) -> None:
        """A body cut within the bytes of one character."""
        body = '{"model":"m","prompt":"ééé"}'.encode()
        assert route(picker, body, pieces=len(body)).document["prompt"] == "ééé"

    def test_a_megabyte(self, picker: Picker) -> None:
        """A prompt of a megabyte, in messages as large as Envoy's."""
        assert len(route(picker, completion("z" * 1_000_000), pieces=16).document["prompt"]) == 1_000_000

    @pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
    def test_apis(self, picker: Picker, pool: Pool, path: str) -> None:
        """Completions and chat completions."""
        chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        body = json.dumps(chat).encode() if "chat" in path else completion()
        assert route(picker, body, path=path).destination in pool.hostports

    def test_a_multimodal_chat(self, picker: Picker) -> None:
        """Content as a list of parts."""
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
        parts = [{"type": "text", "text": "what?"}, image]
        sent = {"model": "m", "messages": [{"role": "user", "content": parts}]}
        assert route(picker, json.dumps(sent).encode(), path="/v1/chat/completions").document == sent

    @pytest.mark.parametrize(
        ("path", "field"),
        [
            pytest.param("/v1/embeddings", "input", marks=pytest.mark.differs(go=NO_PROMPT)),
            pytest.param("/v1/responses", "input", marks=pytest.mark.differs(go=NO_PROMPT)),
            ("/v1/images/generations", "prompt"),
        ],
    )
    def test_other_apis(self, picker: Picker, pool: Pool, path: str, field: str) -> None:
        """Further OpenAI interfaces of model servers."""
        body = json.dumps({"model": "m", field: "hello"}).encode()
        assert route(picker, body, path=path).destination in pool.hostports

    @pytest.mark.differs(go="v1.3 decodes every body as JSON")
    def test_a_body_that_is_no_json(self, picker: Picker, pool: Pool) -> None:
        """An audio upload goes on unchanged."""
        form = b'--b\r\ncontent-disposition: form-data; name="file"\r\n\r\n\x00\xff\r\n--b--\r\n'
        headers = {"content-type": "multipart/form-data; boundary=b"}
        found = route(picker, form, headers, path="/v1/audio/transcriptions")
        assert found.destination in pool.hostports
        assert found.body == form


def test_a_client_that_leaves(picker: Picker) -> None:
    """Streams that end in the middle of a request do no harm."""
    for _ in range(5):
        with talk(picker) as one:
            one.stream.send(wire.request_headers(), wire.request_body(b'{"mod', end=False))
    assert isinstance(ask(picker), Routed)


def test_the_stream_ends_well(picker: Picker) -> None:
    """After the answer and Envoy's half-close, the status is OK."""
    with talk(picker) as one:
        one.ask()
        one.answer(b'{"choices":[]}')
        assert one.finish() == "OK"


def test_one_after_another(picker: Picker) -> None:
    """A hundred requests, one after another, each to its end."""
    for number in range(100):
        assert served(picker, completion(f"{number}")).destination
