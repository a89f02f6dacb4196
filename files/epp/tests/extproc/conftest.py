# SPDX-License-Identifier: GPL-3.0-or-later
"""What Envoy sends, in short, and stand-ins for the rooms behind the state machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest
from envoy.config.core.v3.base_pb2 import HeaderMap, HeaderValue
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    HttpBody,
    HttpHeaders,
    HttpTrailers,
    ProcessingRequest,
    ProcessingResponse,
    ProtocolConfiguration,
)

from epp.datalayer.store import Datastore
from epp.extproc import Director, DirectorOptions
from epp.extproc.messages import BodyMode
from epp.model import Charge, Decision, Endpoint, InferenceRequest, Rejection, Usage

JSON_POST = {":method": "POST", ":path": "/v1/completions", "content-type": "application/json"}


class Wire:
    """Messages as Envoy sends them."""

    def headers(
        self,
        headers: Mapping[str, str] = JSON_POST,
        *,
        end: bool = False,
        modes: tuple[BodyMode, BodyMode] | None = None,
        subset: object = None,
    ) -> ProcessingRequest:
        message = ProcessingRequest(request_headers=HttpHeaders(headers=self._map(headers), end_of_stream=end))
        if modes is not None:
            config = ProtocolConfiguration(request_body_mode=modes[0], response_body_mode=modes[1])
            message.protocol_config.CopyFrom(config)
        if subset is not None:
            hint = {"x-gateway-destination-endpoint-subset": subset}
            message.metadata_context.filter_metadata["envoy.lb.subset_hint"].update(hint)
        return message

    def body(self, body: bytes, *, end: bool = True) -> ProcessingRequest:
        return ProcessingRequest(request_body=HttpBody(body=body, end_of_stream=end))

    def trailers(self) -> ProcessingRequest:
        return ProcessingRequest(request_trailers=HttpTrailers())

    def answer(
        self,
        content_type: str = "application/json",
        *,
        status: str = "200",
        end: bool = False,
        length: int | None = None,
    ) -> ProcessingRequest:
        headers = {":status": status, "content-type": content_type}
        if length is not None:
            headers["content-length"] = str(length)
        return ProcessingRequest(response_headers=HttpHeaders(headers=self._map(headers), end_of_stream=end))

    def answer_body(self, body: bytes, *, end: bool = True) -> ProcessingRequest:
        return ProcessingRequest(response_body=HttpBody(body=body, end_of_stream=end))

    def answer_trailers(self) -> ProcessingRequest:
        return ProcessingRequest(response_trailers=HttpTrailers())

    @staticmethod
    def _map(headers: Mapping[str, str]) -> HeaderMap:
        return HeaderMap(headers=[HeaderValue(key=key, raw_value=value.encode()) for key, value in headers.items()])

    @staticmethod
    def kinds(messages: Iterable[ProcessingResponse]) -> list[str]:
        return [message.WhichOneof("response") for message in messages]

    @staticmethod
    def set_headers(message: ProcessingResponse) -> dict[str, str]:
        """Headers that a reply to headers or to a body sets."""
        common = getattr(message, message.WhichOneof("response")).response
        return {each.header.key: each.header.raw_value.decode() for each in common.header_mutation.set_headers}

    @staticmethod
    def set_headers_of(immediate: Any) -> dict[str, str]:
        """Headers of an immediate response."""
        return {each.header.key: each.header.raw_value.decode() for each in immediate.headers.set_headers}

    @staticmethod
    def streamed(messages: Iterable[ProcessingResponse]) -> tuple[bytes, list[bool]]:
        """Body and end marks of all streamed pieces among the messages."""
        pieces = []
        for message in messages:
            if message.WhichOneof("response") in ("request_body", "response_body"):
                common = getattr(message, message.WhichOneof("response")).response
                pieces.append(common.body_mutation.streamed_response)
        return b"".join(piece.body for piece in pieces), [piece.end_of_stream for piece in pieces]


PROMPT_TOKENS = 70
"""What every prompt counts as."""


class FakeScheduler:
    """Sends everything to the last candidate, and remembers what it was told."""

    def __init__(self) -> None:
        self.seen: list[InferenceRequest] = []
        self.prompts: list[bytes] = []
        self.completed: list[Usage | None] = []
        self.broken: Exception | None = None
        self.headers: dict[str, str] = {}
        self.asks = self.follows = False

    def request_headers(self, request: InferenceRequest) -> None:
        if request.model == "refused":
            raise Rejection(401, "Unauthorized", "who are you?")
        request.attributes["headers seen"] = True

    def schedule(self, request: InferenceRequest, candidates: Sequence[Endpoint]) -> Decision:
        if self.broken:
            raise self.broken
        if not candidates:
            message = "failed to find endpoint candidates for serving the request"
            raise Rejection(503, "ServiceUnavailable", message, "rejected-no-endpoints")
        self.seen.append(request)
        self.prompts.append(request.prompt)
        scores = {each.hostport: 0.5 for each in candidates}
        charges = (Charge(candidates[-1], prompt_tokens=PROMPT_TOKENS),)
        return Decision((candidates[-1],), scores, charges=charges, headers=dict(self.headers))

    async def prepare(self, request: InferenceRequest, candidates: Sequence[Endpoint]) -> None:
        raise AssertionError("nobody asks")

    def response_piece(self, request: InferenceRequest, decision: Decision) -> None:
        raise AssertionError("nobody follows")

    def pre_request(self, request: InferenceRequest, decision: Decision) -> None:
        if request.model == "breaks-hooks":
            raise RuntimeError("a hook")

    def response_received(
        self, served: str, request: InferenceRequest | None, decision: Decision | None
    ) -> dict[str, str]:
        return {"x-served": served} if served == "10.9.9.9:8000" else {}

    def report(self, request: InferenceRequest, usage: Usage | None) -> dict[str, dict[str, float]]:
        return {"envoy.lb": {"cost": usage.prompt_tokens}} if usage and request.model == "reports" else {}

    def response_complete(self, request: InferenceRequest, decision: Decision, usage: Usage | None) -> None:
        self.completed.append(usage)


class FakeRecorder:
    """Writes down every call, of itself and of the records that it hands out."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def request(self, *arguments: Any) -> FakeRecorder:
        self.calls.append(("request", arguments))
        return self

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.calls.append((name, arguments))

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [arguments for called, arguments in self.calls if called == name]


class Rooms:
    """A director with a real datastore of two endpoints."""

    def __init__(self, options: DirectorOptions | None = None) -> None:
        self.scheduler = FakeScheduler()
        self.recorder = FakeRecorder()
        self.datastore = Datastore()
        self.endpoints = [Endpoint(f"pod-{i}", "ns", f"pod-{i}", f"10.0.0.{i}", 8000) for i in (1, 2)]
        self.datastore.replace(self.endpoints)
        self.director = Director(self.scheduler, self.datastore, self.recorder, options)

    @property
    def inflight(self) -> list[int]:
        return [endpoint.inflight for endpoint in self.endpoints]

    @property
    def tokens(self) -> list[int]:
        return [endpoint.inflight_tokens for endpoint in self.endpoints]


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def rooms() -> Rooms:
    return Rooms()


@pytest.fixture
def rooms_with() -> type[Rooms]:
    return Rooms
