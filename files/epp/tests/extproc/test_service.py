# SPDX-License-Identifier: GPL-3.0-or-later
"""Several pools, served endpoints, preferences, traces, hung plugins, and health with leader election."""

from __future__ import annotations

import contextlib
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingResponse

from epp.extproc import DirectorOptions, Health, PoolRouter, StreamService, Tracing, Watchdog
from epp.extproc.health import SERVICES, ServingStatus
from epp.extproc.watchdog import Hung
from epp.model import Decision

BODY = b'{"model":"m","prompt":"hello"}'
POOL = "x-gateway-inference-pool"


def routed(exchange: Any, *messages: Any) -> list[Any]:
    data = [answer for message in messages for answer in exchange.receive(message.SerializeToString())]
    return [ProcessingResponse.FromString(answer) for answer in data]


class TestPools:
    @pytest.fixture
    def pools(self, rooms_with: Any) -> dict[str, Any]:
        return {name: rooms_with() for name in ("llama", "qwen")}

    @pytest.fixture
    def service(self, pools: dict[str, Any]) -> StreamService:
        recorder = pools["llama"].recorder
        return StreamService(PoolRouter({name: rooms.director for name, rooms in pools.items()}, recorder), recorder)

    @pytest.mark.parametrize(
        ("metadata", "attribute", "headers", "chosen"),
        [
            ([(POOL, "qwen")], "", {}, "qwen"),
            ([(POOL, "qwen-epp"), ("other", b"x")], "", {}, "qwen"),
            ([], "httproute/llm-platform/qwen/rule/0", {}, "qwen"),
            ([], "", {POOL: "qwen"}, "qwen"),
            ([], "", {"x-gateway-model-name": "qwen"}, "qwen"),
            ([(POOL, "llama")], "httproute/x/qwen/rule/0", {POOL: "qwen"}, "llama"),
            ([], "httproute/x/llama/rule/0", {POOL: "qwen", "x-gateway-model-name": "qwen"}, "llama"),
            ([], "", {POOL: "llama", "x-gateway-model-name": "qwen"}, "llama"),
            ([(POOL, "neither")], "", {POOL: "llama"}, "llama"),
        ],
    )
    def test_the_gateway_decides_before_the_client(
        self,
        pools: dict[str, Any],
        service: StreamService,
        wire: Any,
        metadata: Any,
        attribute: str,
        headers: dict[str, str],
        chosen: str,
    ) -> None:
        exchange = service.open(metadata)
        first = wire.headers({":path": "/v1/completions", **headers})
        if attribute:
            first.attributes["envoy.filters.http.ext_proc"].update({"xds.route_name": attribute})
        routed(exchange, first, wire.body(BODY))
        other = "llama" if chosen == "qwen" else "qwen"
        assert (sum(pools[chosen].inflight), sum(pools[other].inflight)) == (1, 0)
        exchange.close("OK")

    def test_none_is_nobodys(self, pools: dict[str, Any], service: StreamService, wire: Any) -> None:
        (refused,) = routed(service.open(), wire.headers(), wire.body(BODY))
        assert refused.immediate_response.status.code == 404
        assert refused.immediate_response.body == (
            b"inference error: NotFound - the request names no pool that is served here; served are llama, qwen"
        )
        assert pools["llama"].recorder.named("rejected") == [("NotFound",)]


class TestServed:
    def answer(self, wire: Any, served: str) -> Any:
        message = wire.answer()
        message.metadata_context.filter_metadata["envoy.lb"].update(
            {"x-gateway-destination-endpoint-served": served, "other": 1}
        )
        return message

    @pytest.mark.parametrize(
        ("served", "inflight"),
        [("10.0.0.1:8000", [1, 0]), ("10.0.0.2:8000", [0, 1]), ("10.9.9.9:8000", [0, 1]), ("", [0, 1])],
    )
    def test_the_count_follows(self, rooms: Any, wire: Any, served: str, inflight: list[int]) -> None:
        exchange = StreamService(rooms.director, rooms.recorder).open()
        routed(exchange, wire.headers(), wire.body(BODY))
        assert rooms.inflight == [0, 1]
        routed(exchange, self.answer(wire, served))
        assert rooms.inflight == inflight
        routed(exchange, wire.answer_body(b"{}", end=False))
        assert rooms.inflight == inflight
        exchange.close("CANCELLED")
        assert rooms.inflight == [0, 0]

    def test_after_the_end_nothing_moves(self, rooms: Any, wire: Any) -> None:
        exchange = StreamService(rooms.director, rooms.recorder).open()
        routed(exchange, wire.headers(), wire.body(BODY))
        exchange._ticket.fail("x")
        routed(exchange, self.answer(wire, "10.0.0.1:8000"))
        assert rooms.inflight == [0, 0]


class TestPreference:
    @pytest.mark.parametrize("prefer", ["if-available", "wait=5, If-Available;x=1", "respond-async,if-available=yes"])
    def test_no_cached_prefix_is_412(self, rooms: Any, wire: Any, prefer: str) -> None:
        exchange = StreamService(rooms.director, rooms.recorder).open()
        (refused,) = routed(exchange, wire.headers({":path": "/v1/completions", "prefer": prefer}), wire.body(BODY))
        assert refused.immediate_response.status.code == 412
        assert refused.immediate_response.body.startswith(b"inference error: PreconditionFailed - no endpoint holds")
        assert rooms.inflight == [0, 0]
        assert rooms.recorder.named("failed") == [("PreconditionFailed",)]

    @pytest.mark.parametrize(("prefer", "cached"), [("respond-async", False), ("if-available", True)])
    def test_otherwise_it_is_routed(
        self, rooms: Any, wire: Any, prefer: str, cached: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        chosen = Decision((rooms.endpoints[0],), cached=cached)
        monkeypatch.setattr(rooms.scheduler, "schedule", lambda request, candidates: chosen)
        exchange = StreamService(rooms.director, rooms.recorder).open()
        routed(exchange, wire.headers({":path": "/v1/completions", "prefer": prefer}), wire.body(BODY))
        assert rooms.inflight == [1, 0]
        exchange.close("OK")


class TestTracing:
    def headers(self, rooms_with: Any, wire: Any, incoming: dict[str, str], ratio: float) -> dict[str, str]:
        rooms = rooms_with(DirectorOptions(tracing=Tracing(ratio, random.Random(1))))
        exchange = StreamService(rooms.director, rooms.recorder).open()
        out = routed(exchange, wire.headers({":path": "/v1/completions", **incoming}), wire.body(BODY))
        headers: dict[str, str] = wire.set_headers(out[0])
        return headers

    @pytest.mark.parametrize(("ratio", "flags"), [(1.0, "01"), (0.0, "00")])
    @pytest.mark.parametrize(
        "incoming", ["", "nonsense", f"00-{'0' * 32}-{'1' * 16}-01", f"ff-{'1' * 32}-{'1' * 16}-01"]
    )
    def test_a_trace_begins(self, rooms_with: Any, wire: Any, incoming: str, ratio: float, flags: str) -> None:
        given = {"traceparent": incoming} if incoming else {}
        found = self.headers(rooms_with, wire, given, ratio)["traceparent"]
        assert re.fullmatch(rf"00-[0-9a-f]{{32}}-[0-9a-f]{{16}}-{flags}", found)

    def test_a_trace_goes_on(self, rooms_with: Any, wire: Any) -> None:
        given = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
        assert "traceparent" not in self.headers(rooms_with, wire, given, 1.0)

    @pytest.mark.parametrize(
        ("environment", "ratio"),
        [
            ({}, 0.1),
            ({"OTEL_TRACES_SAMPLER_ARG": "0.5"}, 0.5),
            ({"OTEL_TRACES_SAMPLER": "always_on"}, 1.0),
            ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, 0.0),
        ],
    )
    def test_environment(self, environment: dict[str, str], ratio: float) -> None:
        assert Tracing.from_environment(environment)._ratio == ratio

    @pytest.mark.parametrize(
        "environment",
        [{"OTEL_TRACES_SAMPLER": "jaeger_remote"}, {"OTEL_TRACES_SAMPLER_ARG": "x"}, {"OTEL_TRACES_SAMPLER_ARG": "2"}],
    )
    def test_environment_without_meaning(self, environment: dict[str, str]) -> None:
        (name,) = environment
        with pytest.raises(ValueError, match=name):
            Tracing.from_environment(environment)


class TestWatchdog:
    @pytest.fixture
    def watchdog(self) -> Iterator[Watchdog]:
        watchdog = Watchdog(0.1)
        watchdog.start()
        yield watchdog
        watchdog.stop()

    @pytest.mark.parametrize("hang", [lambda: time.sleep(60), lambda: [None for _ in iter(int, 1)]])
    def test_what_hangs_is_ended_and_answered(
        self,
        rooms: Any,
        wire: Any,
        watchdog: Watchdog,
        hang: Callable[[], Any],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(rooms.scheduler, "schedule", lambda request, candidates: hang())
        exchange = StreamService(rooms.director, rooms.recorder, watchdog=watchdog).open()
        (refused,) = routed(exchange, wire.headers(), wire.body(BODY))
        assert refused.immediate_response.status.code == 503
        assert b"took more than 0.1 s" in refused.immediate_response.body
        assert wire.set_headers_of(refused.immediate_response) == {
            "x-llm-d-request-dropped-reason": "rejected-ttl-expired"
        }
        assert "the trace says where it hung" in caplog.text
        assert "hang()" in caplog.text
        assert rooms.inflight == [0, 0]

    def test_a_quick_decision_is_left_alone(self, watchdog: Watchdog) -> None:
        end = time.monotonic() + 0.4
        while time.monotonic() < end:
            with watchdog:
                pass
        time.sleep(0.2)

    def test_a_plugin_cannot_swallow_it(self, watchdog: Watchdog) -> None:
        def stubborn() -> None:
            with watchdog, contextlib.suppress(Exception):
                time.sleep(60)

        with pytest.raises(Hung):
            stubborn()


class TestHealth:
    def test_with_leader_election(self) -> None:
        known = False
        health = Health({"pool": lambda: known}, elects=True)
        not_ready = {name: health.status(name) for name in SERVICES}
        assert not_ready.pop("liveness") == ServingStatus.SERVING
        assert set(not_ready.values()) == {ServingStatus.NOT_SERVING}
        known = True
        assert health.problem() == "another process is the leader"
        assert health.status("readiness") == ServingStatus.NOT_SERVING
        health.leader = True
        assert {health.status(name) for name in SERVICES} == {ServingStatus.SERVING}
        assert health.status("pool") == ServingStatus.SERVICE_UNKNOWN

    def test_of_several_pools(self) -> None:
        known = {"a": False, "b": False}
        health = Health({name: lambda name=name: known[name] for name in known})
        assert health.services() == (*SERVICES, "a", "b")
        assert health.status("") == ServingStatus.NOT_SERVING
        known["a"] = True
        statuses = {name: health.status(name) for name in ("", "a", "b", "anything")}
        assert statuses == {"": 1, "a": 1, "b": 2, "anything": 1}
        assert health.unknown_pools() == ["b"]
        health.draining = True
        assert health.status("a") == ServingStatus.NOT_SERVING


class TestEmptyBody:
    def test_an_announced_body_that_is_empty_is_400(self, rooms: Any, wire: Any) -> None:
        exchange = StreamService(rooms.director, rooms.recorder).open()
        (refused,) = routed(exchange, wire.headers(), wire.body(b""))
        assert refused.immediate_response.status.code == 400
        assert b"failed to parse request body: it is empty" in refused.immediate_response.body

    def test_a_request_that_needs_none_is_routed(self, rooms: Any, wire: Any) -> None:
        exchange = StreamService(rooms.director, rooms.recorder).open()
        routed(exchange, wire.headers({":path": "/v1/models", ":method": "GET"}), wire.body(b""))
        assert sum(rooms.inflight) == 1
        exchange.close("OK")


def test_plugins_add_headers_to_answers(rooms: Any, wire: Any) -> None:
    """Also to one whose request was never seen."""
    message = wire.answer()
    message.metadata_context.filter_metadata["envoy.lb"].update(
        {"x-gateway-destination-endpoint-served": "10.9.9.9:8000"}
    )
    for requests in ((), (wire.headers(), wire.body(BODY))):
        exchange = StreamService(rooms.director, rooms.recorder).open()
        out = routed(exchange, *requests, message)
        assert wire.set_headers(out[-1]) == {"x-went-into-resp-headers": "true", "x-served": "10.9.9.9:8000"}
        exchange.close("OK")
    router = PoolRouter({"a": rooms.director, "b": rooms.director}, rooms.recorder)
    (out,) = routed(StreamService(router, rooms.recorder).open(), message)
    assert wire.set_headers(out) == {"x-went-into-resp-headers": "true"}
