# SPDX-License-Identifier: GPL-3.0-or-later
"""The picker behind the real Envoy: what a client gets, and which engine answers."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator

import pytest

from conformance.kit import envoy as kit
from conformance.kit import wire
from conformance.kit.envoy import Gateway, Setup
from conformance.kit.picker import Picker
from conformance.kit.talk import completion, fresh
from conformance.kit.wait import eventually
from conformance.kit.world import Pool, World

GO = "v1.3 speaks FULL_DUPLEX_STREAMED only"
DUPLEX = "FULL_DUPLEX_STREAMED"
RUNNING = "inference_objective_running_requests"
Start = Callable[..., Gateway]


@pytest.fixture(scope="module")
def started() -> Iterator[Callable[[Setup], Gateway]]:
    """Envoys by their setup; those that several cases want are started once."""
    with contextlib.ExitStack() as stack:
        running: dict[Setup, Gateway] = {}

        def get(setup: Setup) -> Gateway:
            if setup not in running:
                running[setup] = stack.enter_context(kit.envoy(setup))
            return running[setup]

        yield get


@pytest.fixture
def start(started: Callable[[Setup], Gateway], picker: Picker, pool: Pool) -> Start:
    """An Envoy in front of the shared picker and its engines."""
    return lambda **options: started(Setup(tuple(pool.hostports), picker.ports.grpc, **options))


@pytest.fixture
def gateway(start: Start) -> Gateway:
    """One in FULL_DUPLEX_STREAMED."""
    return start()


class TestRouting:
    def test_the_chosen_engine_answers(self, gateway: Gateway, pool: Pool) -> None:
        """The engine that answers is the one that the picker named."""
        for _ in range(12):
            assert gateway.ask(fresh()).status == 200
        for engine in pool.engines:
            assert all(each.headers[wire.DESTINATION] == engine.hostport for each in engine.seen)
        assert sum(len(engine.seen) for engine in pool.engines) == 12

    def test_a_stream_comes_in_pieces(self, gateway: Gateway, pool: Pool) -> None:
        """Events reach the client one after another."""
        for engine in pool.engines:
            engine.pause = 0.05
        found = gateway.ask(completion(stream=True))
        assert found.status == 200
        assert found.headers["x-went-into-resp-headers"] == "true"
        assert found.body.endswith(b"data: [DONE]\n\n")
        assert found.pieces >= 5

    def test_without_a_body(self, gateway: Gateway, pool: Pool) -> None:
        """A GET goes to an engine."""
        found = gateway.ask(None, path="/v1/models")
        assert found.status == 200
        assert found.headers["x-served-by"] in pool.hostports

    def test_a_client_cannot_choose(self, gateway: Gateway, pool: Pool) -> None:
        """A destination header of the client's leads nowhere."""
        found = gateway.ask(fresh(), {wire.DESTINATION: "127.0.0.1:1"})
        assert found.headers["x-served-by"] in pool.hostports

    def test_the_subset(self, start: Start, pool: Pool) -> None:
        """The gateway's subset is kept."""
        gateway = start(subset=(pool.hostports[1],))
        assert {gateway.ask(fresh()).headers["x-served-by"] for _ in range(6)} == {pool.hostports[1]}

    def test_the_model_name(self, gateway: Gateway, pool: Pool) -> None:
        """A model that is called otherwise by the engine: the engine gets its own name."""
        found = gateway.ask(completion(model="asked"), {"x-gateway-model-name-rewrite": "target"})
        assert found.status == 200
        seen = [each for engine in pool.engines for each in engine.seen]
        assert json.loads(seen[0].body)["model"] == "target"

    @pytest.mark.differs(go="v1.3 ignores trailers: the request hangs until the client gives up")
    def test_request_trailers(self, gateway: Gateway) -> None:
        """A chunked request with trailers."""
        body = completion()
        found = gateway.raw(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"transfer-encoding: chunked\r\ntrailer: x-checksum\r\n\r\n"
            b"%x\r\n%b\r\n0\r\nx-checksum: 1\r\n\r\n" % (len(body), body)
        )
        assert found.startswith(b"HTTP/1.1 200")

    def test_tls(self, around: World, pool: Pool) -> None:
        """Over TLS with the picker's own certificate."""
        with around.picker(pool.name, tls=True) as found:
            with kit.envoy(Setup(tuple(pool.hostports), found.ports.grpc, tls=True)) as gateway:
                assert gateway.ask(fresh()).status == 200


MODES = [
    pytest.param(each, marks=[] if each == DUPLEX else [pytest.mark.differs(go=GO)])
    for each in (DUPLEX, "BUFFERED", "BUFFERED_PARTIAL", "STREAMED")
]
MIXED = [
    (DUPLEX, "STREAMED"),
    (DUPLEX, "BUFFERED"),
    ("BUFFERED", "STREAMED"),
    ("STREAMED", DUPLEX),
    ("BUFFERED", DUPLEX),
    ("BUFFERED_PARTIAL", "BUFFERED"),
    (DUPLEX, "NONE"),
    ("STREAMED", "NONE"),
]
KINDS = ("plain", "streamed")
GO_WORKS = {
    (DUPLEX, "STREAMED", "plain"),
    (DUPLEX, "BUFFERED", "streamed"),
    (DUPLEX, "NONE", "plain"),
    (DUPLEX, "NONE", "streamed"),
}


class TestBodyModes:
    @pytest.mark.parametrize("streamed", [False, True], ids=["plain", "streamed"])
    @pytest.mark.parametrize("mode", MODES)
    def test_each(self, start: Start, pool: Pool, mode: str, streamed: bool) -> None:
        """The whole request reaches an engine of the picker's choice, the whole answer the client."""
        gateway = start(request_body=mode, response_body=mode)
        self._works(gateway, pool, streamed)

    @pytest.mark.parametrize(
        ("asked", "answered", "kind"),
        [
            pytest.param(*pair, kind, marks=[] if (*pair, kind) in GO_WORKS else [pytest.mark.differs(go=GO)])
            for pair in MIXED
            for kind in KINDS
        ],
    )
    def test_mixed(self, start: Start, pool: Pool, asked: str, answered: str, kind: str) -> None:
        """Different modes for request and answer."""
        self._works(start(request_body=asked, response_body=answered), pool, kind == "streamed")

    def _works(self, gateway: Gateway, pool: Pool, streamed: bool) -> None:
        body = completion("hello " * 20_000, stream=streamed)
        found = gateway.ask(body)
        assert found.status == 200
        seen = [each for engine in pool.engines for each in engine.seen]
        assert len(seen) == 1
        assert seen[0].headers[wire.DESTINATION] == found.headers["x-served-by"]
        assert abs(seen[0].size - len(body)) < 20
        if streamed:
            assert found.body.endswith(b"data: [DONE]\n\n")
            assert found.body.count(b"data: ") == 12
        else:
            assert found.document["model"] == "m"


class TestSize:
    @pytest.mark.parametrize(
        "limit",
        [
            pytest.param(kit.SMALL, id="Envoy's default buffer"),
            pytest.param(
                kit.LARGE,
                id="a large buffer",
                marks=pytest.mark.differs(go="v1.3 takes messages of 4 MB, and Envoy sends what its buffer holds"),
            ),
        ],
    )
    def test_64_megabytes(self, start: Start, pool: Pool, limit: int) -> None:
        """A prompt of 64 MB reaches the engine, and the picker goes on."""
        gateway = start(buffer_bytes=limit)
        body = b'{"model": "m", "prompt": "' + b"x" * (64 << 20) + b'"}'
        assert gateway.ask(body).status == 200
        assert sum(each.size >= 64 << 20 for engine in pool.engines for each in engine.seen) == 1
        assert gateway.ask(fresh()).status == 200

    def test_many_at_once(self, gateway: Gateway, pool: Pool) -> None:
        """48 clients at once, with 100 KB each."""
        statuses: list[int] = []

        def client(number: int) -> None:
            statuses.append(gateway.ask(completion(f"{number} " + "x" * 100_000, stream=number % 2 == 0)).status)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(48)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(60)
        assert statuses == [200] * 48


class TestErrors:
    def test_a_bad_request(self, gateway: Gateway) -> None:
        """The client gets 400 and the picker's words."""
        found = gateway.ask(b'{"model": ')
        assert found.status == 400
        assert b"BadRequest" in found.body

    def test_nobody(self, start: Start) -> None:
        """A subset of strangers: 503."""
        assert start(subset=("10.9.9.9:1",)).ask(fresh()).status == 503

    @pytest.mark.differs(go="v1.3 has no dropped-reason header")
    def test_the_reason(self, start: Start) -> None:
        """And the reason is in a header."""
        assert start(subset=("10.9.9.9:1",)).ask(fresh()).headers[wire.DROPPED] == "rejected-no-endpoints"

    def test_a_picker_that_dies(self, around: World, pool: Pool) -> None:
        """Without the picker 500; when it is back, 200."""
        with around.picker(pool.name) as first:
            with kit.envoy(Setup(tuple(pool.hostports), first.ports.grpc)) as gateway:
                assert gateway.ask(fresh()).status == 200
                first.disconnect()
                first.process.kill()
                assert gateway.ask(fresh()).status == 500
                with around.picker(pool.name, ports=first.ports):
                    eventually(lambda: gateway.ask(fresh()).status == 200)

    @pytest.mark.differs(go="v1.3 goes on choosing an engine that refuses connections")
    def test_an_engine_that_refuses(self, gateway: Gateway, pool: Pool) -> None:
        """A pod that is Ready and refuses connections: after a moment every request succeeds."""
        pool.engines[0].stop()
        assert eventually(lambda: all(gateway.ask(fresh()).status == 200 for _ in range(25)))


class TestClients:
    """Clients that go away."""

    def test_amid_the_prompt(self, gateway: Gateway, picker: Picker) -> None:
        """Half a prompt, and gone: nothing is left of it, and others are served."""
        with contextlib.closing(gateway.connect()) as connection:
            connection.putrequest("POST", "/v1/completions")
            connection.putheader("content-type", "application/json")
            connection.putheader("content-length", "1000")
            connection.endheaders(b'{"model":"half"')
        assert gateway.ask(fresh()).status == 200
        eventually(lambda: picker.metrics().value(RUNNING, model_name="half") == 0)

    def test_waiting_for_the_answer(self, gateway: Gateway, picker: Picker, pool: Pool) -> None:
        """Gone before the answer: nothing is in flight any more."""
        for engine in pool.engines:
            engine.pause = 5.0
        with contextlib.closing(gateway.connect()) as connection:
            connection.request("POST", "/v1/completions", fresh("impatient"), {"content-type": wire.JSON})
            eventually(lambda: picker.metrics().value(RUNNING, model_name="impatient") == 1)
        eventually(lambda: picker.metrics().value(RUNNING, model_name="impatient") == 0)

    def test_amid_the_answer(self, gateway: Gateway, picker: Picker, pool: Pool) -> None:
        """Gone in the middle of a stream: nothing is in flight any more."""
        for engine in pool.engines:
            engine.pause = 0.5
        with contextlib.closing(gateway.connect()) as connection:
            body = completion(model="bored", stream=True)
            connection.request("POST", "/v1/completions", body, {"content-type": wire.JSON})
            assert connection.getresponse().read1(100)
            eventually(lambda: picker.metrics().value(RUNNING, model_name="bored") == 1)
        eventually(lambda: picker.metrics().value(RUNNING, model_name="bored") == 0)
