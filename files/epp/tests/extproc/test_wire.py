# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages read and written by hand, against protobuf: whatever it accepts is read as it reads it, and what is written
is what it would write."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue, HeaderValueOption
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    BodyMutation,
    BodyResponse,
    CommonResponse,
    HeaderMutation,
    HeadersResponse,
    HttpBody,
    HttpHeaders,
    HttpTrailers,
    ProcessingRequest,
    ProcessingResponse,
    ProtocolConfiguration,
    StreamedBodyResponse,
    TrailersResponse,
)
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from epp.extproc import incoming, replies
from epp.extproc.incoming import Incoming, read

NAMES = st.one_of(st.sampled_from([":path", "content-type", "x" * 127, "x" * 128, ""]), st.text(max_size=200))
VALUES = st.one_of(
    st.sampled_from([b"", b"a", b"\xff", b"v" * 127, b"v" * 128, b"v" * 20_000]), st.binary(max_size=300)
)
BODIES = st.one_of(
    st.binary(max_size=300), st.sampled_from([b"", b"x" * 127, b"x" * 128, b"x" * 70_000, b"x" * 3_000_000])
)


CHANGES = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=3)


@st.composite
def header_maps(draw: st.DrawFn) -> HeaderMap:
    found = HeaderMap()
    for name, value, form in draw(st.lists(st.tuples(NAMES, VALUES, st.integers(0, 9)), max_size=6)):
        header = HeaderValue(key=name)
        if form != 1:
            header.raw_value = value
        if form < 2:
            header.value = value.decode("latin-1")
        found.headers.append(header)
    return found


@st.composite
def requests(draw: st.DrawFn) -> ProcessingRequest:
    side = draw(st.sampled_from(["request", "response"]))
    part = draw(st.sampled_from(["headers", "body", "trailers", "none"]))
    end = draw(st.booleans())
    message = ProcessingRequest()
    if part == "headers":
        headers = HttpHeaders(headers=draw(header_maps()), end_of_stream=end)
        message = ProcessingRequest(**{f"{side}_headers": headers})
    elif part == "body":
        message = ProcessingRequest(**{f"{side}_body": HttpBody(body=draw(BODIES), end_of_stream=end)})
    elif part == "trailers":
        message = ProcessingRequest(**{f"{side}_trailers": HttpTrailers(trailers=draw(header_maps()))})
    if draw(st.booleans()):
        modes = st.integers(0, 6)
        config = ProtocolConfiguration(request_body_mode=draw(modes), response_body_mode=draw(modes))
        message.protocol_config.CopyFrom(config)
    if draw(st.booleans()):
        hint = draw(st.one_of(st.text(max_size=20), st.lists(st.sampled_from(["10.0.0.1", "10.0.0.1:80"]), max_size=3)))
        message.metadata_context.filter_metadata["envoy.lb.subset_hint"].update({incoming.SUBSET: hint})
    if draw(st.booleans()):
        message.metadata_context.filter_metadata["envoy.lb"].update({incoming.SERVED: draw(st.text(max_size=20))})
    if draw(st.booleans()):
        message.attributes["envoy.filters.http.ext_proc"].update({"xds.route_name": draw(st.text(max_size=20))})
    return message


def facts(message: Incoming) -> tuple[Any, ...]:
    context = message.context() if message.kind else None
    headers = message.headers() if message.kind in (incoming.REQUEST_HEADERS, incoming.RESPONSE_HEADERS) else None
    return message.kind, message.body, message.end_of_stream, headers, context


class TestReading:
    @settings(max_examples=100, deadline=None, database=None)
    @given(requests())
    def test_every_message_is_read_as_protobuf_reads_it(self, message: ProcessingRequest) -> None:
        data = message.SerializeToString()
        assert facts(read(data)) == facts(incoming._read_any(data))

    @settings(max_examples=800, deadline=None, database=None)
    @given(
        requests(),
        st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=3),
        st.integers(0, 40),
    )
    @example(ProcessingRequest(request_body=HttpBody(body=b"x")), [(0, 0)], 0)
    def test_bytes_changed(self, message: ProcessingRequest, changes: list[tuple[int, int]], cut: int) -> None:
        data = bytearray(message.SerializeToString())
        for position, byte in changes:
            if data:
                data[position % len(data)] = byte
        changed = bytes(data[: len(data) - cut] if cut < len(data) else data)
        try:
            expected = facts(incoming._read_any(changed))
        except DecodeError:
            expected = None
        try:
            found = facts(read(changed))
        except DecodeError:
            assert expected is None
            return
        if expected is not None:
            assert found == expected

    def test_envoys_form_is_read_without_protobuf(self, wire: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(incoming, "_read_any", None)
        monkeypatch.setattr(incoming, "_any_headers", None)
        assert read(wire.headers(end=True).SerializeToString()).headers()[":method"] == "POST"
        assert read(wire.body(b"x" * 200, end=False).SerializeToString()).body == b"x" * 200
        assert read(wire.answer_body(b"", end=True).SerializeToString()).end_of_stream
        assert read(wire.answer_trailers().SerializeToString()).kind == incoming.RESPONSE_TRAILERS

    @pytest.mark.parametrize(
        "more",
        [
            ProcessingRequest(response_body=HttpBody(body=b"second")),
            ProcessingRequest(request_body=HttpBody(body=b"second")),
            ProcessingRequest(observability_mode=True),
        ],
    )
    def test_other_forms_are_protobufs(self, more: ProcessingRequest) -> None:
        data = ProcessingRequest(request_body=HttpBody(body=b"first")).SerializeToString() + more.SerializeToString()
        whole = ProcessingRequest.FromString(data)
        found = read(data)
        assert found.kind == ProcessingRequest.DESCRIPTOR.fields_by_name[whole.WhichOneof("request")].number
        assert found.body == getattr(whole, whole.WhichOneof("request")).body

    def test_no_secret_stays_in_memory(self, wire: Any) -> None:
        headers = {":method": "POST", "authorization": "Bearer one", "cookie": "two", "x-api-key": "three"}
        assert read(wire.headers(headers).SerializeToString()).headers() == headers
        kept = set(incoming._entries.values())
        assert (":method", "POST") in kept
        assert not {name for name, _ in kept} & {"authorization", "cookie", "x-api-key"}

    def test_what_is_remembered_is_bounded(self, wire: Any) -> None:
        for number in range(2 * incoming._MAX_ENTRIES):
            headers = {"x-number": str(number), "x-long": "x" * 200}
            assert read(wire.headers(headers).SerializeToString()).headers() == headers
        assert len(incoming._entries) <= incoming._MAX_ENTRIES
        assert "x-long" not in dict(incoming._entries.values())

    def test_a_repeated_header_has_commas(self) -> None:
        headers = [HeaderValue(key="x", raw_value=value) for value in (b"a", b"b", b"c")]
        message = ProcessingRequest(response_headers=HttpHeaders(headers=HeaderMap(headers=headers)))
        assert read(message.SerializeToString()).headers() == {"x": "a,b,c"}


def headers_of(pairs: dict[str, str]) -> HeaderMutation:
    action = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    options = [
        HeaderValueOption(header=HeaderValue(key=key, raw_value=value.encode()), append_action=action)
        for key, value in pairs.items()
    ]
    return HeaderMutation(set_headers=options)


PAIRS = st.dictionaries(st.text(max_size=140), st.text(max_size=140), max_size=4)
SIZES = st.one_of(st.integers(0, 300), st.sampled_from([16_383, 16_384, 61_999, 62_000, 62_001, 130_000]))


class TestWriting:
    def same(self, written: bytes, expected: ProcessingResponse) -> None:
        assert ProcessingResponse.FromString(written) == expected

    @given(st.text(min_size=1, max_size=200), PAIRS, st.lists(st.text(max_size=9), max_size=2), st.booleans())
    def test_headers_that_route(self, to: str, headers: dict[str, str], removed: list[str], scored: bool) -> None:
        mutation = headers_of({replies.DESTINATION: to, **headers})
        mutation.remove_headers.extend(removed)
        common = CommonResponse(header_mutation=mutation, clear_route_cache=True)
        expected = ProcessingResponse(request_headers=HeadersResponse(response=common))
        scores = {"10.0.0.1:80": 0.5} if scored else {}
        expected.dynamic_metadata["envoy.lb"] = {
            replies.DESTINATION: to,
            **({replies.SCORES: scores} if scored else {}),
        }
        if replies.DESTINATION not in headers:
            metadata = replies.lb_metadata(to, scores)
            self.same(replies.request_headers(replies.routing(to, headers, removed=removed), metadata), expected)

    @given(st.binary(max_size=300))
    def test_a_body_that_routes(self, body: bytes) -> None:
        common = CommonResponse(
            header_mutation=headers_of({replies.DESTINATION: "x"}),
            body_mutation=BodyMutation(body=body),
            clear_route_cache=True,
        )
        expected = ProcessingResponse(request_body=BodyResponse(response=common))
        self.same(replies.request_body(replies.routing("x", {}, body)), expected)

    @given(SIZES, st.booleans(), st.booleans())
    def test_streamed_bodies(self, size: int, end: bool, of_request: bool) -> None:
        written = list(replies.streamed(b"x" * size, end, of_request))
        whole, rest = divmod(size, replies.MAX_CHUNK)
        sizes = [replies.MAX_CHUNK] * whole + ([rest] if rest or (end and not size) else [])
        assert len(written) == len(sizes)
        for number, (data, length) in enumerate(zip(written, sizes, strict=True)):
            last = end and number == len(sizes) - 1
            piece = StreamedBodyResponse(body=b"x" * length, end_of_stream=last)
            answer = BodyResponse(response=CommonResponse(body_mutation=BodyMutation(streamed_response=piece)))
            kind = "request_body" if of_request else "response_body"
            self.same(data, ProcessingResponse(**{kind: answer}))

    @given(PAIRS)
    def test_response_headers(self, headers: dict[str, str]) -> None:
        common = CommonResponse(header_mutation=headers_of(headers))
        expected = ProcessingResponse(response_headers=HeadersResponse(response=common))
        self.same(replies.response_headers(headers), expected)

    @pytest.mark.parametrize(
        ("written", "expected"),
        [
            (replies.request_headers(), ProcessingResponse(request_headers=HeadersResponse())),
            (replies.request_body(), ProcessingResponse(request_body=BodyResponse())),
            (replies.response_body(), ProcessingResponse(response_body=BodyResponse())),
            (replies.REQUEST_TRAILERS, ProcessingResponse(request_trailers=TrailersResponse())),
            (replies.RESPONSE_TRAILERS, ProcessingResponse(response_trailers=TrailersResponse())),
            (
                replies.response_body(b"x", fixed_length=True),
                ProcessingResponse(
                    response_body=BodyResponse(
                        response=CommonResponse(
                            header_mutation=headers_of({"content-length": "1"}), body_mutation=BodyMutation(body=b"x")
                        )
                    )
                ),
            ),
            (
                replies.response_body(b""),
                ProcessingResponse(
                    response_body=BodyResponse(response=CommonResponse(body_mutation=BodyMutation(clear_body=True)))
                ),
            ),
        ],
    )
    def test_the_rest(self, written: bytes, expected: ProcessingResponse) -> None:
        self.same(written, expected)
