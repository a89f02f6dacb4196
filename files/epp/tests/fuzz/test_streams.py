# SPDX-License-Identifier: GPL-3.0-or-later
"""ext_proc streams that no Envoy would send: the state machine, the director and the scheduler behind it.

Whatever comes, either answers come or a ProtocolError; every answer can be written; no chunk is too large; and when the
stream ends, no endpoint is held any more.
"""

from __future__ import annotations

import json
from collections.abc import Coroutine, Iterator
from typing import Any

from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    HttpBody,
    HttpHeaders,
    HttpTrailers,
    ProcessingRequest,
    ProcessingResponse,
    ProtocolConfiguration,
)
from hypothesis import given
from hypothesis import strategies as st

from epp import config, plugins
from epp.datalayer import Datastore
from epp.extproc import Director, DirectorOptions, ProtocolError, StreamService, Tracing
from epp.model import Endpoint
from epp.observe import PoolRecorder, Recorder
from epp.scheduling import Scheduler

NAMES = st.sampled_from(
    [
        *(":path", ":method", ":status", "content-type", "content-length", "x-request-id", "prefer", "traceparent"),
        *("x-gateway-inference-objective", "x-llm-d-model-name-rewrite", "x-gateway-model-name", "x-other"),
    ]
)
VALUES = st.one_of(
    st.sampled_from(
        [
            *("/v1/completions", "/v1/chat/completions?x=1", "POST", "GET", "200", "503", "application/json", "m"),
            *("text/event-stream", "multipart/form-data", "if-available", "", "12"),
        ]
    ),
    st.text(max_size=8),
)
BODIES = st.one_of(
    st.binary(max_size=64),
    st.sampled_from([b"", b"{", b'{"model":"m"}', b'{"model":1}', b'data: {"usage":{"prompt_tokens":1}}\n\n', b"[]"]),
    st.builds(
        lambda model, prompt, stream: json.dumps({"model": model, "prompt": prompt, "stream": stream}).encode(),
        st.text(max_size=6),
        st.one_of(st.text(max_size=200), st.lists(st.integers(), max_size=3), st.none()),
        st.booleans(),
    ),
    st.integers(60_000, 130_000).map(lambda size: b'{"model":"m","prompt":"' + b"x" * size + b'"}'),
)
HINTS = st.one_of(
    st.text(max_size=10), st.lists(st.sampled_from(["10.0.0.1", "10.0.0.1:8000", "x"]), max_size=3), st.booleans()
)


def header_map(headers: list[tuple[str, str]], raw: bool) -> HeaderMap:
    def made(key: str, value: str) -> HeaderValue:
        return HeaderValue(key=key, raw_value=value.encode()) if raw else HeaderValue(key=key, value=value)

    return HeaderMap(headers=[made(key, value) for key, value in headers])


@st.composite
def messages(draw: st.DrawFn) -> ProcessingRequest:
    kind = draw(st.sampled_from(["request_headers", "request_body", "response_headers", "response_body", "trailers"]))
    side = draw(st.sampled_from(["request", "response"]))
    end = draw(st.booleans())
    message = ProcessingRequest()
    if kind == "trailers":
        message = ProcessingRequest(**{f"{side}_trailers": HttpTrailers()})
    elif kind.endswith("headers"):
        headers = header_map(draw(st.lists(st.tuples(NAMES, VALUES), max_size=6)), draw(st.booleans()))
        message = ProcessingRequest(**{kind: HttpHeaders(headers=headers, end_of_stream=end)})
    else:
        message = ProcessingRequest(**{kind: HttpBody(body=draw(BODIES), end_of_stream=end)})
    if draw(st.booleans()):
        modes = st.integers(0, 6)
        message.protocol_config.CopyFrom(
            ProtocolConfiguration(request_body_mode=draw(modes), response_body_mode=draw(modes))
        )
    if draw(st.integers(0, 3)) == 0:
        message.metadata_context.filter_metadata["envoy.lb.subset_hint"].update(
            {"x-gateway-destination-endpoint-subset": draw(HINTS)}
        )
        message.metadata_context.filter_metadata["envoy.lb"].update(
            {"x-gateway-destination-endpoint-served": draw(st.sampled_from(["10.0.0.2:8000", "x", ""]))}
        )
        message.attributes["x"].update({"xds.route_name": draw(st.text(max_size=10))})
    return message


class Rooms:
    """A service with everything behind it, and three endpoints."""

    def __init__(self) -> None:
        self.build()

    def build(self) -> None:
        """All of it anew: what one stream has left behind must not be laid to another one's charge."""
        self.datastore, recorder = Datastore("pool"), Recorder()
        self.datastore.replace([Endpoint(f"e{i}", "ns", f"e{i}", f"10.0.0.{i}", 8000) for i in (1, 2, 3)])
        scheduler = Scheduler.from_config(
            config.default(), plugins.registry(), self.datastore, PoolRecorder(recorder, "pool"), seed=1
        )
        options = DirectorOptions(emit_scores=True, tracing=Tracing())
        self.service = StreamService(Director(scheduler, self.datastore, recorder, options), recorder)

    def play(self, stream: list[ProcessingRequest | bytes]) -> None:
        exchange = self.service.open([("x-gateway-inference-pool", "pool")])
        try:
            for message in stream:
                if exchange.done:
                    break
                data = message if isinstance(message, bytes) else message.SerializeToString()
                answers = exchange.receive(data)
                assert not isinstance(answers, Coroutine), "decisions are made at once here"
                check(answers)
        except ProtocolError:
            pass
        finally:
            exchange.close("OK")
        held, streams = [endpoint.inflight for endpoint in self.datastore.endpoints()], self.service.streams
        if any(held) or streams:
            self.build()
        assert held == [0, 0, 0]
        assert streams == 0


def check(answers: Any) -> None:
    for data in answers:
        answer = ProcessingResponse.FromString(data)
        if answer.WhichOneof("response") in ("request_body", "response_body"):
            common = getattr(answer, answer.WhichOneof("response")).response
            assert len(common.body_mutation.streamed_response.body) <= 62_000


def test_any_order_of_messages(campaign: Any, one_round: Any) -> None:
    rooms = Rooms()

    @one_round
    @given(st.lists(messages(), max_size=8))
    def target(stream: list[ProcessingRequest | bytes]) -> None:
        campaign.timed(lambda: rooms.play(stream))

    campaign.run(target)


def pieces(body: bytes, cuts: list[int]) -> Iterator[bytes]:
    at = 0
    for cut in sorted({cut % (len(body) + 1) for cut in cuts}):
        yield body[at:cut]
        at = cut
    yield body[at:]


CUTS = st.lists(st.integers(0, 400), max_size=4)
CHANGES = st.lists(st.tuples(st.integers(), st.integers(0, 255)), max_size=3)


def test_whole_exchanges_with_bytes_changed(campaign: Any, one_round: Any) -> None:
    """A good exchange, cut anywhere, of which single bytes are changed on the wire."""
    rooms = Rooms()
    headers = header_map([(":path", "/v1/completions"), (":method", "POST")], raw=True)
    answer = header_map([(":status", "200"), ("content-type", "application/json")], raw=True)

    @one_round
    @given(CUTS, CHANGES)
    def target(cuts: list[int], changes: list[tuple[int, int]]) -> None:
        body = list(pieces(b'{"model":"m","prompt":"' + b"hello " * 40 + b'"}', cuts))
        reply = list(pieces(b'{"model":"m","usage":{"prompt_tokens":3,"completion_tokens":4}}', cuts))
        stream = [ProcessingRequest(request_headers=HttpHeaders(headers=headers))]
        stream += [ProcessingRequest(request_body=HttpBody(body=part)) for part in body]
        stream[-1].request_body.end_of_stream = True
        stream.append(ProcessingRequest(response_headers=HttpHeaders(headers=answer)))
        stream += [ProcessingRequest(response_body=HttpBody(body=part)) for part in reply]
        stream[-1].response_body.end_of_stream = True
        changed: list[ProcessingRequest | bytes] = []
        for number, message in enumerate(stream):
            data = bytearray(message.SerializeToString())
            for position, byte in changes:
                if data and position % len(stream) == number:
                    data[position % len(data)] = byte
            changed.append(bytes(data))
        campaign.timed(lambda: rooms.play(changed))

    campaign.run(target)
