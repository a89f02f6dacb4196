# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole conversations with a picker, the way Envoy has them in FULL_DUPLEX_STREAMED."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from conformance.kit import wire
from conformance.kit.grpc import Ended, Stream
from conformance.kit.picker import Picker


@dataclass(frozen=True)
class Routed:
    """A request that goes on."""

    replies: list[wire.ProcessingResponse]
    """The reply to the headers, then the pieces of the body."""

    @property
    def headers(self) -> dict[str, str]:
        """What is set on the request."""
        return wire.headers_of(self.replies[0])

    @property
    def destinations(self) -> list[str]:
        """The endpoints, best first."""
        return self.headers[wire.DESTINATION].split(",")

    @property
    def destination(self) -> str:
        """The first of them."""
        return self.destinations[0]

    @property
    def metadata(self) -> dict[str, Any]:
        """Dynamic metadata of the reply."""
        return wire.metadata_of(self.replies[0])

    @property
    def pieces(self) -> list[tuple[bytes, bool]]:
        """The body's pieces, each with its end_of_stream."""
        return [wire.piece(each) for each in self.replies[1:]]

    @property
    def body(self) -> bytes:
        """The body that goes on."""
        return b"".join(body for body, _ in self.pieces)

    @property
    def document(self) -> Any:
        """The same, parsed."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Refused:
    """A request that the picker answers itself."""

    status: int
    body: str
    headers: dict[str, str]

    @property
    def reason(self) -> str:
        """The dropped-reason header."""
        return self.headers.get(wire.DROPPED, "")


def completion(prompt: str = "hello", model: str = "m", **more: Any) -> bytes:
    """The body of a request for a completion."""
    return json.dumps({"model": model, "prompt": prompt, **more}).encode()


def fresh(model: str = "m") -> bytes:
    """A completion whose prompt shares no prefix with any other."""
    return completion(f"{uuid.uuid4()} {'x' * 200}", model)


def answered(reply: wire.ProcessingResponse) -> Refused | None:
    """The immediate response in a reply, if it is one."""
    immediate = reply.immediate_response
    if immediate is None:
        return None
    status = int(immediate.status.code) if immediate.status else 0
    body = immediate.body.decode() if isinstance(immediate.body, bytes) else immediate.body
    return Refused(status, body, wire.set_headers(immediate.headers))


@dataclass
class Talk:
    """One request through a stream that stays open for its answer."""

    stream: Stream
    outcome: Routed | Refused = field(init=False)

    def ask(
        self,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        hint: wire.Hint | None = None,
        pieces: int = 1,
        **more: Any,
    ) -> Routed | Refused:
        """Send a request and read what becomes of it. ``body=b""`` sends headers only.

        ``hint`` is the gateway's subset; ``pieces`` cuts the body.
        """
        if hint is not None:
            more["metadata"] = wire.subset(hint)
        body = fresh() if body is None else body
        self.stream.send(wire.request_headers(headers, end=not body, **more))
        cut = cut_up(body, pieces)
        for number, each in enumerate(cut, 1):
            self.stream.send(wire.request_body(each, end=number == len(cut), metadata=more.get("metadata")))
        self.outcome = self._outcome(with_body=bool(body))
        return self.outcome

    def _outcome(self, with_body: bool) -> Routed | Refused:
        first = self.stream.receive()
        if refused := answered(first):
            return refused
        assert wire.kind(first) == "request_headers", f"the first reply is {wire.kind(first)}"
        replies = [first]
        while with_body:
            reply = self.stream.receive()
            assert wire.kind(reply) == "request_body", f"after the headers comes {wire.kind(reply)}"
            replies.append(reply)
            if wire.piece(reply)[1]:
                break
        return Routed(replies)

    def answer(self, body: bytes, content_type: str = wire.JSON, *, status: int = 200, pieces: int = 1) -> bytes:
        """Send the model server's answer; returns what the client gets."""
        self.stream.send(wire.response_headers(status, content_type))
        assert wire.kind(self.stream.receive()) == "response_headers"
        cut = cut_up(body, pieces) or [b""]
        for number, each in enumerate(cut, 1):
            self.stream.send(wire.response_body(each, end=number == len(cut)))
        return b"".join(each for each, _ in self.answer_pieces())

    def answer_pieces(self) -> list[tuple[bytes, bool]]:
        """Read the pieces of the answer until the last."""
        found: list[tuple[bytes, bool]] = []
        while not found or not found[-1][1]:
            reply = self.stream.receive()
            assert wire.kind(reply) == "response_body", f"in the answer comes {wire.kind(reply)}"
            found.append(wire.piece(reply))
        return found

    def finish(self) -> str:
        """Half-close, as Envoy does at the end; returns the status with which the picker ends the stream."""
        self.stream.send(end=True)
        try:
            reply = self.stream.receive()
        except Ended as ended:
            return ended.status
        raise AssertionError(f"after the end comes {wire.kind(reply)}")


def cut_up(body: bytes, pieces: int) -> list[bytes]:
    """A body in so many pieces, none empty."""
    size = max(1, -(-len(body) // pieces))
    return [body[start : start + size] for start in range(0, len(body), size)]


@contextlib.contextmanager
def talk(picker: Picker) -> Iterator[Talk]:
    """A stream for one request, closed afterwards."""
    stream = picker.stream()
    try:
        yield Talk(stream)
    finally:
        stream.close()


def ask(
    picker: Picker, body: bytes | None = None, headers: Mapping[str, str] | None = None, **more: Any
) -> Routed | Refused:
    """What becomes of a request; the stream is closed again, as for a client that leaves."""
    with talk(picker) as one:
        return one.ask(body, headers, **more)


def route(picker: Picker, body: bytes | None = None, headers: Mapping[str, str] | None = None, **more: Any) -> Routed:
    """As ``ask``, for a request that must go on."""
    outcome = ask(picker, body, headers, **more)
    assert isinstance(outcome, Routed), f"refused: {outcome}"
    return outcome


def refuse(picker: Picker, body: bytes | None = None, headers: Mapping[str, str] | None = None, **more: Any) -> Refused:
    """As ``ask``, for a request that must be refused."""
    outcome = ask(picker, body, headers, **more)
    assert isinstance(outcome, Refused), f"routed to {outcome.headers[wire.DESTINATION]}"
    return outcome


def served(
    picker: Picker,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    answer: bytes = b'{"usage":{"prompt_tokens":7,"completion_tokens":10,"total_tokens":17}}',
    content_type: str = wire.JSON,
    **more: Any,
) -> Routed:
    """A request, and an answer to it, to the end."""
    with talk(picker) as one:
        outcome = one.ask(body, headers, **more)
        assert isinstance(outcome, Routed), f"refused: {outcome}"
        one.answer(answer, content_type)
        one.finish()
        return outcome


def destinations(picker: Picker, times: int, make: Callable[[], bytes] = fresh, **more: Any) -> set[str]:
    """The endpoints that so many requests go to, each with a prompt of its own."""
    return {route(picker, make(), **more).destination for _ in range(times)}
