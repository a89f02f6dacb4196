# SPDX-License-Identifier: GPL-3.0-or-later
"""Both transports over real sockets, with a service behind them that only echoes; the client is grpcio's."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    BodyResponse,
    HttpBody,
    HttpHeaders,
    ProcessingRequest,
    ProcessingResponse,
)
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse

from epp.extproc import ProtocolError
from epp.transport import (
    CertificateError,
    GrpcioTransport,
    H2Transport,
    HealthServer,
    TlsSource,
    Transport,
    TransportOptions,
)
from epp.transport.api import METHOD
from epp.transport.h2 import frames as f
from epp.transport.tls import self_signed


class EchoService:
    """Answers each body with two messages, the second one built late; headers end the stream."""

    def __init__(self) -> None:
        self.closed: list[str] = []
        self.hang = asyncio.Event()

    def open(self, metadata: Sequence[tuple[str, str | bytes]] = ()) -> EchoExchange:
        self.metadata = dict(metadata)
        self.last = EchoExchange(self)
        return self.last


class EchoExchange:
    interruptible = True
    push: Callable[[Iterable[bytes]], None] | None = None

    def __init__(self, service: EchoService) -> None:
        self._service = service
        self.done = False

    def receive(self, data: bytes) -> Iterable[bytes] | Awaitable[Iterable[bytes]]:
        message = ProcessingRequest.FromString(data)
        match message.WhichOneof("request"):
            case "request_headers":
                self.done = True
                return ()
            case "request_trailers":
                raise ProtocolError("trailers are not liked")
            case "response_headers":
                raise RuntimeError("a bug")
            case "response_trailers":
                return self._later()
        return self._echo(message.request_body.body)

    def close(self, code: str) -> None:
        self._service.closed.append(code)

    def interrupt(self, body: bytes) -> None:
        """Say something that nobody has asked for, and end."""
        self.done = True
        assert self.push is not None
        self.push(self._echo(body))

    def _echo(self, body: bytes) -> Iterator[bytes]:
        for piece in (body, body.upper()):
            answer = BodyResponse()
            answer.response.body_mutation.body = piece
            yield ProcessingResponse(request_body=answer).SerializeToString()

    async def _later(self) -> Iterable[bytes]:
        await self._service.hang.wait()
        return self._echo(b"late")


Start = Callable[..., Awaitable[tuple[Transport, EchoService, Any]]]
KINDS = {"grpcio": GrpcioTransport, "h2": H2Transport}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def start(kind: str) -> AsyncIterator[Start]:
    """Starts a transport; gives it, its service, and a client's call on one channel."""
    running: list[Any] = []

    async def begin(**options: Any) -> tuple[Transport, EchoService, Any]:
        service = EchoService()
        transport = KINDS[kind](service, TransportOptions(host="127.0.0.1", port=0, **options))
        port = await transport.start()
        if options.get("tls"):
            pair = options["tls"].current()
            credentials = grpc.ssl_channel_credentials(pair.chain)
            channel = grpc.aio.secure_channel(f"localhost:{port}", credentials)
        else:
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        running.extend([channel.close, transport.stop])
        call = channel.stream_stream(METHOD, ProcessingRequest.SerializeToString, ProcessingResponse.FromString)
        call.channel, call.port = channel, port
        return transport, service, call

    yield begin
    for stop in running:
        await stop()


def body(text: bytes) -> ProcessingRequest:
    return ProcessingRequest(request_body=HttpBody(body=text))


async def read(stream: Any) -> bytes:
    message = await stream.read()
    data: bytes = message.request_body.response.body_mutation.body
    return data


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("secure", [False, True])
async def test_messages_go_both_ways(start: Start, secure: bool) -> None:
    _, service, call = await start(tls=TlsSource() if secure else None)
    stream = call()
    for text in (b"one", b"two"):
        await stream.write(body(text))
        assert [await read(stream), await read(stream)] == [text, text.upper()]
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() == grpc.StatusCode.OK
    assert service.closed == ["OK"]


async def test_the_service_ends_a_stream(start: Start) -> None:
    _, service, call = await start()
    stream = call()
    await stream.write(ProcessingRequest(request_headers=HttpHeaders()))
    assert await stream.read() is grpc.aio.EOF
    assert await stream.code() == grpc.StatusCode.OK
    assert service.closed == ["OK"]


async def test_late_answers(start: Start) -> None:
    _, service, call = await start()
    stream = call()
    message = ProcessingRequest()
    message.response_trailers.SetInParent()
    await stream.write(message)
    service.hang.set()
    assert await read(stream) == b"late"


@pytest.mark.parametrize(
    ("part", "status", "code"),
    [
        ("request_trailers", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
        ("response_headers", grpc.StatusCode.UNKNOWN, "INTERNAL"),
    ],
)
async def test_errors_end_the_stream_and_close_the_exchange(
    start: Start, part: str, status: grpc.StatusCode, code: str
) -> None:
    _, service, call = await start()
    stream = call()
    message = ProcessingRequest()
    getattr(message, part).SetInParent()
    await stream.write(message)
    assert await stream.code() == status
    if part == "request_trailers":
        assert await stream.details() == "trailers are not liked"
    await until(lambda: service.closed == [code])


@pytest.mark.parametrize("waiting", ["for a message", "for a decision"])
async def test_a_peer_that_goes_away_closes_the_exchange(start: Start, waiting: str) -> None:
    _, service, call = await start()
    stream = call()
    await stream.write(body(b"x"))
    await read(stream)
    if waiting == "for a decision":
        message = ProcessingRequest()
        message.response_trailers.SetInParent()
        await stream.write(message)
    stream.cancel()
    # Between two messages grpcio does not tell a peer that went away from one that has finished.
    await until(lambda: bool(service.closed))
    assert service.closed in (["CANCELLED"], ["OK"])


async def test_an_exchange_has_the_last_word(start: Start) -> None:
    """What it says out of turn is sent at once, and the stream ends well; the next one is none the worse for it."""
    _, service, call = await start()
    for _ in range(3):
        stream = call()
        await stream.write(body(b"x"))
        assert [await read(stream), await read(stream)] == [b"x", b"X"]
        service.last.interrupt(b"out")
        assert [await read(stream), await read(stream)] == [b"out", b"OUT"]
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() == grpc.StatusCode.OK
    assert service.closed == ["OK"] * 3


async def test_the_last_word_comes_after_an_answer_that_is_being_sent(start: Start) -> None:
    """An answer that waits for a slow reader is sent to its end first."""
    _, service, call = await start()
    stream = call()
    large = bytes(3 * 1024 * 1024)
    await stream.write(body(large))
    await asyncio.sleep(0.2)
    service.last.interrupt(b"out")
    sizes = [len(await read(stream)) for _ in range(4)]
    assert sizes == [len(large), len(large), 3, 3]
    assert await stream.code() == grpc.StatusCode.OK


async def test_message_sizes_are_bounded(start: Start) -> None:
    _, _, call = await start(max_receive=100_000)
    stream = call()
    await stream.write(body(b"x" * 200_000))
    assert await stream.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_taken_port_is_said(start: Start, kind: str) -> None:
    _, _, call = await start()
    second = KINDS[kind](EchoService(), TransportOptions(host="127.0.0.1", port=call.port))
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{call.port}.*is the port taken"):
        await second.start()


async def test_drain_waits_for_streams_and_serves_new_ones(
    start: Start, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = {"grpcio": "epp.transport.grpcio", "h2": "epp.transport.h2.server"}[kind]
    monkeypatch.setattr(f"{module}.QUIET_SECONDS", 0.1)
    transport, _, call = await start()
    old = call()
    await old.write(body(b"old"))
    await read(old)
    draining = asyncio.create_task(transport.drain(60))
    await asyncio.sleep(0.3)
    assert not draining.done()
    new = call()
    await new.write(body(b"new"))
    assert await read(new) == b"new"
    for stream in (old, new):
        await stream.done_writing()
    async with asyncio.timeout(10):
        await draining


async def test_drain_ends_with_its_time(start: Start) -> None:
    transport, service, call = await start()
    stream = call()
    await stream.write(body(b"x"))
    await read(stream)
    async with asyncio.timeout(10):
        await transport.drain(0.1)
    await transport.stop()
    await until(lambda: len(service.closed) == 1)


async def adopted(transport: H2Transport, count: int) -> list[socket.socket]:
    """Connections that were accepted by somebody else; the clients' ends."""
    ends = []
    for _ in range(count):
        here, there = socket.socketpair()
        there.setblocking(False)
        await transport.adopt(there)
        here.setblocking(False)
        await asyncio.get_running_loop().sock_sendall(here, f.PREFACE + f.settings({}))
        ends.append(here)
    return ends


def frames(end: socket.socket) -> list[tuple[int, bytes]]:
    """What has come on a connection since the last time: kinds and payloads."""
    data, found = b"", []
    with contextlib.suppress(BlockingIOError):
        data = end.recv(65536)
    while data:
        size = 9 + int.from_bytes(data[:3])
        found.append((data[3], data[9:size]))
        data = data[size:]
    return found


async def test_connections_that_were_accepted_elsewhere() -> None:
    lost: list[int] = []
    transport = H2Transport(EchoService(), TransportOptions(streams=7))
    transport.on_lost = lambda: lost.append(transport.staying)
    transport.prepare()
    first, second = await adopted(transport, 2)
    async with asyncio.timeout(10):
        while not (came := frames(first)):
            await asyncio.sleep(0.01)
    kind, settings = came[0]
    assert (kind, dict(f.read_settings(settings))[f.MAX_CONCURRENT_STREAMS]) == (f.SETTINGS, 7)
    assert transport.staying == 2
    transport.shed(1)
    transport.shed(0)
    assert transport.staying == 1
    told: set[socket.socket] = set()
    async with asyncio.timeout(10):
        while not lost:  # the second, final GOAWAY comes a moment later, and with it the end
            told |= {end for end in (first, second) if f.GOAWAY in [kind for kind, _ in frames(end)]}
            await asyncio.sleep(0.01)
    assert len(told) == 1
    assert lost == [1]
    first.close()
    second.close()
    await transport.stop()


class Switch:
    """A health source with a switch."""

    def __init__(self) -> None:
        self.status_now = 2

    def status(self, service: str) -> int:
        return 1 if service == "liveness" else self.status_now


@pytest.fixture
async def health() -> AsyncIterator[tuple[Switch, Any]]:
    switch = Switch()
    server = HealthServer(switch, ("", "liveness"), host="127.0.0.1", port=0)
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{await server.start()}")
    yield switch, channel
    await channel.close()
    await server.stop()


async def test_health_check_and_list(health: tuple[Switch, Any]) -> None:
    switch, channel = health
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check", HealthCheckRequest.SerializeToString, HealthCheckResponse.FromString
    )
    assert (await check(HealthCheckRequest(service=""))).status == HealthCheckResponse.NOT_SERVING
    assert (await check(HealthCheckRequest(service="liveness"))).status == HealthCheckResponse.SERVING
    switch.status_now = 1
    assert (await check(HealthCheckRequest(service="x"))).status == HealthCheckResponse.SERVING
    listing = channel.unary_unary(
        "/grpc.health.v1.Health/List", HealthListRequest.SerializeToString, HealthListResponse.FromString
    )
    statuses = (await listing(HealthListRequest())).statuses
    assert {name: each.status for name, each in statuses.items()} == {"": 1, "liveness": 1}


async def test_health_watch_tells_changes_only(health: tuple[Switch, Any]) -> None:
    switch, channel = health
    watch = channel.unary_stream(
        "/grpc.health.v1.Health/Watch", HealthCheckRequest.SerializeToString, HealthCheckResponse.FromString
    )
    seen = watch(HealthCheckRequest(service="readiness"))
    assert (await seen.read()).status == HealthCheckResponse.NOT_SERVING
    switch.status_now = 1
    assert (await seen.read()).status == HealthCheckResponse.SERVING
    seen.cancel()


async def test_health_on_the_same_port(start: Start) -> None:
    _, _, call = await start(health_checking=True)
    check = call.channel.unary_unary(
        "/grpc.health.v1.Health/Check", HealthCheckRequest.SerializeToString, HealthCheckResponse.FromString
    )
    assert (await check(HealthCheckRequest())).status == HealthCheckResponse.SERVING


def mount(folder: Path) -> Path:
    pair = self_signed()
    (folder / "tls.crt").write_bytes(pair.chain)
    (folder / "tls.key").write_bytes(pair.key)
    return folder


class TestTlsSource:
    def test_self_signed_differs_each_time(self) -> None:
        assert TlsSource().current().key != TlsSource().current().key

    def test_reads_a_mounted_folder(self, tmp_path: Path) -> None:
        assert TlsSource(str(mount(tmp_path))).current().chain == (tmp_path / "tls.crt").read_bytes()

    @pytest.mark.parametrize(
        ("name", "content", "text"),
        [
            ("tls.crt", None, "tls.crt: cannot be read: No such file"),
            ("tls.key", None, "tls.key: cannot be read: No such file"),
            ("tls.crt", b"x", "tls.crt: not a PEM certificate"),
            ("tls.key", b"x", "tls.key: not an unencrypted PEM private key"),
            ("tls.key", self_signed().key, "tls.key does not belong to tls.crt"),
        ],
    )
    def test_unusable_files_are_named(self, tmp_path: Path, name: str, content: bytes | None, text: str) -> None:
        mount(tmp_path)
        (tmp_path / name).unlink()
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(CertificateError, match=text):
            TlsSource(str(tmp_path))

    def test_reload_takes_over_a_new_pair_and_keeps_the_old_one_if_it_is_broken(self, tmp_path: Path) -> None:
        source = TlsSource(str(mount(tmp_path)), reload=True)
        old = source.current()
        assert source.current() is old
        (tmp_path / "tls.crt").write_bytes(b"broken")
        assert source.current() is old
        mount(tmp_path)
        assert source.current().chain == (tmp_path / "tls.crt").read_bytes()

    def test_without_reload_nothing_changes(self, tmp_path: Path) -> None:
        source = TlsSource(str(mount(tmp_path)))
        old = source.current()
        mount(tmp_path)
        assert source.current() is old

    async def test_handshakes_get_the_new_certificate(self, start: Start, tmp_path: Path) -> None:
        source = TlsSource(str(mount(tmp_path)), reload=True)
        _, _, call = await start(tls=source)

        async def served() -> str:
            return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", call.port))

        assert await served() == (tmp_path / "tls.crt").read_text()
        mount(tmp_path)
        assert await served() == (tmp_path / "tls.crt").read_text()
