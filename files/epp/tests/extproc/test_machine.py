# SPDX-License-Identifier: GPL-3.0-or-later
"""The state machine alone: what it answers to which message, in every body mode."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest, ProcessingResponse

from epp.extproc import machine as under_test
from epp.extproc.incoming import read
from epp.extproc.machine import NeedDecision, ProtocolError, Route
from epp.extproc.messages import BodyMode
from epp.extproc.replies import MAX_CHUNK
from epp.model import Rejection

FULL, BUFFERED, PARTIAL, STREAMED, NONE = (
    BodyMode.FULL_DUPLEX_STREAMED,
    BodyMode.BUFFERED,
    BodyMode.BUFFERED_PARTIAL,
    BodyMode.STREAMED,
    BodyMode.NONE,
)
BODY = b'{"model": "llama", "prompt": "hello"}'
HERE = "10.0.0.2:8000"


class StreamMachine:
    """The machine, with messages of protobuf in and out."""

    def __init__(self, hints: tuple[str, ...] = ()) -> None:
        self.inner = under_test.StreamMachine(hints)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def feed(self, message: ProcessingRequest) -> Any:
        return self._out(self.inner.feed(read(message.SerializeToString())))

    def routed(self, route: Route) -> Any:
        return self._out(self.inner.routed(route))

    def rejected(self, rejection: Rejection) -> Any:
        return self._out(self.inner.rejected(rejection))

    @staticmethod
    def _out(out: Iterable[bytes] | NeedDecision) -> Any:
        return out if isinstance(out, NeedDecision) else [ProcessingResponse.FromString(each) for each in out]


def need(out: object) -> NeedDecision:
    assert isinstance(out, NeedDecision)
    return out


def same(destination: str = HERE, **more: Any) -> Route:
    return Route(destination, model="llama", target_model="llama", **more)


def renamed(body: bytes | None) -> Route:
    return Route(HERE, model="llama", target_model="llama-v2", body=body)


def after_request(wire: Any, modes: tuple[BodyMode, BodyMode], route: Route) -> StreamMachine:
    """A machine whose request has gone out, by headers alone."""
    machine = StreamMachine()
    need(machine.feed(wire.headers(end=True, modes=modes)))
    list(machine.routed(route))
    return machine


class TestFullDuplex:
    def test_nothing_is_answered_before_the_end_of_the_body(self, wire: Any) -> None:
        machine = StreamMachine()
        assert list(machine.feed(wire.headers())) == []
        assert list(machine.feed(wire.body(BODY[:10], end=False))) == []
        asked = need(machine.feed(wire.body(BODY[10:])))
        assert asked.body == BODY
        assert not asked.truncated
        assert asked.headers[":path"] == "/v1/completions"

    def test_headers_come_first_with_the_destination_twice_then_the_body(self, wire: Any) -> None:
        machine = StreamMachine()
        machine.feed(wire.headers())
        need(machine.feed(wire.body(BODY)))
        out = list(machine.routed(same(headers={"x-request-id": "r"}, scores={HERE: 0.5})))
        assert wire.kinds(out) == ["request_headers", "request_body"]
        assert wire.set_headers(out[0]) == {"x-gateway-destination-endpoint": HERE, "x-request-id": "r"}
        assert out[0].request_headers.response.clear_route_cache
        metadata = out[0].dynamic_metadata["envoy.lb"]
        assert metadata["x-gateway-destination-endpoint"] == HERE
        assert metadata["x-gateway-destination-endpoint-scores"][HERE] == 0.5
        assert wire.streamed(out) == (BODY, [True])

    def test_headers_that_are_taken_away(self, wire: Any) -> None:
        machine = StreamMachine()
        machine.feed(wire.headers())
        need(machine.feed(wire.body(BODY)))
        (first, _) = machine.routed(same(removed=("x-prefiller-host-port",)))
        assert list(first.request_headers.response.header_mutation.remove_headers) == ["x-prefiller-host-port"]

    def test_a_length_is_never_set(self, wire: Any) -> None:
        machine = StreamMachine()
        machine.feed(wire.headers({":path": "/", "content-length": str(len(BODY))}))
        need(machine.feed(wire.body(BODY)))
        out = list(machine.routed(renamed(b"{}")))
        assert "content-length" not in wire.set_headers(out[0])

    @pytest.mark.parametrize("size", [MAX_CHUNK - 1, MAX_CHUNK, MAX_CHUNK + 1, 3 * MAX_CHUNK])
    def test_large_bodies_go_in_pieces_that_envoy_takes(self, wire: Any, size: int) -> None:
        body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        machine = StreamMachine()
        machine.feed(wire.headers())
        for start in range(0, size, 50_000):
            out = machine.feed(wire.body(body[start : start + 50_000], end=start + 50_000 >= size))
        need(out)
        sent = list(machine.routed(same()))
        got, ends = wire.streamed(sent)
        assert got == body
        assert ends == [False] * (len(ends) - 1) + [True]
        assert len(ends) == -(-size // MAX_CHUNK)
        assert all(len(m.request_body.response.body_mutation.streamed_response.body) <= MAX_CHUNK for m in sent[1:])

    def test_a_rewritten_body_goes_in_place_of_the_one_that_came(self, wire: Any) -> None:
        machine = StreamMachine()
        machine.feed(wire.headers())
        need(machine.feed(wire.body(BODY)))
        assert wire.streamed(machine.routed(renamed(b"new")))[0] == b"new"

    def test_an_empty_body_still_ends(self, wire: Any) -> None:
        machine = StreamMachine()
        machine.feed(wire.headers())
        assert need(machine.feed(wire.body(b""))).body == b""
        assert wire.streamed(machine.routed(same())) == (b"", [True])

    def test_trailers_end_the_body_and_are_answered_last(self, wire: Any) -> None:
        machine = StreamMachine()
        machine.feed(wire.headers())
        machine.feed(wire.body(BODY, end=False))
        assert need(machine.feed(wire.trailers())).body == BODY
        out = list(machine.routed(same()))
        assert wire.kinds(out) == ["request_headers", "request_body", "request_trailers"]
        assert wire.streamed(out) == (BODY, [False])

    def test_trailers_without_any_body(self, wire: Any) -> None:
        machine = StreamMachine()
        machine.feed(wire.headers())
        assert need(machine.feed(wire.trailers())).body == b""
        assert wire.kinds(machine.routed(same())) == ["request_headers", "request_trailers"]


class TestOtherRequestModes:
    def test_headers_only(self, wire: Any) -> None:
        machine = StreamMachine()
        asked = need(machine.feed(wire.headers({":method": "GET", ":path": "/v1/models"}, end=True)))
        assert asked.body == b""
        out = list(machine.routed(same()))
        assert wire.kinds(out) == ["request_headers"]
        assert wire.set_headers(out[0])["x-gateway-destination-endpoint"] == HERE

    @pytest.mark.parametrize("mode", [BUFFERED, PARTIAL])
    def test_buffered_headers_are_let_go_at_once_and_routed_with_the_body(self, wire: Any, mode: BodyMode) -> None:
        machine = StreamMachine()
        (reply,) = machine.feed(wire.headers(modes=(mode, mode)))
        assert reply.WhichOneof("response") == "request_headers"
        assert not reply.request_headers.HasField("response")
        asked = need(machine.feed(wire.body(BODY)))
        assert (asked.body, asked.truncated) == (BODY, False)
        (out,) = machine.routed(same())
        assert wire.set_headers(out) == {"x-gateway-destination-endpoint": HERE}
        assert out.request_body.response.clear_route_cache
        assert not out.request_body.response.HasField("body_mutation")
        assert out.dynamic_metadata["envoy.lb"]["x-gateway-destination-endpoint"] == HERE

    def test_buffered_rewrite_announces_the_new_length(self, wire: Any) -> None:
        machine = StreamMachine()
        machine.feed(wire.headers({":path": "/", "content-length": "37"}, modes=(BUFFERED, BUFFERED)))
        need(machine.feed(wire.body(BODY)))
        (out,) = machine.routed(renamed(b"newer"))
        assert out.request_body.response.body_mutation.body == b"newer"
        assert wire.set_headers(out)["content-length"] == "5"

    def test_buffered_body_before_trailers(self, wire: Any) -> None:
        machine = StreamMachine()
        machine.feed(wire.headers(modes=(BUFFERED, BUFFERED)))
        assert not need(machine.feed(wire.body(BODY, end=False))).truncated
        list(machine.routed(same()))
        assert wire.kinds(machine.feed(wire.trailers())) == ["request_trailers"]

    def test_a_partial_body_may_be_cut_off_and_keeps_its_length_to_itself(self, wire: Any) -> None:
        machine = StreamMachine()
        machine.feed(wire.headers({":path": "/", "content-length": "999"}, modes=(PARTIAL, PARTIAL)))
        assert need(machine.feed(wire.body(BODY, end=False))).truncated
        (out,) = machine.routed(renamed(b"newer"))
        assert "content-length" not in wire.set_headers(out)

    def test_a_body_though_none_was_announced_passes_and_is_not_routed_again(self, wire: Any) -> None:
        machine = StreamMachine()
        need(machine.feed(wire.headers(modes=(NONE, FULL))))
        list(machine.routed(same()))
        assert wire.kinds(machine.feed(wire.body(BODY, end=False))) == ["request_body"]
        assert wire.kinds(machine.feed(wire.body(BODY))) == ["request_body"]

    @pytest.mark.parametrize("mode", [STREAMED, NONE])
    def test_what_envoy_sends_on_at_once_is_routed_by_its_headers(self, wire: Any, mode: BodyMode) -> None:
        machine = StreamMachine()
        assert need(machine.feed(wire.headers(modes=(mode, mode)))).body == b""
        (out,) = machine.routed(same())
        assert wire.set_headers(out)["x-gateway-destination-endpoint"] == HERE

    def test_streamed_chunks_pass(self, wire: Any) -> None:
        machine = StreamMachine()
        machine.feed(wire.headers(modes=(STREAMED, STREAMED)))
        list(machine.routed(same()))
        for end in (False, True):
            (out,) = machine.feed(wire.body(b"x", end=end))
            assert out.WhichOneof("response") == "request_body"
            assert not out.request_body.HasField("response")

    def test_streamed_rewrite_holds_chunks_until_the_model_is_found(self, wire: Any) -> None:
        machine = StreamMachine()
        machine.feed(wire.headers(modes=(STREAMED, STREAMED)))
        list(machine.routed(Route(HERE, model="", target_model="llama-v2")))
        sent = []
        for chunk in (b'{"prompt": "a", "mo', b'del": "lla', b'ma", "x"', b": 1}"):
            (out,) = machine.feed(wire.body(chunk, end=chunk.endswith(b"}")))
            sent.append(out.request_body.response.body_mutation)
        assert [mutation.clear_body for mutation in sent[:2]] == [True, True]
        assert sent[2].body == b'{"prompt": "a", "model": "llama-v2", "x"'
        assert sent[3].WhichOneof("mutation") is None  # passes as it is
        machine.feed(wire.answer())
        (back,) = machine.feed(wire.answer_body(b'{"model": "llama-v2"}'))
        assert back.response_body.response.body_mutation.body == b'{"model": "llama"}'

    @pytest.mark.parametrize("ending", ["end", "trailers"])
    def test_streamed_rewrite_without_a_model_is_refused(self, wire: Any, ending: str) -> None:
        machine = StreamMachine()
        machine.feed(wire.headers(modes=(STREAMED, STREAMED)))
        list(machine.routed(Route(HERE, model="", target_model="llama-v2")))
        out = machine.feed(wire.body(b'{"prompt": "a"}', end=ending == "end"))
        if ending == "trailers":
            out = machine.feed(wire.trailers())
        (refusal,) = out
        assert refusal.immediate_response.status.code == 400
        assert refusal.immediate_response.body == b"inference error: BadRequest - model not found in request body"
        assert machine.done


class TestRejection:
    def test_status_text_and_reason(self, wire: Any) -> None:
        machine = StreamMachine()
        machine.feed(wire.headers())
        need(machine.feed(wire.body(BODY)))
        (out,) = machine.rejected(Rejection(503, "ServiceUnavailable", "none", "rejected-no-endpoints"))
        reply = out.immediate_response
        assert reply.status.code == 503
        assert reply.body == b"inference error: ServiceUnavailable - none"
        (reason,) = reply.headers.set_headers
        assert (reason.header.key, reason.header.raw_value) == (
            "x-llm-d-request-dropped-reason",
            b"rejected-no-endpoints",
        )
        assert machine.done

    def test_no_reason_no_header(self, wire: Any) -> None:
        machine = StreamMachine()
        need(machine.feed(wire.headers(end=True)))
        (out,) = machine.rejected(Rejection(400, "BadRequest", "no"))
        assert not out.immediate_response.HasField("headers")


class TestResponse:
    def test_headers_are_marked(self, wire: Any) -> None:
        machine = after_request(wire, (FULL, FULL), same())
        (out,) = machine.feed(wire.answer("text/event-stream; charset=utf-8"))
        assert wire.set_headers(out) == {"x-went-into-resp-headers": "true"}
        assert machine.response is not None
        assert (machine.response.status, machine.response.streaming, machine.response.ended) == (200, True, False)

    def test_full_duplex_echoes_each_chunk_at_once(self, wire: Any) -> None:
        machine = after_request(wire, (FULL, FULL), same())
        machine.feed(wire.answer())
        assert wire.streamed(machine.feed(wire.answer_body(b"one", end=False))) == (b"one", [False])
        assert wire.streamed(machine.feed(wire.answer_body(b"two"))) == (b"two", [True])
        assert machine.response is not None
        assert (machine.response.size, machine.response.ended) == (6, True)

    @pytest.mark.parametrize("mode", [STREAMED, BUFFERED, PARTIAL])
    def test_other_modes_let_chunks_pass(self, wire: Any, mode: BodyMode) -> None:
        machine = after_request(wire, (FULL, mode), same())
        machine.feed(wire.answer("text/event-stream"))
        (out,) = machine.feed(wire.answer_body(b"data: 1\n\n"))
        assert out.WhichOneof("response") == "response_body"
        assert not out.response_body.HasField("response")

    @pytest.mark.parametrize("content_type", ["application/json", "text/event-stream"])
    def test_full_duplex_renames_across_chunks(self, wire: Any, content_type: str) -> None:
        machine = after_request(wire, (FULL, FULL), renamed(None))
        machine.feed(wire.answer(content_type))
        body = b'{"id": 1, "model": "llama-v2", "text": "\\"model\\": \\"llama-v2\\""}'
        pieces, ends = [], []
        for index in range(len(body)):
            piece, end = wire.streamed(
                machine.feed(wire.answer_body(body[index : index + 1], end=index == len(body) - 1))
            )
            pieces.append(piece)
            ends += end
        assert b"".join(pieces) == body.replace(b'"model": "llama-v2"', b'"model": "llama"')
        assert ends[-1]
        assert not any(ends[:-1])

    def test_streamed_renames(self, wire: Any) -> None:
        machine = after_request(wire, (FULL, STREAMED), renamed(None))
        machine.feed(wire.answer())
        (out,) = machine.feed(wire.answer_body(b'{"model": "llama-', end=False))
        assert out.response_body.response.body_mutation.body == b"{"
        (out,) = machine.feed(wire.answer_body(b'v2"}'))
        assert out.response_body.response.body_mutation.body == b'"model": "llama"}'

    def test_streamed_chunk_that_is_held_as_a_whole_is_cleared(self, wire: Any) -> None:
        machine = after_request(wire, (FULL, STREAMED), renamed(None))
        machine.feed(wire.answer())
        (out,) = machine.feed(wire.answer_body(b'"mod', end=False))
        assert out.response_body.response.body_mutation.clear_body

    def test_buffered_rename_announces_the_new_length(self, wire: Any) -> None:
        machine = after_request(wire, (FULL, BUFFERED), renamed(None))
        machine.feed(wire.answer(length=21))
        (out,) = machine.feed(wire.answer_body(b'{"model": "llama-v2"}'))
        assert out.response_body.response.body_mutation.body == b'{"model": "llama"}'
        assert wire.set_headers(out) == {"content-length": "18"}

    def test_buffered_rename_of_chunked_answers_announces_none(self, wire: Any) -> None:
        machine = after_request(wire, (FULL, BUFFERED), renamed(None))
        machine.feed(wire.answer())
        (out,) = machine.feed(wire.answer_body(b'{"model": "llama-v2"}'))
        assert wire.set_headers(out) == {}

    def test_trailers_end_the_answer(self, wire: Any) -> None:
        machine = after_request(wire, (FULL, FULL), same())
        machine.feed(wire.answer())
        machine.feed(wire.answer_body(b"x", end=False))
        assert wire.kinds(machine.feed(wire.answer_trailers())) == ["response_trailers"]
        assert machine.response is not None
        assert machine.response.ended

    def test_what_a_rename_holds_goes_before_the_trailers(self, wire: Any) -> None:
        machine = after_request(wire, (FULL, FULL), renamed(None))
        machine.feed(wire.answer())
        assert wire.streamed(machine.feed(wire.answer_body(b'x"model": "lla', end=False)))[0] == b"x"
        out = list(machine.feed(wire.answer_trailers()))
        assert wire.kinds(out) == ["response_body", "response_trailers"]
        assert wire.streamed(out) == (b'"model": "lla', [False])

    def test_an_answer_without_body(self, wire: Any) -> None:
        machine = after_request(wire, (FULL, FULL), same())
        machine.feed(wire.answer(status="204", end=True))
        assert machine.response is not None
        assert (machine.response.status, machine.response.ended) == (204, True)

    def test_a_stream_may_begin_with_the_answer(self, wire: Any) -> None:
        machine = StreamMachine()
        (out,) = machine.feed(wire.answer())
        assert wire.set_headers(out) == {"x-went-into-resp-headers": "true"}
        assert wire.streamed(machine.feed(wire.answer_body(b"x"))) == (b"x", [True])


class TestSubset:
    @pytest.mark.parametrize(
        ("hint", "expected"),
        [
            (["10.0.0.1:8000", "10.0.0.2"], {"10.0.0.1:8000", "10.0.0.2"}),
            ("10.0.0.1:8000, 10.0.0.2", {"10.0.0.1:8000", "10.0.0.2"}),
            ([], set()),
            ("", set()),
            (None, None),
        ],
    )
    def test_list_and_comma_string(self, wire: Any, hint: object, expected: set[str] | None) -> None:
        asked = need(StreamMachine().feed(wire.headers(end=True, subset=hint)))
        assert asked.subset == expected

    def test_other_metadata_is_no_hint(self, wire: Any) -> None:
        message = wire.headers(end=True)
        message.metadata_context.filter_metadata["envoy.lb.subset_hint"].update({"other": "x"})
        assert need(StreamMachine().feed(message)).subset is None


class TestHeaders:
    def test_repeated_headers_are_joined_and_old_values_read(self, wire: Any) -> None:
        message = wire.headers({"a": "1"}, end=True)
        message.request_headers.headers.headers.add(key="a", raw_value=b"2")
        message.request_headers.headers.headers.add(key="b", value="text")
        assert need(StreamMachine().feed(message)).headers == {"a": "1,2", "b": "text"}


class TestProtocolErrors:
    def test_nothing_in_it(self, wire: Any) -> None:
        with pytest.raises(ProtocolError, match="without a request"):
            StreamMachine().feed(type(wire.trailers())())

    def test_unknown_mode(self, wire: Any) -> None:
        message = wire.headers()
        message.protocol_config.request_body_mode = 5
        with pytest.raises(ProtocolError, match="body mode 5 is not supported; use FULL_DUPLEX_STREAMED"):
            StreamMachine().feed(message)

    @pytest.mark.parametrize("first", ["body", "trailers"])
    def test_headers_were_skipped(self, wire: Any, first: str) -> None:
        message = wire.body(b"x") if first == "body" else wire.trailers()
        with pytest.raises(ProtocolError, match="set request_header_mode to SEND"):
            StreamMachine().feed(message)

    def test_headers_twice(self, wire: Any) -> None:
        machine = StreamMachine()
        machine.feed(wire.headers())
        with pytest.raises(ProtocolError, match="second time"):
            machine.feed(wire.headers())

    def test_body_behind_its_end(self, wire: Any) -> None:
        machine = StreamMachine()
        need(machine.feed(wire.headers(end=True)))
        with pytest.raises(ProtocolError, match="behind its end"):
            machine.feed(wire.body(b"x"))

    def test_answer_before_the_decision(self, wire: Any) -> None:
        machine = StreamMachine()
        need(machine.feed(wire.headers(end=True)))
        with pytest.raises(ProtocolError, match="before the request was routed"):
            machine.feed(wire.answer())
