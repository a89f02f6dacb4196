# SPDX-License-Identifier: GPL-3.0-or-later
"""Streams at work: decisions that come late, fail or hang, and endpoints that are given back however a stream ends."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable
from typing import Any

import pytest
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingResponse

from epp.extproc import Health, StreamService
from epp.extproc.health import SERVICES, ServingStatus
from epp.extproc.machine import NeedDecision, ProtocolError
from epp.model import Rejection, Usage

BODY = b'{"model": "llama", "prompt": "hello"}'
ANSWER = b'{"model": "llama", "usage": {"prompt_tokens": 3, "completion_tokens": 4}}'


def opened(rooms: Any) -> tuple[StreamService, Any]:
    service = StreamService(rooms.director, rooms.recorder)
    return service, service.open()


def read(answers: Iterable[bytes]) -> list[ProcessingResponse]:
    return [ProcessingResponse.FromString(answer) for answer in answers]


def send(exchange: Any, *messages: Any) -> list[Any]:
    out: list[Any] = []
    for message in messages:
        out += read(exchange.receive(message.SerializeToString()))
    return out


def test_a_whole_exchange(rooms: Any, wire: Any) -> None:
    service, exchange = opened(rooms)
    assert service.streams == 1
    out = send(exchange, wire.headers(), wire.body(BODY))
    assert wire.set_headers(out[0])["x-gateway-destination-endpoint"] == "10.0.0.2:8000"
    assert rooms.inflight == [0, 1]
    send(exchange, wire.answer(), wire.answer_body(ANSWER[:20], end=False))
    assert rooms.inflight == [0, 1]
    send(exchange, wire.answer_body(ANSWER[20:]))
    assert rooms.inflight == [0, 0]
    exchange.close("OK")
    usage = Usage(3, 4, 0)
    assert rooms.recorder.named("piece") == [(False,), (False,)]
    assert [phase for phase, _ in rooms.recorder.named("processing")] == ["request", "response"]
    assert rooms.recorder.named("finished") == [(len(ANSWER), usage)]
    assert rooms.scheduler.completed == [usage]
    assert [code for _, code in rooms.recorder.named("stream_closed")] == ["OK"]
    assert service.streams == 0


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        (b'{"model": "llama", "prompt": "hi", "stream": true}', "text/event-stream"),
        (BODY, "text/event-stream"),
        (BODY, "application/json"),
    ],
)
def test_a_streams_prompt_is_computed_when_its_first_token_is_here(
    rooms: Any, wire: Any, asked: bytes, kind: str
) -> None:
    """Not with the headers: engines send those as soon as they have understood the request."""
    _, exchange = opened(rooms)
    send(exchange, wire.headers(), wire.body(asked))
    assert rooms.tokens == [0, 70]
    send(exchange, wire.answer(content_type=kind), wire.answer_body(b"", end=False))
    assert rooms.tokens == [0, 70]
    send(exchange, wire.answer_body(b"data: {}", end=False), wire.answer_body(b"data: {}", end=False))
    assert rooms.tokens == ([0, 70] if kind == "application/json" else [0, 0])
    send(exchange, wire.answer_body(b"data: [DONE]"))
    assert (rooms.tokens, rooms.inflight) == ([0, 0], [0, 0])


def test_a_prompt_weighs_until_the_end_of_an_answer_that_nobody_sees(rooms: Any, wire: Any) -> None:
    _, exchange = opened(rooms)
    send(exchange, wire.headers(), wire.body(BODY), wire.answer(content_type="text/event-stream"))
    assert (rooms.tokens, rooms.inflight) == ([0, 70], [0, 1])
    exchange.close("OK")
    assert (rooms.tokens, rooms.inflight) == ([0, 0], [0, 0])


def test_what_is_told_of_an_answer_comes_with_its_end(rooms: Any, wire: Any) -> None:
    _, exchange = opened(rooms)
    out = send(exchange, wire.headers(), wire.body(BODY.replace(b"llama", b"reports")), wire.answer())
    out += send(exchange, wire.answer_body(ANSWER[:20], end=False))
    assert all("cost" not in message.dynamic_metadata["envoy.lb"] for message in out if message.dynamic_metadata)
    (last,) = send(exchange, wire.answer_body(ANSWER[20:]))
    assert last.dynamic_metadata["envoy.lb"]["cost"] == 3
    assert wire.streamed([last]) == (ANSWER[20:], [True])


def test_client_leaves_before_the_answer(rooms: Any, wire: Any) -> None:
    _, exchange = opened(rooms)
    send(exchange, wire.headers(), wire.body(BODY))
    exchange.close("CANCELLED")
    assert rooms.inflight == [0, 0]
    assert rooms.recorder.named("failed") == [("ClientDisconnected",)]


def test_client_leaves_amid_the_answer(rooms: Any, wire: Any) -> None:
    _, exchange = opened(rooms)
    send(exchange, wire.headers(), wire.body(BODY), wire.answer("text/event-stream"))
    send(exchange, wire.answer_body(b"data: {}\n\n", end=False))
    exchange.close("CANCELLED")
    assert rooms.inflight == [0, 0]
    assert rooms.recorder.named("piece") == [(True,)]
    assert rooms.recorder.named("finished") == [(10, None)]


def test_client_leaves_before_the_decision(rooms: Any, wire: Any) -> None:
    _, exchange = opened(rooms)
    send(exchange, wire.headers(), wire.body(BODY, end=False))
    exchange.close("CANCELLED")
    assert rooms.inflight == [0, 0]
    assert rooms.scheduler.seen == []


@pytest.mark.parametrize("ended", [True, False])
def test_errors_of_the_model_server(rooms: Any, wire: Any, ended: bool) -> None:
    _, exchange = opened(rooms)
    send(exchange, wire.headers(), wire.body(BODY), wire.answer(status="500"), wire.answer_body(b"oops", end=ended))
    exchange.close("OK")
    assert rooms.inflight == [0, 0]
    assert rooms.recorder.named("failed") == [("ModelServerError",)]
    assert rooms.recorder.named("piece") == []


def test_rejections_are_answered_and_end_the_stream(rooms: Any, wire: Any) -> None:
    _, exchange = opened(rooms)
    (out,) = send(exchange, wire.headers(), wire.body(b"{"))
    assert out.immediate_response.status.code == 400
    assert exchange.done
    exchange.close("OK")


def test_a_bug_is_answered_with_500_and_logged(rooms: Any, wire: Any, caplog: pytest.LogCaptureFixture) -> None:
    rooms.scheduler.broken = KeyError("a bug")
    _, exchange = opened(rooms)
    (out,) = send(exchange, wire.headers(end=True))
    assert out.immediate_response.status.code == 500
    assert out.immediate_response.body == b"inference error: Internal - scheduling failed: KeyError"
    assert "a decision failed" in caplog.text


def test_responses_without_a_request_are_nobodys(rooms: Any, wire: Any) -> None:
    _, exchange = opened(rooms)
    assert wire.kinds(send(exchange, wire.answer(), wire.answer_body(b"x"))) == ["response_headers", "response_body"]
    exchange.close("OK")
    assert rooms.recorder.named("finished") == []


def test_protocol_errors_reach_the_transport(rooms: Any, wire: Any) -> None:
    _, exchange = opened(rooms)
    with pytest.raises(ProtocolError, match="not a ProcessingRequest"):
        exchange.receive(b"\xff")
    with pytest.raises(ProtocolError):
        exchange.receive(wire.body(b"x").SerializeToString())


class LateRouter:
    """Decides when told to."""

    def __init__(self, rooms: Any) -> None:
        self.rooms = rooms
        self.outcome: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    async def decide(self, need: NeedDecision) -> Any:
        error = await self.outcome
        if error is not None:
            raise error
        return self.rooms.director.decide(need)


async def late(rooms: Any, wire: Any, seconds: float = 60.0) -> tuple[LateRouter, Any, asyncio.Task[list[Any]]]:
    router = LateRouter(rooms)
    exchange = StreamService(router, rooms.recorder, seconds).open()
    pending = exchange.receive(wire.headers(end=True).SerializeToString())
    assert inspect.isawaitable(pending)

    async def answers() -> list[Any]:
        return read(await pending)

    return router, exchange, asyncio.create_task(answers())


async def test_a_decision_may_come_later(rooms: Any, wire: Any) -> None:
    router, _, answers = await late(rooms, wire)
    router.outcome.set_result(None)
    (out,) = await answers
    assert wire.set_headers(out)["x-gateway-destination-endpoint"] == "10.0.0.2:8000"
    assert rooms.inflight == [0, 1]


async def test_a_late_rejection(rooms: Any, wire: Any) -> None:
    router, exchange, answers = await late(rooms, wire)
    router.outcome.set_result(Rejection(429, "ResourceExhausted", "full", "rejected-saturated"))
    (out,) = await answers
    assert out.immediate_response.status.code == 429
    assert exchange.done


async def test_a_timeout_of_somebody_else_is_a_bug_and_not_the_deadline(rooms: Any, wire: Any) -> None:
    router, _, answers = await late(rooms, wire)
    router.outcome.set_result(TimeoutError())
    (out,) = await answers
    assert out.immediate_response.status.code == 500


async def test_a_hung_decision_ends_with_503(rooms: Any, wire: Any) -> None:
    _, exchange, answers = await late(rooms, wire, seconds=0.01)
    (out,) = await answers
    assert out.immediate_response.status.code == 503
    assert b"no endpoint was chosen within 0.01 s" in out.immediate_response.body
    assert out.immediate_response.headers.set_headers[0].header.raw_value == b"rejected-ttl-expired"
    exchange.close("OK")
    assert rooms.inflight == [0, 0]


async def test_client_leaves_while_the_decision_is_pending(rooms: Any, wire: Any) -> None:
    _, exchange, answers = await late(rooms, wire)
    await asyncio.sleep(0)
    answers.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answers
    exchange.close("CANCELLED")
    assert rooms.inflight == [0, 0]


class TestHealth:
    def test_ready_once_the_pool_is_known(self) -> None:
        known = False
        health = Health({"pool": lambda: known})
        assert health.status("readiness") == ServingStatus.NOT_SERVING
        assert health.problem() == "the pool's endpoints are not known yet"
        known = True
        assert {health.status(name) for name in (*SERVICES, "anything")} == {ServingStatus.SERVING}
        assert health.problem() == ""

    def test_draining_ends_readiness_and_not_life(self) -> None:
        health = Health({"pool": lambda: True})
        health.draining = True
        statuses = {name: health.status(name) for name in SERVICES}
        assert statuses.pop("liveness") == ServingStatus.SERVING
        assert set(statuses.values()) == {ServingStatus.NOT_SERVING}
        assert health.problem() == "shutting down"
