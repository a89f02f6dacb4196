# SPDX-License-Identifier: GPL-3.0-or-later
"""All of Envoy's body modes, message by message: who waits for whom, and that exactly one reply names the endpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from conformance.kit import wire
from conformance.kit.grpc import Stream
from conformance.kit.picker import Picker
from conformance.kit.talk import completion, cut_up
from conformance.kit.wire import Mode
from conformance.kit.world import Pool

GO = "v1.3 speaks FULL_DUPLEX_STREAMED only"
DUPLEX = Mode.FULL_DUPLEX_STREAMED
ALL = [DUPLEX, Mode.BUFFERED, Mode.BUFFERED_PARTIAL, Mode.STREAMED, Mode.NONE]
MODES = [
    pytest.param(each, id=each.name or "", marks=[] if each == DUPLEX else [pytest.mark.differs(go=GO)]) for each in ALL
]
MIXED = [
    (Mode.BUFFERED, Mode.STREAMED),
    (Mode.STREAMED, Mode.BUFFERED),
    (DUPLEX, Mode.STREAMED),
    (DUPLEX, Mode.BUFFERED),
    (Mode.BUFFERED, DUPLEX),
    (DUPLEX, Mode.NONE),
    (Mode.BUFFERED_PARTIAL, Mode.NONE),
    (Mode.NONE, DUPLEX),
]
ANSWER = b'{"model":"target","choices":[]}'
EVENTS = [b'data: {"model":"target","n":1}\n\n', b'data: {"model":"target","n":2}\n\n', b"data: [DONE]\n\n"]
RENAME = {"x-gateway-model-name-rewrite": "target"}
STREAMED = pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])


@pytest.fixture
def stream(picker: Picker) -> Iterator[Stream]:
    """An ext_proc stream."""
    found = picker.stream()
    yield found
    found.close()


def request(stream: Stream, mode: Mode, answer: Mode, body: bytes, headers: dict[str, str]) -> tuple[list[str], bytes]:
    """Have the request phase as Envoy has it in a mode; returns the destinations named, and the body that goes on."""
    stream.send(wire.request_headers(headers, modes=(mode, answer)))
    cut = [body] if mode in (Mode.BUFFERED, Mode.BUFFERED_PARTIAL) else cut_up(body, 4)
    if mode == DUPLEX:
        return _duplex_request(stream, cut)
    replies = [stream.receive()]  # in every other mode Envoy waits here
    assert wire.kind(replies[0]) == "request_headers"
    goes_on = body if mode == Mode.NONE else b""
    for number, each in enumerate(cut if mode != Mode.NONE else [], 1):
        stream.send(wire.request_body(each, end=number == len(cut)))
        replies.append(stream.receive())
        assert wire.kind(replies[-1]) == "request_body"
        goes_on += wire.replaced(replies[-1], each)
    return named(replies), goes_on


def _duplex_request(stream: Stream, cut: list[bytes]) -> tuple[list[str], bytes]:
    for number, each in enumerate(cut, 1):
        stream.send(wire.request_body(each, end=number == len(cut)))
    replies, goes_on, ended = [stream.receive()], b"", False
    while not ended:
        replies.append(stream.receive())
        piece, ended = wire.piece(replies[-1])
        goes_on += piece
    return named(replies), goes_on


def named(replies: list[wire.ProcessingResponse]) -> list[str]:
    """Destinations in the headers of replies; each must be in the metadata beside it, too."""
    found = []
    for each in replies:
        if destination := wire.headers_of(each).get(wire.DESTINATION):
            assert wire.metadata_of(each)["envoy.lb"][wire.DESTINATION] == destination
            found.append(destination)
    return found


def response(stream: Stream, mode: Mode, pieces: list[bytes], content_type: str) -> bytes:
    """Have the response phase as Envoy has it in a mode; returns what the client gets."""
    stream.send(wire.response_headers(content_type=content_type))
    assert wire.kind(stream.receive()) == "response_headers"
    if mode == Mode.NONE:
        return b"".join(pieces)
    if mode in (Mode.BUFFERED, Mode.BUFFERED_PARTIAL):
        pieces = [b"".join(pieces)]
    gets, ended = b"", False
    for number, each in enumerate(pieces, 1):
        stream.send(wire.response_body(each, end=number == len(pieces)))
        if mode != DUPLEX:
            reply = stream.receive()
            assert wire.kind(reply) == "response_body"
            gets += wire.replaced(reply, each)
    while mode == DUPLEX and not ended:
        piece, ended = wire.piece(stream.receive())
        gets += piece
    return gets


@pytest.mark.parametrize("mode", MODES)
class TestRequest:
    def test_one_destination(self, stream: Stream, pool: Pool, mode: Mode) -> None:
        """Exactly one reply names the endpoint; the body goes on as it came."""
        body = completion("a prompt that is longer than a piece")
        destinations, goes_on = request(stream, mode, mode, body, {})
        assert len(destinations) == 1
        assert destinations[0] in pool.hostports
        assert json.loads(goes_on) == json.loads(body)

    def test_nothing_is_left_over(self, stream: Stream, mode: Mode) -> None:
        """After the request there is silence until the answer."""
        destinations, _ = request(stream, mode, mode, completion(), {})
        assert destinations
        assert stream.silent()


@pytest.mark.parametrize("mode", MODES[:-1])
class TestRename:
    def test_request(self, stream: Stream, mode: Mode) -> None:
        """The model's name is changed in the request."""
        _, goes_on = request(stream, mode, mode, completion(model="asked"), RENAME)
        assert json.loads(goes_on) == {"model": "target", "prompt": "hello"}

    @pytest.mark.differs(go=GO)
    @STREAMED
    def test_answer(self, stream: Stream, mode: Mode, streamed: bool) -> None:
        """And changed back in the answer."""
        request(stream, mode, mode, completion(model="asked"), RENAME)
        pieces = EVENTS if streamed else [ANSWER]
        found = response(stream, mode, pieces, wire.EVENTS if streamed else wire.JSON)
        assert found == b"".join(pieces).replace(b"target", b"asked")


@STREAMED
@pytest.mark.parametrize("mode", MODES)
def test_answers_pass(stream: Stream, mode: Mode, streamed: bool) -> None:
    """The answer passes, each message of Envoy's is answered as the mode wants it, and silence follows."""
    request(stream, mode, mode, completion(model="target"), {})
    pieces = EVENTS if streamed else [ANSWER]
    found = response(stream, mode, pieces, wire.EVENTS if streamed else wire.JSON)
    assert found == b"".join(pieces) or json.loads(found) == json.loads(b"".join(pieces))
    assert stream.silent(0.1)


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        pytest.param(
            *pair,
            id=f"{pair[0].name}-{pair[1].name}",
            marks=[] if pair == (DUPLEX, Mode.NONE) else [pytest.mark.differs(go=GO)],
        )
        for pair in MIXED
    ],
)
def test_mixed(stream: Stream, pool: Pool, asked: Mode, answered: Mode) -> None:
    """Different modes for request and answer."""
    destinations, _ = request(stream, asked, answered, completion(model="target"), {})
    assert len(destinations) == 1
    assert destinations[0] in pool.hostports
    assert response(stream, answered, EVENTS, wire.EVENTS) == b"".join(EVENTS)


@pytest.mark.differs(go=GO)
def test_a_part_of_the_body(stream: Stream, pool: Pool) -> None:
    """BUFFERED_PARTIAL with a body beyond Envoy's limit: the beginning is enough to route."""
    body = completion("x" * 10_000)
    stream.send(wire.request_headers(modes=(Mode.BUFFERED_PARTIAL, Mode.NONE)))
    first = stream.receive()
    stream.send(wire.request_body(body[:4000], end=False))
    second = stream.receive()
    found = named([first, second])
    assert len(found) == 1
    assert found[0] in pool.hostports
    assert wire.replaced(second, body[:4000]) == body[:4000]


@pytest.mark.differs(go=GO)
@pytest.mark.parametrize("mode", [Mode.BUFFERED, Mode.BUFFERED_PARTIAL], ids=lambda mode: mode.name)
def test_errors(stream: Stream, mode: Mode) -> None:
    """What is no JSON is refused in the buffered modes, too."""
    stream.send(wire.request_headers(modes=(mode, Mode.NONE)))
    stream.receive()
    stream.send(wire.request_body(b'{"model":'))
    immediate = stream.receive().immediate_response
    assert immediate is not None
    assert immediate.status is not None
    assert int(immediate.status.code) == 400
