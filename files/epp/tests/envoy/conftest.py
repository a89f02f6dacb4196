# SPDX-License-Identifier: GPL-3.0-or-later
"""Real programs around the real Envoy: the EPP as a process, simulated model servers, and a mirror."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from benchmarks import rig
from ports import free_port


class Mirror:
    """Model servers that tell what reached them: ``served`` (own address), ``headers``, and ``body`` of the request.

    An answer is plain JSON, or a stream of ten events for ``"stream": true``. The model's name in it is the request's.
    """

    def __init__(self, host: str, count: int) -> None:
        self.hostports: tuple[str, ...] = ()
        self.pause = 0.01
        """Seconds between two events of a stream."""
        self._host, self._count = host, count
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._run()), daemon=True)

    def __enter__(self) -> Mirror:
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _run(self) -> None:
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        prefix, _, last = self._host.rpartition(".")
        for index in range(self._count):
            await web.TCPSite(runner, f"{prefix}.{int(last) + index}", 0).start()
        self.hostports = tuple(f"{host}:{port}" for host, port, *_ in runner.addresses)
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        served = "{}:{}".format(*request.transport.get_extra_info("sockname")[:2]) if request.transport else ""
        document = json.loads(body) if body.startswith(b"{") else {}
        told = {
            "served": served,
            "headers": {key.lower(): value for key, value in request.headers.items()},
            "size": len(body),
            "body": body[:200].decode(),
        }
        usage = {"prompt_tokens": 5, "completion_tokens": 10}
        if not document.get("stream"):
            return web.json_response({"model": document.get("model"), **told, "usage": usage})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for number in range(10):
            event = {"model": document["model"], "number": number, **(told if number == 0 else {})}
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
            await asyncio.sleep(self.pause)
        await response.write(f"data: {json.dumps({'usage': usage})}\n\ndata: [DONE]\n\n".encode())
        return response


def own_network(third: int) -> str:
    """The first address of a piece of 127/8 that is this process's own."""
    return f"127.{64 + os.getpid() % 128}.{third}.1"


@pytest.fixture(scope="package", params=["h2", "grpcio"], autouse=True)
def transport(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every EPP of these tests serves with this transport."""
    kind: str = request.param
    start = rig.epp
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rig, "epp", lambda *flags, **more: start(f"--transport={kind}", *flags, **more))
        yield kind


@pytest.fixture(scope="package")
def mirror() -> Iterator[Mirror]:
    with Mirror(own_network(1), 3) as servers:
        yield servers


@pytest.fixture(scope="package")
def sims() -> Iterator[tuple[str, ...]]:
    """Four simulators, fast ones, that serve ``llama``."""
    with rig.sims(4, own_network(2), free_port(), "--model=llama", "--time-scale=10") as hostports:
        yield hostports


@pytest.fixture(scope="package")
def endpoints(tmp_path_factory: pytest.TempPathFactory, mirror: Mirror) -> Path:
    """The endpoints file of the shared EPP: the mirrors."""
    return rig.write_endpoints(tmp_path_factory.mktemp("epp") / "endpoints.yaml", mirror.hostports)


@pytest.fixture(scope="package")
def epp(transport: str, endpoints: Path) -> Iterator[rig.Epp]:
    """An EPP with TLS, in front of the mirrors, for the tests that leave it as it was."""
    with rig.epp(f"--endpoints-file={endpoints}") as running:
        yield running


@pytest.fixture(scope="package")
def gateway(epp: rig.Epp, mirror: Mirror) -> Iterator[str]:
    """URL of an Envoy in full duplex, with the shared EPP and the mirrors."""
    with rig.envoy(rig.EnvoyOptions(mirror.hostports, epp.grpc_port)) as url:
        yield url


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(60)) as session:
        yield session


class Load:
    """In-flight requests, as the EPP counts them."""

    @staticmethod
    def of(epp: rig.Epp) -> int:
        return sum(endpoint["inflight"] for endpoint in epp.endpoints())

    async def becomes(self, epp: rig.Epp, count: int) -> None:
        async with asyncio.timeout(20):
            while await asyncio.to_thread(self.of, epp) != count:
                await asyncio.sleep(0.02)


@pytest.fixture
def inflight() -> Load:
    return Load()


def metric(page: str, name: str, **labels: str) -> float:
    """Sum of the samples of a metric that carry these labels."""
    wanted = [f'{key}="{value}"' for key, value in labels.items()]
    lines = [line for line in page.splitlines() if line.partition("{")[0].partition(" ")[0] == name]
    return sum(float(line.rpartition(" ")[2]) for line in lines if all(label in line for label in wanted))


@pytest.fixture
def read_metric() -> Any:
    return metric
